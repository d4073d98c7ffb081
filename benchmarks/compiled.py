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
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dyn_probe.engine.kernels import norm_kernel, pair_kernel

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
    "products, metric, two directions": {"directions": 2},
    "products, metric, two directions and the weight's gradient": {"directions": 2, "sum_up": True},
    "products, metric, two directions, 16 inputs": {"directions": 2, "narrow": 16},
}
"""What it is compiled for with a metric."""
DIVISIBLE = {"inputs", "grads", "partial", "live", "total", "metric", "along", "p", "q", "features"}
"""Arguments that are taken to be multiples of 16."""


def resources(architecture: int, dtype: str, variant: str) -> Resources:
    """Of a kernel for a compute capability (80 for 8.0), a type of activations, a row of ``VARIANTS`` or ``KNOWN``."""
    return used_by(pair_kernel_for(architecture, dtype, **(VARIANTS | KNOWN)[variant]))


def pair_kernel_for(architecture: int, dtype: str, narrow: int = 0, sum_up: bool = False, directions: int = 0) -> Any:
    """The kernel of pairs compiled for a GPU that need not be there; its ``asm`` has ``ptx`` and ``cubin``.

    Args:
        architecture: compute capability, 80 for 8.0.
        dtype: Triton's name of the activations' type.
        narrow: inputs of a narrow tile; 0 for the whole one.
        sum_up: whether the weight's gradient is made too.
        directions: how many; none of them, and no metric, if 0.
    """
    tile = tile_of(architecture, narrow, directions > 0)
    types = {"inputs": f"*{dtype}", "grads": f"*{dtype}", "live": "*i32"}
    types |= dict.fromkeys(("partial", "total", "metric", "along"), "*fp32")
    constants = {"BLOCK_P": tile.outputs, "BLOCK_Q": tile.inputs, "BLOCK_T": tile.positions}
    constants |= {"TOTAL": sum_up, "METRIC": directions > 0, "DIRECTIONS": directions}
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return compiled(pair_kernel.pair_kernel, architecture, types, constants, options)


def norm_kernel_for(architecture: int, dtype: str, features: int, layer: bool) -> Any:
    """The kernel for norms, likewise."""
    block = triton.next_power_of_2(features)
    types = {"inputs": f"*{dtype}", "grads": f"*{dtype}", "partial": "*fp32", "eps": "fp32"}
    constants = {"BLOCK": block, "AT_ONCE": max(1, norm_kernel.NUMBERS // block), "LAYER": layer}
    return compiled(norm_kernel.norm_kernel, architecture, types, constants, {"num_warps": 8})


def tile_of(architecture: int, narrow: int, known: bool) -> pair_kernel.Tile:
    """The kernel's tile."""
    tile = (pair_kernel.KNOWN_TILES if known else pair_kernel.TILES)[architecture]
    return pair_kernel.narrowed(tile, narrow) if narrow else tile


def compiled(
    kernel: Any, architecture: int, types: dict[str, str], constants: dict[str, Any], options: dict[str, int]
) -> Any:
    """A kernel compiled; arguments without a type are int32."""
    kinds = types | dict.fromkeys(constants, "constexpr")
    signature = {name: kinds.get(name, "i32") for name in kernel.arg_names}
    aligned = {(k,): [["tt.divisibility", 16]] for k, name in enumerate(kernel.arg_names) if name in DIVISIBLE}
    source = ASTSource(kernel, signature, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


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
    for architecture in pair_kernel.TILES:
        for dtype, variant in itertools.product(("bf16", "fp16"), (*VARIANTS, *KNOWN)):
            tile = tile_of(architecture, (VARIANTS | KNOWN)[variant].get("narrow", 0), variant in KNOWN)
            shape = f"{tile.outputs} × {tile.inputs} × {tile.positions} | {tile.warps}"
            lines.append(_line(architecture, dtype, variant, shape, resources(architecture, dtype, variant)))
        for layer, features in itertools.product((True, False), (768, 2048, 8192)):
            kind = f"{'LayerNorm' if layer else 'RMSNorm'}, {features} features"
            found = used_by(norm_kernel_for(architecture, "bf16", features, layer))
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
