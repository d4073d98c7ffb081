"""The fused kernel: by Triton's interpreter against float64, and compiled for GPUs that are not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import interpreted_kernel
import pytest
import torch
from reference.pair_blocks import pair_blocks

pytest.importorskip("triton")

import compiled

from dyn_probe.engine import pair_kernel

INSTRUCTIONS = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
"""What multiplies on the tensor cores of each architecture, as PTX spells it."""


def test_the_kernel_gives_the_products_of_pairs():
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    run = subprocess.run(
        [sys.executable, interpreted_kernel.__file__], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert len(found) == len(interpreted_kernel.CASES) * len(interpreted_kernel.TYPES) + 1
    assert all(error <= 1e-6 for error in found.values()), found


def test_a_kernel_that_differs_is_not_used():
    wanted = pair_blocks(torch.randn(4, 6, 5), torch.randn(4, 6, 7))
    assert pair_kernel.agrees(lambda: wanted * (1 + 1e-6), wanted)
    with pytest.warns(UserWarning, match=r"differs from plain blocks by 1.0e-02"):
        assert not pair_kernel.agrees(lambda: wanted * 1.01, wanted)
    with pytest.warns(UserWarning, match="differs from plain blocks by inf"):
        assert not pair_kernel.agrees(lambda: wanted * float("nan"), wanted)


def test_a_kernel_that_does_not_run_is_not_used():
    def fails():
        raise RuntimeError("no such architecture\nand more")

    with pytest.warns(UserWarning, match="RuntimeError: no such architecture"):
        assert not pair_kernel.agrees(fails, torch.eye(2)[None])


def test_a_cpu_does_without_it():
    rows = torch.randn(4, 3, 8).half()
    assert pair_kernel.pair_products(rows, rows, pytest.fail) is None


@pytest.mark.parametrize("architecture", pair_kernel.TILES)
def test_compiled_kernels_spill_nothing_and_use_tensor_cores(architecture):
    found = compiled.resources(architecture, "bf16")
    assert found.spilled == 0
    assert list(found.instructions) == [INSTRUCTIONS[architecture]]


def test_a_spill_would_be_seen(monkeypatch):
    """Four warps are too few for the large tile."""
    monkeypatch.setitem(pair_kernel.TILES, 90, pair_kernel.Tile(128, 128, 64, 4, 3))
    assert compiled.resources(90, "bf16").spilled > 0


@pytest.fixture
def undecided(monkeypatch):
    """No device has been tried."""
    monkeypatch.setattr(pair_kernel, "_USABLE", {})
    return torch.device("cpu"), torch.float16


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_decides_nothing(undecided, broken):
    """The first steps of float16 with a loss scale overflow; the kernel must be tried again after them."""
    wanted = pair_blocks(torch.randn(4, 6, 5), torch.randn(4, 6, 7))
    overflowed, calls = wanted.clone(), []
    overflowed[1] = broken
    found = pair_kernel.compared_once(undecided, lambda: calls.append(1) or overflowed, lambda: overflowed)
    assert torch.equal(found, overflowed) or found.isnan().any()
    assert not calls and not pair_kernel._USABLE
    fused = wanted * (1 + 1e-6)
    assert pair_kernel.compared_once(undecided, lambda: fused, lambda: wanted) is fused
    assert pair_kernel.compared_once(undecided, lambda: fused, pytest.fail) is fused


def test_a_kernel_that_differed_once_is_not_asked_again(undecided):
    wanted = pair_blocks(torch.randn(4, 6, 5), torch.randn(4, 6, 7))
    with pytest.warns(UserWarning, match="differs from plain blocks"):
        assert pair_kernel.compared_once(undecided, lambda: wanted * 2, lambda: wanted) is None
    assert pair_kernel.compared_once(undecided, pytest.fail, pytest.fail) is None
