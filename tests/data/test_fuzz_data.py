"""Damaged and hostile records, suites and archives end in the documented errors, and execute nothing."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzzing import SCALARS, edits, fuzz, fuzz_slow, mutated, watched  # noqa: F401  a fixture
from hypothesis import given
from hypothesis import strategies as st
from image_files import png, some_files, write_sources, write_zip

from adpe.data.sources.images import CorruptImageError, ImageSource
from adpe.errors import UserError
from adpe.leaderboard.published import FOLDER as PUBLISHED
from adpe.leaderboard.published import read_published
from adpe.leaderboard.records import append_record, read_records
from adpe.suites.suite import suite_files
from adpe.suites.suite_file import read_suite

RECORD = {
    "schema": 1, "run": "a-0", "method": "m", "task": "detection", "dataset": "d", "seed": 0, "config": "c.py",
    "metrics": {"bbox_mAP": 0.5}, "time": "2026-01-01T00:00:00+00:00",
}  # fmt: skip
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)


@pytest.mark.parametrize("kind", ["bytes", "values"])
def test_records(kind, tmp_path):
    path = tmp_path / "records.jsonl"
    whole = b"".join(json.dumps({**RECORD, "seed": seed}).encode() + b"\n" for seed in range(3))
    words = (
        b"\n",
        b"{",
        b'"seed"',
        b"NaN",
        b"[" * 3000,
        b"1e999",
        b"9" * 5000,
        b'"\\ud800"',
        b"\xff",
        b"\x85",
        b"\x00",
    )
    changed = st.dictionaries(st.sampled_from([*RECORD, "suite", "other"]), JSON, min_size=1, max_size=3)

    @fuzz
    @given(edits(words) if kind == "bytes" else changed)
    def run(change):
        last = json.dumps({**RECORD, **change}).encode() if kind == "values" else b""
        path.write_bytes(mutated(whole, change) if kind == "bytes" else whole + last)
        records, faults = read_records(path)
        lines = [line for line in path.read_bytes().splitlines() if line.strip()]
        assert len(records) + len(faults) == len(lines)
        assert all(str(path) in fault for fault in faults)
        # Whatever the file holds, a record is added to it, and found again.
        assert append_record(path, {**RECORD, "seed": 99})
        assert read_records(path)[0] == [*records, {**RECORD, "seed": 99}]

    run()


YAML_WORDS = (b"!!python/object/apply:os.mkdir [executed]", b"!!python/name:os.system", b"&a [*a]", b"*a", b"<<: *a",
              b"? ", b"- ", b": ", b"\n", b"  ", b"{", b"[", b"|", b">", b"%YAML", b"---", b"\t", b"\x00", b"\xff",
              b"0o9", b"2026-99-99", b"1:99:99", b"!!binary x", b"!!set", b"!!float x", b"!!int x", b"!!timestamp x",
              b".inf", b".nan", b"9" * 5000, b"[" * 2000)  # fmt: skip


def test_suites(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, whole = tmp_path / "suite.yaml", suite_files()["adpe_ade20k"].read_bytes().partition(b"claims:")[0]
    path.write_bytes(whole)
    assert read_suite(path).methods

    @fuzz
    @given(edits(YAML_WORDS))
    def run(changes):
        path.write_bytes(mutated(whole, changes))
        _read_suite(path)

    run()


def _read_suite(path: Path) -> None:
    try:
        read_suite(path)
    except UserError as error:
        assert str(path) in str(error)


YAML = st.recursive(
    st.one_of(SCALARS, st.dates(), st.binary(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=5), st.integers(), st.dates()), inner, max_size=3),
    ),
    max_leaves=6,
)


def _places(node: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    if isinstance(node, (dict, list)):
        for key in node if isinstance(node, dict) else range(len(node)):
            yield from _places(node[key], (*place, key))


def replaced(node: Any, place: tuple[Any, ...], value: Any) -> Any:
    """`node` with `value` at `place`, as far as that is still there."""
    if not place:
        return value
    if isinstance(node, dict) and place[0] in node:
        return {**node, place[0]: replaced(node[place[0]], place[1:], value)}
    if isinstance(node, list) and isinstance(place[0], int) and place[0] < len(node):
        return [*node[: place[0]], replaced(node[place[0]], place[1:], value), *node[place[0] + 1 :]]
    return node


def test_suites_with_any_value_in_any_place(tmp_path):
    path = tmp_path / "suite.yaml"
    whole = yaml.safe_load(suite_files()["adpe_ade20k"].read_text())
    small = {key: value for key, value in whole.items() if key not in ("claims", "missing")}

    def run(content, changes):
        for place, value in changes:
            content = replaced(content, place, value)
        path.write_text(yaml.safe_dump(content))
        _read_suite(path)

    fuzz(given(st.just(small), changes_of(small))(run))()
    fuzz_slow(given(st.just(whole), changes_of(whole))(run))()


def test_published_rows_with_any_value_in_any_place(tmp_path):
    path = tmp_path / "rows.yaml"
    whole = yaml.safe_load((PUBLISHED / "ade20k.yaml").read_text())[:3]

    @fuzz
    @given(changes_of(whole))
    def run(changes):
        content = whole
        for place, value in changes:
            content = replaced(content, place, value)
        path.write_text(yaml.safe_dump(content))
        try:
            read_published(tmp_path)
        except UserError as error:
            assert str(path) in str(error)

    run()


def changes_of(node: Any) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.tuples(st.sampled_from(list(_places(node))), YAML), min_size=1, max_size=2)


ARCHIVE_WORDS = (
    b"../", b"/", b"\0" * 512, b"\xff" * 8, b"2", b"K", b"L", b"x", b"g", b"S", b"PK\x01\x02", b"PK\x05\x06",
    b"PK\x06\x06", b"path=../a.png\n", b"size=-1\n", b"size=99999999999\n", b"\x80" + b"\xff" * 11,
)  # fmt: skip


def read_images(path: Path, folder: Path) -> None:
    """Decode every image of an archive; errors other than the documented ones go through."""
    before = {file.name for file in folder.iterdir()}
    try:
        source = ImageSource(path, on_corrupt="error")
    except UserError as error:
        assert path.name in str(error)
    else:
        for index, name in enumerate(source.paths):
            assert name.startswith(f"{path}/") and ".." not in Path(name).parts
            try:
                source.open(index)
            except CorruptImageError as error:
                assert path.name in str(error)
    # Nothing is unpacked but a whole tar into the cache.
    assert {file.name for file in folder.iterdir()} - before <= {"cache"}


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "zip", "stored zip"])
def test_archives(kind, tmp_path):
    path = write_sources(tmp_path, {name: data for name, data in some_files().items() if "1" in name})[kind]
    whole = path.read_bytes()

    @fuzz
    @given(edits(ARCHIVE_WORDS))
    def run(changes):
        path.write_bytes(mutated(whole, changes))
        read_images(path, tmp_path)

    run()


WORDS = ("..", ".", "", "a", "/", "C:", "a\\..", "\0", "é", "\udc80", "x" * 200)
MEMBER_NAMES = st.builds(
    lambda parts, ending: "/".join(parts) + ending,
    st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=4)), max_size=4),
    st.sampled_from((".png", "", ".tar", "/")),
)
TYPES = st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE,
                         tarfile.FIFOTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE])  # fmt: skip
MEMBERS = st.lists(st.tuples(MEMBER_NAMES, TYPES, MEMBER_NAMES, st.integers(-1, 100)), min_size=1, max_size=5)


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_archives_of_members_with_any_name_and_type(kind, tmp_path):
    path, image = tmp_path / f"a.{kind}", png(1)

    @fuzz
    @given(MEMBERS, st.sampled_from((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)))
    def run(members, form):
        if kind == "tar":
            with tarfile.open(path, "w", format=form, encoding="utf-8", errors="surrogatepass") as archive:
                for name, member_type, target, size in members:
                    info = tarfile.TarInfo(name)
                    info.type, info.linkname = member_type, target
                    info.size = len(image) if size < 0 else size
                    archive.addfile(info, io.BytesIO(image.ljust(100, b"\0")))
        else:
            with zipfile.ZipFile(path, "w") as archive:
                for name, member_type, target, size in members:
                    info = zipfile.ZipInfo(name.replace("\0", "").encode("utf-8", "replace").decode() or "a")
                    link = member_type == tarfile.SYMTYPE
                    info.external_attr = (0o120777 if link else 0o100644) << 16
                    archive.writestr(info, target.encode("utf-8", "replace") if link else image[:size])
        read_images(path, tmp_path)

    run()


@pytest.mark.parametrize(("name", "told"), [(b"\0.pngx", "''"), (b"//.png", "'//.png'")])
def test_members_without_a_name_or_with_two_slashes_are_refused(name, told, tmp_path):
    path = write_zip(tmp_path / "a.zip", {"xx.png": png(1)})
    path.write_bytes(path.read_bytes().replace(b"xx.png", name))
    with pytest.raises(UserError, match=rf"a\.zip: refused, because its member {told} points outside the archive"):
        ImageSource(path)


def test_a_config_name_too_long_for_a_file_is_told(tmp_path):
    path = tmp_path / "suite.yaml"
    text = suite_files()["adpe_ade20k"].read_text().partition("claims:")[0]
    path.write_text(text.replace("configs/ade20k_upernet_vitb.py", f"configs/{'9' * 5000}.py"))
    with pytest.raises(UserError, match=r"tasks\[0\]: config: config '.*' does not exist"):
        read_suite(path)
