"""The fused kernels: by Triton's interpreter against float64, and compiled for GPUs that are not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import interpreted_kernel
import pytest
import torch

pytest.importorskip("triton")

import compiled

from dyn_probe.engine.kernels import norm_kernel, pair_kernel

INSTRUCTIONS = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
"""What multiplies on the tensor cores of each architecture, as PTX spells it."""


def test_the_kernels_agree_with_float64():
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    run = subprocess.run(
        [sys.executable, interpreted_kernel.__file__], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    types = len(interpreted_kernel.TYPES)
    assert len(found["pairs"]) == len(interpreted_kernel.CASES) * types + 2
    assert len(found["known"]) == len(interpreted_kernel.CASES) * 3
    assert len(found["norms"]) == len(interpreted_kernel.NORMS) * types
    assert all(error <= 1e-6 for part in found.values() for error in part.values()), found


def test_a_cpu_does_without_them():
    rows = torch.randn(4, 3, 8).half()
    assert pair_kernel.pair_products(rows, rows, pytest.fail) is None
    assert norm_kernel.norm_sums(rows, rows, True, 1e-5, pytest.fail) is None
    assert pair_kernel.pair_products(rows, rows, pytest.fail, directions=[rows[0]]) is None


def test_columns_of_the_kernel_with_a_metric_come_apart_again():
    plain, weighed, along = torch.randn(3, 2, 2), torch.randn(3, 2, 2), torch.randn(6, 2).double()
    plain, weighed = plain + plain.mT, weighed + weighed.mT
    for metric in (weighed, None):
        found = pair_kernel.parts(pair_kernel.columns(plain, metric, along), metric is not None)
        wanted = (plain, plain if metric is None else metric, along)
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("architecture", pair_kernel.TILES)
@pytest.mark.parametrize("variant", [*compiled.VARIANTS, *compiled.KNOWN])
def test_compiled_kernels_spill_nothing_and_use_tensor_cores(architecture, variant):
    found = compiled.resources(architecture, "bf16", variant)
    assert found.spilled == 0
    assert list(found.instructions) == [INSTRUCTIONS[architecture]]


@pytest.mark.parametrize("tiles", [pair_kernel.TILES, pair_kernel.KNOWN_TILES])
@pytest.mark.parametrize(("capability", "row"), [((7, 5), 80), ((8, 9), 80), ((9, 0), 90), ((12, 0), 100)])
def test_a_device_takes_the_tile_of_the_newest_architecture_that_is_not_newer(capability, row, tiles, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert pair_kernel.tile_for(torch.device("cuda"), tiles) is tiles[row]
    assert pair_kernel.tile_for(torch.device("cpu"), tiles) is pair_kernel.INTERPRETED


def test_a_spill_would_be_seen(monkeypatch):
    """Four warps are too few for the large tile."""
    monkeypatch.setitem(pair_kernel.TILES, 90, pair_kernel.Tile(128, 128, 64, 4, 3))
    assert compiled.resources(90, "bf16", "products").spilled > 0


@pytest.mark.parametrize("architecture", pair_kernel.TILES)
def test_the_kernel_for_norms_spills_nothing(architecture):
    for layer, features in ((True, 768), (False, 8192)):
        assert compiled.used_by(compiled.norm_kernel_for(architecture, "bf16", features, layer)).spilled == 0
