"""Shared by all tests: no network, one thread per process, and GPU tests only where there is a GPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from dyn_probe.trace.reader import Trace

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "agg")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` on a machine without CUDA."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def no_accelerator_of_another_test() -> None:
    """accelerate keeps one state per process: each test begins without what another one made of it."""
    if (state := sys.modules.get("accelerate.state")) is not None:
        state.AcceleratorState._reset_state(True)


@pytest.fixture
def double_everywhere() -> Iterator[None]:
    """Float64 models compute in float64 throughout: ``pytestmark = pytest.mark.usefixtures("double_everywhere")``."""
    from families import double_throughout

    with double_throughout():
        yield


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trace]:
    """The kinds of run of ``figure_runs``, by name."""
    from figure_runs import make_traces

    return make_traces(tmp_path_factory.mktemp("runs"))
