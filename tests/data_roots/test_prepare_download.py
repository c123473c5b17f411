"""Downloads against a local server: resumed at the byte, whole or not at all, wrong ones refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from file_server import FileServer, serving

from adpe.data.preparation.download import ATTEMPTS, download, verify_checksum
from adpe.errors import UserError

DATA = np.random.default_rng(0).bytes(300_000)
MD5 = f"md5:{hashlib.md5(DATA).hexdigest()}"


@pytest.fixture
def server():
    with serving({"/a.zip": DATA}) as state:
        yield state


def fetch(server: FileServer, target: Path, checksum: str | None = MD5, **options) -> Path:
    return download(f"{server.url}/a.zip", target, checksum, pause_s=0.001, **options)


def test_whole_file(server, tmp_path):
    seen = []
    path = fetch(server, tmp_path / "folder" / "a.zip", report=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == DATA
    assert seen[-1] == (len(DATA), len(DATA))
    assert [file.name for file in path.parent.iterdir()] == ["a.zip"]
    assert fetch(server, path) == path and len(server.requests) == 1  # what is there is not fetched again


def test_broken_connections_are_resumed_at_the_byte(server, tmp_path):
    server.break_after = [100_000, 50_000, None]
    assert fetch(server, tmp_path / "a.zip").read_bytes() == DATA
    assert [asked for _, asked in server.requests] == [None, "bytes=100000-", "bytes=150000-"]


def test_more_breaks_than_attempts_as_long_as_it_grows(server, tmp_path):
    server.break_after = [30_000] * (ATTEMPTS + 3) + [None]
    assert fetch(server, tmp_path / "a.zip").read_bytes() == DATA
    assert len(server.requests) == ATTEMPTS + 4


def test_a_later_run_goes_on(server, tmp_path):
    server.break_after = [100_000] + [0] * (ATTEMPTS - 1)
    with pytest.raises(UserError, match=r"broke off after 100000 of 300000 bytes, 5 times in a row.*same command"):
        fetch(server, tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()
    assert (tmp_path / "a.zip.partial").read_bytes() == DATA[:100_000]
    server.requests.clear()
    assert fetch(server, tmp_path / "a.zip").read_bytes() == DATA
    assert [asked for _, asked in server.requests] == ["bytes=100000-"]
    assert [file.name for file in tmp_path.iterdir()] == ["a.zip"]


def test_a_file_that_changed_meanwhile_is_not_glued_to_the_old_one(server, tmp_path):
    server.break_after = [100_000] + [0] * (ATTEMPTS - 1)
    with pytest.raises(UserError):
        fetch(server, tmp_path / "a.zip")
    new = DATA[::-1]
    server.files["/a.zip"], server.etag = new, '"2"'
    assert fetch(server, tmp_path / "a.zip", None).read_bytes() == new


@pytest.mark.parametrize("etag", [None, 'W/"1"'])
def test_without_a_strong_validator_it_starts_again(server, etag, tmp_path):
    server.etag, server.break_after = etag, [100_000, None]
    assert fetch(server, tmp_path / "a.zip").read_bytes() == DATA
    assert [asked for _, asked in server.requests] == [None, None]


def test_a_server_without_ranges(server, tmp_path):
    server.ranges, server.break_after = False, [100_000, None]
    assert fetch(server, tmp_path / "a.zip").read_bytes() == DATA
    assert len(server.requests) == 2


def test_all_there_but_not_yet_renamed(server, tmp_path):
    server.break_after = [100_000] + [0] * (ATTEMPTS - 1)
    with pytest.raises(UserError):
        fetch(server, tmp_path / "a.zip")
    (tmp_path / "a.zip.partial").write_bytes(DATA)
    assert fetch(server, tmp_path / "a.zip").read_bytes() == DATA
    assert server.requests[-1][1] == "bytes=300000-"


def test_a_partial_longer_than_the_file_is_thrown_away(server, tmp_path):
    server.break_after = [100_000] + [0] * (ATTEMPTS - 1)
    with pytest.raises(UserError):
        fetch(server, tmp_path / "a.zip")
    (tmp_path / "a.zip.partial").write_bytes(DATA + b"more")
    assert fetch(server, tmp_path / "a.zip").read_bytes() == DATA


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    with pytest.raises(UserError, match=r"a\.zip: md5 \w+, expected 00\. The damaged file is removed"):
        fetch(server, tmp_path / "a.zip", "md5:00")
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_the_users_with_a_wrong_checksum_is_kept(tmp_path):
    (tmp_path / "a.zip").write_bytes(DATA)
    verify_checksum(tmp_path / "a.zip", MD5)
    with pytest.raises(UserError, match=r"a\.zip: sha1 \w+, expected 00\..*--no-checksum"):
        verify_checksum(tmp_path / "a.zip", "sha1:00")
    assert (tmp_path / "a.zip").read_bytes() == DATA


def test_server_errors_are_tried_again_and_refusals_are_not(server, tmp_path):
    server.status = [503, 500, 429]
    assert fetch(server, tmp_path / "a.zip").read_bytes() == DATA
    assert len(server.requests) == 4
    with pytest.raises(UserError, match=r"b\.zip: the server says 404 Not Found.*--archive"):
        download(f"{server.url}/b.zip", tmp_path / "b.zip")
    assert len(server.requests) == 5


def test_nobody_there_and_other_protocols(tmp_path):
    with serving({}) as gone:
        url = gone.url
    with pytest.raises(UserError, match=r"Connection refused.* 5 times in a row"):
        download(f"{url}/a.zip", tmp_path / "a.zip", pause_s=0.001)
    for url in ("file:///etc/passwd", "ftp://example.org/a.zip", "a.zip"):
        with pytest.raises(UserError, match="expected an http or https address"):
            download(url, tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()
