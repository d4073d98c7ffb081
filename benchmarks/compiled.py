"""The fused kernel compiled for GPUs that need not be there: registers, spilled bytes, tensor-core instructions.

python benchmarks/compiled.py [--out benchmarks/results/compiled.md]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton

from dyn_probe.engine import pair_kernel

TENSOR_CORES = ("mma.sync", "wgmma.mma_async", "tcgen05.mma")
"""What multiplies on tensor cores, by its names in PTX."""


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes: registers of a thread, spilled bytes, tensor-core instructions by name."""

    registers: int
    spilled: int
    instructions: dict[str, int]


def resources(architecture: int, dtype: str) -> Resources:
    """Of the kernel for a compute capability (80 for 8.0) and a type of activations."""
    kernel = pair_kernel.compiled(architecture, dtype)
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
        "| GPU | activations | tile | warps | registers | spilled bytes | tensor-core instructions |",
        "|---" * 7 + "|",
    ]
    for architecture, tile in pair_kernel.TILES.items():
        for dtype in ("bf16", "fp16"):
            found = resources(architecture, dtype)
            named = ", ".join(f"{n} `{name}`" for name, n in found.instructions.items()) or "none"
            lines.append(
                f"| sm_{architecture} | {dtype} | {tile.outputs} × {tile.inputs} × {tile.positions} | {tile.warps} | "
                f"{found.registers} | {found.spilled} | {named} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Print the table, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    options, found = parser.parse_args(), table()
    print(found)
    if options.out is not None:
        options.out.write_text(
            "# The fused kernel, compiled\n\n```console\npython benchmarks/compiled.py\n```\n\n"
            f"With Triton {triton.__version__}, for GPUs that were not there; tile is outputs × inputs × positions. A "
            "test fails on a spilled byte, or where no tensor-core instruction is left. How fast the kernel is on a "
            f"GPU was not measured.\n\n{found}\n"
        )


if __name__ == "__main__":
    main()
