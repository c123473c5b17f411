"""Records of a suite's runs, copied to where they are kept with the project."""

from __future__ import annotations

from pathlib import Path

from adpe.errors import UserError
from adpe.leaderboard.records import append_record, read_records

_FILES = ("checkpoint", "per_image")


def collect(folder: Path, target: Path) -> tuple[int, int, list[str]]:
    """Append the records of `folder` to `target`, with the paths of files told from `folder`.

    Args:
        folder: of a suite's runs, with its ``records.jsonl``.
        target: file of records; a record that it has already stays as it is.

    Returns:
        records added, records of the folder, and what is wrong with the other lines of its file.

    Raises:
        UserError: if the folder has no file of records.
    """
    source = folder / "records.jsonl"
    if not source.is_file():
        raise UserError(f"{source} does not exist: expected the folder of a suite, such as work_dirs/suites/small.")
    records, faults = read_records(source)
    added = 0
    for record in records:
        paths = {name: _told_from(folder, record[name]) for name in _FILES if record.get(name)}
        added += append_record(target, {**record, **paths})
    return added, len(records), faults


def _told_from(folder: Path, path: str) -> str:
    """`path` relative to `folder`; of a file elsewhere, which is another machine's business, the name alone."""
    file = Path(path)
    absolute = file if file.is_absolute() else Path.cwd() / file
    return str(absolute.relative_to(folder.resolve())) if absolute.is_relative_to(folder.resolve()) else file.name
