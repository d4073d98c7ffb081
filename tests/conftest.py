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


LONGEST = (
    "test_loop_multiprocess", "test_loop_methods", "02-compare-objectives", "test_laws_gram", "test_loop_record",
    "03-token-heatmaps", "test_engine_tokens", "test_loop_interrupted", "test_docs_build", "test_engine_held",
    "test_metric_steps", "test_attach_command", "test_engine_exactness", "test_trace_crash", "test_trace_damage",
    "test_cli_commands", "test_loop_unwritable", "test_loop_kl", "test_loop_scores", "test_cli_without_torch",
    "test_metric_known",
)  # fmt: skip
"""Files of half a minute and more: two processes end together only if none of these comes last."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest files first where processes share the work; skip ``gpu`` tests on a machine without CUDA."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
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


@pytest.fixture
def unrendered() -> Iterator[None]:
    """For tests of a report's words, numbers and files: its figures are made, but not rendered to SVG and PNG."""
    from unrendered import unrendered_figures

    with unrendered_figures():
        yield


@pytest.fixture
def short_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """The built-in model reads 50 answers, not 2000: encoding them takes longer than a tiny run."""
    from functools import partial

    from dyn_probe.train import start, warmup

    monkeypatch.setattr(start, "reading_pairs", partial(warmup.reading_pairs, count=50))


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trace]:
    """The kinds of run of ``figure_runs``, by name."""
    from figure_runs import make_traces

    return make_traces(tmp_path_factory.mktemp("runs"))
