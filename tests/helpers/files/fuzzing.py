"""What the fuzz tests share: how often and how files are damaged, and a watch over what reading them does.

`ADPE_FUZZ_EXAMPLES=3000 pytest tests/checkpoints/test_fuzz_checkpoints.py tests/data/test_fuzz_data.py` is the
long version; the number is per test.
"""

from __future__ import annotations

import datetime
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

# Examples of each test.
EXAMPLES = int(os.environ.get("ADPE_FUZZ_EXAMPLES", 60))
# A fortieth of what reads all published rows at every example.
fuzz, fuzz_slow = (
    settings(
        max_examples=number,
        deadline=datetime.timedelta(seconds=60),  # of one example: a hang fails
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    for number in (EXAMPLES, max(3, EXAMPLES // 40))
)
# What no reader may do, as Python's audit events.
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "socket.connect",
             "os.chmod", "os.link", "os.symlink", "shutil.rmtree")  # fmt: skip
MORE_MEMORY = 6 * 2**30  # bytes, beyond what the test process has

watching = False
seen: list[str] = []


def _audit(event: str, arguments: Any) -> None:
    if watching and event.startswith(FORBIDDEN):
        seen.append(f"{event} {arguments}")


sys.addaudithook(_audit)


@pytest.fixture(autouse=True)
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process, connection or link is made, at most `MORE_MEMORY` is taken, and nothing lands beside `tmp_path`."""
    global watching
    monkeypatch.setenv("ADPE_CACHE_DIR", str(tmp_path / "cache"))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    beside = set(tmp_path.parent.iterdir())
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MORE_MEMORY, limits[1]))
    watching = True
    try:
        yield
    finally:
        watching = False
        resource.setrlimit(resource.RLIMIT_AS, limits)
    found, seen[:] = list(seen), []
    assert found == []
    assert set(tmp_path.parent.iterdir()) == beside
    assert not (tmp_path / "executed").exists()


def edits(words: tuple[bytes, ...]) -> st.SearchStrategy[list[Any]]:
    """Where (as a fraction), how much is taken away, and what is put in."""
    text = st.one_of(st.binary(max_size=8), st.sampled_from(words))
    return st.lists(
        st.tuples(st.floats(0, 1), st.one_of(st.integers(0, 8), st.integers(0, 4000)), text), min_size=1, max_size=5
    )


def mutated(data: bytes, changes: list[Any]) -> bytes:
    for where, taken, put in changes:
        start = int(where * len(data))
        data = data[:start] + put + data[start + taken :]
    return data


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
