"""The kinds of step that take turns in a cell: a table, a function that makes each."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cost import peers
from cost.training import Training
from dyn_probe import Probe
from dyn_probe.objectives import normalised_pulls

PULL = 0.05
"""DPO's pulls at a log-ratio of 0: β/2."""
EVERY = 10
"""Full Gram, the step taken apart, and the realised change at every so many steps: the reference loop's defaults."""


@dataclass(frozen=True)
class Kind:
    """One kind of step, made for one training.

    Args:
        step: does one.
        numbers: ``[3, B]`` norms of chosen and rejected and inner products that the last step gave, NaN where it gives
            none; None where it measures nothing.
        steps: how many follow each other before the others have their turn.
        facts: what is to be kept of it once all is measured.
    """

    step: Callable[[], object]
    numbers: Callable[[], Tensor] | None = None
    steps: int = 1
    facts: Callable[[], dict[str, Any]] = dict


def numbers_of(probe: Probe) -> Tensor:
    """``[3, B]`` of the rows of the probe's last step."""
    names = ("grad_norm_chosen", "grad_norm_rejected", "grad_inner")
    rows = [dict(row) for row in probe.fresh]
    return torch.tensor([[row[name] for row in rows] for name in names], dtype=torch.float64)


def plain(training: Training) -> Kind:
    """Nobody measures anything."""
    return Kind(lambda: training.step(lambda: training.loss(training.logps()).backward()))


def recorded(training: Training, one_pass: bool = False, **options: Any) -> Kind:
    """Every pair, by ``Probe``."""
    probe = Probe(training.model, certify=False, keep_rows=False, **{"layers": False, **options})

    def backward() -> None:
        with probe.step(training.number, training.batch.ids, learning_rate=1e-6):
            logps = training.logps()
            probe.pairs(logps)
            loss = training.loss(logps)
            (probe.one_pass if one_pass else torch.Tensor.backward)(loss)

    return Kind(lambda: training.step(backward), lambda: numbers_of(probe))


def along_the_step(training: Training, **options: Any) -> Kind:
    """Every pair, and the optimizer's own step."""
    return recorded(training, optimizer=training.optimizer, **options)


def normalised(training: Training) -> Kind:
    """The pairwise-normalised update: norms first, then the weighted gradient, of one backward."""
    probe = Probe(training.model, certify=False, keep_rows=False, layers=False)

    def backward() -> None:
        with probe.step(training.number, training.batch.ids, learning_rate=1e-6, measure=True):
            logps = training.logps()
            pull = torch.full((training.batch.pairs,), PULL, device=logps.device)
            new = normalised_pulls(pull, pull, *(norm.to(pull) for norm in probe.measure(logps)))
            probe.backward(torch.cat([-new.chosen, new.rejected]) / training.batch.pairs)

    return Kind(lambda: training.step(backward), lambda: numbers_of(probe))


def by_default(training: Training) -> Kind:
    """A run on end with the reference loop's defaults for another model than the built-in one, written to a trace: on
    a GPU by budget, on a CPU every step, both with the full Gram, the step taken apart and the realised change at every
    tenth step."""
    on_gpu = training.device.startswith("cuda")
    folder = tempfile.TemporaryDirectory()
    probe = Probe(
        training.model, Path(folder.name) / "run", optimizer=training.optimizer, certify=False, keep_rows=False,
        every="auto" if on_gpu else 1, gram_every=EVERY, metric_every=EVERY,
    )  # fmt: skip
    number = 0

    def backward() -> None:
        with probe.step(number, training.batch.ids, learning_rate=1e-6, responses=training.batch.response_mask):
            logps = training.logps()
            probe.pairs(logps, lengths=training.batch.lengths)
            training.loss(logps).backward()

    def step() -> None:
        nonlocal number
        training.step(backward)
        if probe.records(number) and number % EVERY == 0:
            probe.after_update(training.batch)
        number += 1

    def facts() -> dict[str, Any]:
        probe.close()
        found = getattr(probe.schedule, "facts", None)
        folder.cleanup()
        return {"steps": number, "recorded": number if found is None else found["recorded"]}

    return Kind(step, lambda: numbers_of(probe), 48 if on_gpu else EVERY, facts)


def two_backwards(training: Training) -> Kind:
    """Every response's gradient in a backward pass of its own, compared in the type it comes in; then the step."""
    found = torch.empty(3, training.batch.pairs, dtype=torch.float64)

    def backward() -> None:
        logps, pairs = training.logps(), training.batch.pairs
        answers = []
        for pair in range(pairs):
            chosen, rejected = (
                torch.cat([
                    g.flatten() for g in torch.autograd.grad(logps[i], training.trained, retain_graph=True)
                ]) for i in (pair, pair + pairs)
            )  # fmt: skip
            answers.append(torch.stack([chosen.norm(), rejected.norm(), chosen @ rejected]))
        training.loss(logps).backward()
        found.copy_(torch.stack(answers, 1))

    return Kind(lambda: training.step(backward), lambda: found)


KINDS: dict[str, tuple[Callable[[Training], Kind], str]] = {
    "plain": (plain, "forward, backward, AdamW"),
    "recorded": (recorded, "every pair's norms and inner product; training bitwise the same"),
    "one pass": (
        lambda t: recorded(t, one_pass=True),
        "the same, the weights' gradients out of the recorder's own pass",
    ),
    "with layers": (lambda t: recorded(t, layers=True), "every pair's numbers per layer beside them"),
    "with full Gram": (lambda t: recorded(t, gram_every=1), "the Gram of all rows at every step"),
    "with update": (lambda t: along_the_step(t, update=True), "the change along the optimizer's step, at every step"),
    "previous metric": (
        lambda t: along_the_step(t, metric="previous", one_pass=True),
        "one pass, with own parts, past and decay of every push in the last step's metric",
    ),
    "taken apart": (lambda t: along_the_step(t, metric_every=1), "the step taken apart into pushes, at every step"),
    "default": (by_default, "a run with the reference loop's defaults: its mean step, written to a trace"),
    "normalised": (normalised, "the pairwise-normalised update (norms come before the weighted gradient)"),
    "two backwards per pair": (
        two_backwards,
        "the same numbers the plain way, then the step (its error is that of torch's float32 norm and dot of 124 M "
        "numbers)",
    ),
    **{name: (lambda t, make=row.make: Kind(*make(t)), row.leaves_out) for name, row in peers.PEERS.items()},  # type: ignore[misc]
}
"""Kind → what makes it, and what it measures (of peers: what they leave out)."""
