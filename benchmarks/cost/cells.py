"""A cell of the benchmark: one model, one size, the kinds of step that take turns in it; and which are the default."""

from __future__ import annotations

from dataclasses import dataclass

RECORDED = ("recorded", "one pass")
EVERYTHING = (*RECORDED, "with layers", "with full Gram", "default", "normalised", "two backwards per pair")
PEERS = ("TorchJD autogram", "Opacus ghost norms", "torch.func vmap")


@dataclass(frozen=True)
class Cell:
    """One model (``shapes.SHAPES``), what is trained, tokens of a row, pairs, precision; the kinds of step."""

    shape: str
    trained: str
    length: int
    pairs: int
    precision: str
    kinds: tuple[str, ...] = RECORDED

    @property
    def name(self) -> str:
        """What it is kept by."""
        return f"{self.shape}:{self.trained}:{self.length}:{self.pairs}:{self.precision}"


@dataclass(frozen=True)
class Loops:
    """The reference loop and TRL's trainer, on pairs of so many tokens (``loops``)."""

    shape: str
    length: int
    pairs: int
    kinds: tuple[str, ...] = ("TRL", "TRL, every pair", "reference loop", "reference loop, every pair")

    @property
    def name(self) -> str:
        """What it is kept by."""
        return f"loops:{self.shape}:{self.length}:{self.pairs}:float32"


@dataclass(frozen=True)
class Maps:
    """A pair's token map: so many response tokens on either side, behind a prompt (``maps``)."""

    shape: str
    prompt: int
    tokens: int
    precision: str = "float32"

    @property
    def name(self) -> str:
        """What it is kept by."""
        return f"maps:{self.shape}:{self.prompt}:{self.tokens}:{self.precision}"


AnyCell = Cell | Loops | Maps


def _cpu() -> tuple[AnyCell, ...]:
    def small(length: int, *kinds: str, trained: str = "all", pairs: int = 4, shape: str = "gpt2-small") -> Cell:
        return Cell(shape, trained, length, pairs, "float32", kinds or RECORDED)

    return (
        small(128, *EVERYTHING, "previous metric"),
        small(128, trained="lora"),
        small(512),
        small(1024),
        small(64, "recorded", *PEERS, "two backwards per pair", shape="gpt2-small-untied"),
        Loops("gpt2-small", 64, 2),
        small(64, *RECORDED, "with update", "taken apart"),
        *(small(64, pairs=pairs) for pairs in (2, 8)),
        small(256),
        *(small(64, shape=f"llama-{width}") for width in (256, 512, 1024)),
        Maps("llama-512", 32, 16),
    )


def _cuda() -> tuple[AnyCell, ...]:
    def of(shape: str, size: tuple[int, int], *kinds: str, trained: str = "all") -> Cell:
        return Cell(shape, trained, *size, "bfloat16", kinds or RECORDED)

    sizes = ((128, 4), (512, 8), (1024, 8))
    large, adapters = (*RECORDED, "previous metric", "default"), ("recorded",)
    return (
        of("llama-3.2-1b", sizes[1], *large, "with full Gram", "normalised"),
        *(of("llama-3.2-1b", size, *large) for size in (sizes[0], sizes[2])),
        *(of("gpt2-small", size) for size in sizes),
        *(of(shape, size, *adapters, trained="lora") for shape in ("llama-3.2-1b", "gpt2-small") for size in sizes),
        of("gpt2-small-untied", sizes[0], "recorded", *PEERS, "two backwards per pair"),
        Loops("gpt2-small", 256, 4),
        of("qwen2.5-0.5b", sizes[1]),
        *(of("gpt2-small", size) for size in ((64, 8), (256, 8), (2048, 8), (512, 2), (512, 4))),
        *(of(f"llama-{width}", sizes[1]) for width in (512, 1024, 2048)),
        Maps("gpt2-small", 64, 64),
    )


DEFAULT: dict[str, tuple[AnyCell, ...]] = {"cpu": _cpu(), "cuda": _cuda()}
"""Kind of device → cells, the most telling first: what stands in the table of ratios comes before what shows growth."""

GOALS: dict[tuple[str, str], float] = {
    **{
        (f"gpt2-small:all:{length}:4:float32", "one pass"): goal
        for length, goal in ((128, 1.05), (512, 1.1), (1024, 1.1))
    },
    ("gpt2-small:all:512:4:float32", "recorded"): 1.25,
    ("gpt2-small:all:1024:4:float32", "recorded"): 1.3,
    **{("gpt2-small:lora:128:4:float32", kind): 1.03 for kind in RECORDED},
    **{
        (f"{shape}:{trained}:{size}:bfloat16", kind): goal
        for (shape, trained, kind), goals in {
            ("llama-3.2-1b", "all", "one pass"): (1.35, 1.12, 1.1),
            ("llama-3.2-1b", "all", "recorded"): (1.4, 1.35, 1.4),
            ("llama-3.2-1b", "all", "default"): (1.05, 1.05, 1.05),
            ("llama-3.2-1b", "all", "previous metric"): (1.5, 1.2, 1.2),
            ("gpt2-small", "all", "one pass"): (1.6, 1.35, 1.25),
            ("llama-3.2-1b", "lora", "recorded"): (1.3, 1.2, 1.15),
            ("gpt2-small", "lora", "recorded"): (1.3, 1.2, 1.15),
        }.items()
        for size, goal in zip(("128:4", "512:8", "1024:8"), goals, strict=True)
    },
    ("llama-3.2-1b:all:512:8:bfloat16", "normalised"): 1.35,
}
"""Cell and kind → the ratio to the plain step that it is to stay under."""
