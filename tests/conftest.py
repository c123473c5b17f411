from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Iterator

import pytest
import torch

# Everything that the collection of the tests imports stays.
gc.disable()

# Small tensors: one thread is the fastest, and the same on every machine.
torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def cache_folder_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that a test unpacks or decodes is left in the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADPE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def no_visualizer_of_an_earlier_test() -> None:
    """Forget visualizers: mmengine names them to the second, and two quick tests would share one and its folder."""
    module = sys.modules.get("mmengine.visualization")
    if module is not None:
        for cls in (module.Visualizer, *module.Visualizer.__subclasses__()):
            cls._instance_dict.clear()


@pytest.fixture(autouse=True)
def no_signal_handler_of_an_earlier_test() -> Iterator[None]:
    """A training that failed, or was told to stop, keeps its handlers: its process would end."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    handlers = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler or signal.SIG_DFL)


def pytest_collection_finish() -> None:
    """Leave what is imported out of garbage collections: mmengine asks for one in every data set, 0.3 s each."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick tests first: what a slow test would find is mostly found by them; of the slow ones the longest first."""

    def seconds(item: pytest.Item) -> float:
        mark = item.get_closest_marker("slow")
        return 0.0 if mark is None else -(mark.args[0] if mark.args else 10.0)

    items.sort(key=lambda item: (seconds(item) != 0, seconds(item)))
