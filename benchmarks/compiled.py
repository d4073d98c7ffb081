"""The fused kernels compiled for GPUs that need not be there: registers, spilled bytes, tensor-core instructions.

python benchmarks/compiled.py [--out benchmarks/results/compiled.md]
"""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton

from dyn_probe.engine.kernels import known_kernel, norm_kernel, pair_kernel

TENSOR_CORES = ("mma.sync", "wgmma.mma_async", "tcgen05.mma")
"""What multiplies on tensor cores, by its names in PTX."""


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes: registers of a thread, spilled bytes, tensor-core instructions by name."""

    registers: int
    spilled: int
    instructions: dict[str, int]


VARIANTS: dict[str, dict[str, Any]] = {
    "products": {},
    "products and the weight's gradient": {"sum_up": True},
    "products, 16 inputs": {"narrow": 16},
    "products, 64 inputs": {"narrow": 64},
}
"""What the kernel of pairs is compiled for."""
KNOWN: dict[str, dict[str, Any]] = {
    "products, metric, two directions": {},
    "products, metric, two directions and the weight's gradient": {"sum_up": True},
    "products, metric, two directions, 16 inputs": {"narrow": 16},
}
"""What the kernel with a metric is compiled for."""


def resources(architecture: int, dtype: str, variant: str) -> Resources:
    """Of a kernel for a compute capability (80 for 8.0), a type of activations, a row of ``VARIANTS`` or ``KNOWN``."""
    if variant in KNOWN:
        return used_by(known_kernel.compiled(architecture, dtype, **KNOWN[variant]))
    return used_by(pair_kernel.compiled(architecture, dtype, **VARIANTS[variant]))


def used_by(kernel: Any) -> Resources:
    """What a compiled kernel takes."""
    tool = next(Path(triton.__file__).parent.rglob("cuobjdump"))
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        usage = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    found = {name: len(re.findall(re.escape(name), kernel.asm["ptx"])) for name in TENSOR_CORES}
    registers, stack = (max(int(n) for n in re.findall(rf"{key}:(\d+)", usage)) for key in ("REG", "STACK"))
    return Resources(registers, stack, {name: n for name, n in found.items() if n})


def table() -> str:
    """All architectures and types, as Markdown."""
    lines = [
        "| GPU | activations | kernel | tile | warps | registers | spilled bytes | tensor-core instructions |",
        "|---" * 8 + "|",
    ]
    for architecture, whole in pair_kernel.TILES.items():
        for dtype, variant in itertools.product(("bf16", "fp16"), (*VARIANTS, *KNOWN)):
            narrow = (VARIANTS | KNOWN)[variant].get("narrow")
            tile = known_kernel.TILES[architecture] if variant in KNOWN else whole
            tile = pair_kernel.narrowed(tile, narrow) if narrow else tile
            shape = f"{tile.outputs} × {tile.inputs} × {tile.positions} | {tile.warps}"
            lines.append(_line(architecture, dtype, variant, shape, resources(architecture, dtype, variant)))
        for layer, features in itertools.product((True, False), (768, 2048, 8192)):
            kind = f"{'LayerNorm' if layer else 'RMSNorm'}, {features} features"
            found = used_by(norm_kernel.compiled(architecture, "bf16", features, layer))
            lines.append(_line(architecture, "bf16", kind, "| 8", found))
    return "\n".join(lines)


def _line(architecture: int, dtype: str, variant: str, shape: str, found: Resources) -> str:
    named = ", ".join(f"{n} `{name}`" for name, n in found.instructions.items()) or "none"
    return f"| sm_{architecture} | {dtype} | {variant} | {shape} | {found.registers} | {found.spilled} | {named} |"


def main() -> None:
    """Print the table, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    options, found = parser.parse_args(), table()
    print(found)
    if options.out is not None:
        options.out.write_text(
            "# The fused kernels, compiled\n\n```console\npython benchmarks/compiled.py\n```\n\n"
            f"With Triton {triton.__version__}, for GPUs that were not there; tile is outputs × inputs × positions. A "
            "test fails on a spilled byte, or where no tensor-core instruction is left in a kernel of pairs.\n\n"
            f"{found}\n"
        )


if __name__ == "__main__":
    main()
