"""Downloading large files: resumed after any interruption, checked, and under their final name only when whole."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from adpe.errors import UserError
from adpe.files import atomic_write

CHUNK = 2**20
ATTEMPTS = 5  # in a row without a byte
TIMEOUT_S = 60.0

# (bytes that are there, bytes in all or None)
Report = Callable[[int, int | None], None]


class _Again(Exception):
    """A temporary error: the next attempt continues from what is there."""


def download(
    url: str,
    target: str | os.PathLike[str],
    checksum: str | None = None,
    report: Report | None = None,
    pause_s: float = 1.0,
) -> Path:
    """Download `url` to `target`, going on from ``<target>.partial`` if an earlier attempt left one.

    A partial file is continued (HTTP Range) only if the server says it is still the same file (If-Range with its ETag
    or date); otherwise, and from a server without Range, it starts again. Broken connections, short bodies and server
    errors (5xx, 429) are tried again after growing pauses, five times without progress.

    Args:
        url: http or https.
        target: the final path; an existing file is returned as it is, its checksum verified.
        checksum: ``"<algorithm>:<hexadecimal digest>"``, e.g. ``"md5:..."``.
        report: called after every chunk with the bytes that are there and the bytes in all (None if not known).
        pause_s: seconds before the second attempt; each further pause is twice as long.

    Returns:
        `target`.

    Raises:
        UserError: if the server refuses, the transfer keeps breaking off, the disk is full, or the checksum is wrong
            (the file is removed then).
    """
    target = Path(target)
    if not re.match("https?://", url):
        raise UserError(f"{url}: expected an http or https address.")
    if target.exists():
        verify_checksum(target, checksum)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    failures = 0
    while True:
        before = partial.stat().st_size if partial.exists() else 0
        try:
            _transfer(url, partial, report or (lambda done, total: None))
            break
        except (_Again, http.client.HTTPException, OSError) as error:
            if isinstance(error, OSError) and error.filename is not None:  # of this machine's disk
                raise UserError(f"{partial}: {error.strerror}. Free some space, or choose another folder.") from None
            grown = partial.exists() and partial.stat().st_size > before
            failures = 1 if grown else failures + 1
            if failures >= ATTEMPTS:
                raise UserError(
                    f"{url}: {error or type(error).__name__}, {ATTEMPTS} times in a row. What has arrived is kept in "
                    f"{partial}: rerun the same command to resume."
                ) from None
            time.sleep(pause_s * 2 ** (failures - 1))
    verify_checksum(partial, checksum, url)
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, target)
    _validator_file(partial).unlink(missing_ok=True)
    return target


def verify_checksum(path: Path, checksum: str | None, source: str | None = None) -> None:
    """Compare a file with ``"<algorithm>:<digest>"``; None is always right.

    Raises:
        UserError: if they differ. A downloaded file (one with `source`) is removed: it is of no use.
    """
    if checksum is None:
        return
    algorithm, _, expected = checksum.partition(":")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() == expected.lower():
        return
    said = f"{algorithm} {digest.hexdigest()}, expected {expected}"
    if source is None:
        raise UserError(f"{path}: {said}. Copy or download it again, or give --no-checksum if it is meant to differ.")
    path.unlink()
    _validator_file(path).unlink(missing_ok=True)
    raise UserError(f"{source}: {said}. The damaged file is removed: run the same command again.")


def _transfer(url: str, partial: Path, report: Report) -> None:
    """One attempt. Raises _Again, OSError or HTTPException where another may help, UserError where none will."""
    start = partial.stat().st_size if partial.exists() else 0
    validator = _validator(partial) if start else None
    headers = {"User-Agent": "adpe", "Accept-Encoding": "identity"}
    if validator:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # nothing after what is there: whole, or of another file
            if error.headers.get("Content-Range") == f"bytes */{start}":
                return
            partial.unlink(missing_ok=True)
            raise _Again("the server has another file than the one begun") from None
        if error.code >= 500 or error.code == 429:
            raise _Again(f"the server says {error.code} {error.reason}") from None
        raise UserError(
            f"{url}: the server says {error.code} {error.reason}. Fetch the file by other means and give --archive."
        ) from None
    with response:
        part = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range") or "")
        resumed = response.status == 206 and part is not None and int(part[1]) == start
        length = response.headers.get("Content-Length")
        if resumed:
            assert part is not None
            total = int(part[2]) if part[2] != "*" else None
        else:
            start, total = 0, int(length) if length is not None else None
        _check_space(partial, total, start)
        if not resumed:
            said = response.headers.get("ETag") or response.headers.get("Last-Modified")
            # A weak ETag does not promise the same bytes.
            _keep_validator(partial, None if said is None or said.startswith("W/") else said)
        with open(partial, "ab" if resumed else "wb") as file:
            done = start
            while chunk := response.read(CHUNK):
                file.write(chunk)
                done += len(chunk)
                report(done, total)
    if total is not None and done != total:
        raise _Again(f"the connection broke off after {done} of {total} bytes")


def _check_space(partial: Path, total: int | None, start: int) -> None:
    free = shutil.disk_usage(partial.parent).free
    if total is not None and total - start > free:
        raise UserError(
            f"{partial.parent}: {(total - start) / 1e9:.1f} GB are to come and {free / 1e9:.1f} GB are free. Make room."
        )


def _validator_file(partial: Path) -> Path:
    return partial.with_name(partial.name + ".json")


def _validator(partial: Path) -> str | None:
    try:
        return json.loads(_validator_file(partial).read_text())["validator"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep_validator(partial: Path, validator: str | None) -> None:
    with atomic_write(_validator_file(partial)) as temporary:
        temporary.write_text(json.dumps({"validator": validator}))
