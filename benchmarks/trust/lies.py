"""Numbers that are not what they seem: planted in a recorded training, and looked for in what is said of it (alarms in
the first lines of its summary, other terms of the loss in a statement, separate backwards in their column).

And half precision, whose measured errors are compared with gradients by plain autograd in float64.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from random import Random
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyn_probe import PairBatch, Probe, load_trace, sequence_logps
from dyn_probe.report.summary import summary_lines
from dyn_probe.report.verdicts import status
from dyn_probe.trace.reader import Trace
from trust.soak import PAIRS, Tiny, batch_of
from trust.tally import Tally

STEPS = 6
FIRST = 6
"""Lines of a summary that are read before anything else."""


@dataclass
class Plan:
    """What goes wrong, and when."""

    at: int
    spoil: Callable[[Tiny, torch.optim.AdamW], object] = lambda model, optimizer: None
    scales: tuple[float, ...] = (1.0,) * PAIRS
    """Weight of each pair in the loss."""
    beyond: float = 0.0
    """Weight of a term of the loss beside the pairs."""
    around: Callable[[], AbstractContextManager[None]] = nullcontext
    """What holds during the whole training."""
    metric: bool = True
    """Whether the optimizer's steps are taken apart."""


def trained(folder: Path, plan: Plan, seed: int) -> Trace:
    """A short training, with the fault from its step on."""
    torch.manual_seed(seed)
    model = Tiny()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scales = torch.tensor(plan.scales)
    with warnings.catch_warnings(), plan.around():
        warnings.simplefilter("ignore")
        with Probe(
            model, folder, optimizer=optimizer, gram_every=1, metric_every=int(plan.metric), strict=False
        ) as probe:
            for step in range(STEPS):
                if step == plan.at:
                    plan.spoil(model, optimizer)
                batch = batch_of(step)
                optimizer.zero_grad()
                with probe.step(step, batch.ids):
                    logps = sequence_logps(model, batch)
                    probe.pairs(logps)
                    loss = (scales * -F.logsigmoid(0.1 * (logps[:PAIRS] - logps[PAIRS:]))).mean()
                    (loss + plan.beyond * model.head.weight.square().sum()).backward()
                optimizer.step()
        return load_trace(folder)


def _weight_becomes(value: float) -> Callable[[Tiny, torch.optim.AdamW], object]:
    return lambda model, optimizer: model.head.weight.data[0, 0].fill_(value)


def _gradient_is_replaced(model: Tiny, optimizer: torch.optim.AdamW) -> None:
    """What autograd has accumulated is scaled before the optimizer sees it."""

    def scale(parameter: Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad *= 1.5

    model.head.weight.register_post_accumulate_grad_hook(scale)


@contextmanager
def _another_rule() -> Iterator[None]:
    """AdamW as it might be in another version of torch: its rate is a tenth higher than its groups say."""
    module = import_module("torch.optim.adam")
    rule = module.adam
    with patch.object(module, "adam", lambda *given, lr, **more: rule(*given, lr=1.1 * lr, **more)):
        yield


def _alarm(words: str) -> Callable[[Trace], bool]:
    return lambda trace: any(words in line for line in summary_lines(trace)[:FIRST])


def _calm(trace: Trace) -> bool:
    """No alarm, both laws checked at every step, all rows read off the training's own backward."""
    steps, rows = trace.steps, trace.pairs
    laws = steps["law1_error"].notna().all() and steps["law7_error"].notna().all()
    quiet = not any(_alarm(words)(trace) for words in ("disagrees", "not finite", "not to be trusted"))
    return bool(laws and quiet and not rows["separate_backward"].any())


def _beyond(trace: Trace) -> bool:
    """The share of other terms is said, and no alarm is made of it."""
    said = any("is no sum of the recorded pairs" in one.sentence for one in status.law1(trace))
    return said and not _alarm("disagrees")(trace)


def _separate(trace: Trace) -> bool:
    """A pair without weight in the loss has a gradient of its own all the same, and its row says where from."""
    rows = trace.pairs.sort_values(["step", "pair_id"])
    norms = rows[["grad_norm_chosen", "grad_norm_rejected"]].to_numpy()
    idle = (rows["pull_chosen"] == 0).to_numpy()
    said = rows["separate_backward"].to_numpy(dtype=bool)
    return bool(idle.any() and (said >= idle).all() and np.isfinite(norms).all() and (norms > 0).all())


PLANTED: dict[str, tuple[Plan, Callable[[Trace], bool]]] = {
    "nothing is wrong": (Plan(-1), _calm),
    "a weight becomes NaN": (Plan(3, _weight_becomes(float("nan"))), _alarm("not finite")),
    "a weight becomes infinite": (Plan(3, _weight_becomes(float("inf"))), _alarm("not finite")),
    "a gradient that is changed after the backward": (Plan(0, _gradient_is_replaced), _beyond),
    "the same, where no step is taken apart": (
        Plan(0, _gradient_is_replaced, metric=False),
        _alarm("disagrees with the gradient"),
    ),
    "an optimizer with another rule than its name says": (Plan(-1, around=_another_rule), _alarm("not to be trusted")),
    "a loss with terms beyond the pairs": (Plan(-1, beyond=0.5), _beyond),
    "a pair without weight in the loss": (Plan(-1, scales=(0.0, *(1.0,) * (PAIRS - 1))), _separate),
}
"""What is planted → the training, and whether its trace says so."""


def try_lies(folder: Path, count: int, seed: int) -> Tally:
    """Each of PLANTED so many times, with other models and data."""
    tally = Tally("wrong numbers planted in a training", zero={"not said": 0, "tracebacks": 0})
    for name, (plan, said) in PLANTED.items():
        failed = 0
        for case in range(count):
            try:
                good = said(trained(folder / f"{name} {case}".replace(" ", "-"), plan, seed + case))
            except Exception as error:
                tally.fail("tracebacks", f"{name}: {error!r}")
                good = False
            else:
                if not good:
                    tally.fail("not said", f"{name}, case {case}")
            failed += not good
        tally.parts[name] = {"tried": count, "failed": failed}
        tally.tried += count
    return tally


KINDS = {
    "bfloat16 weights": (torch.bfloat16, None),
    "bfloat16 autocast": (torch.float32, torch.bfloat16),
    "float16 autocast": (torch.float32, torch.float16),
}
NUMBERS = ("grad_norm_chosen", "grad_norm_rejected", "grad_inner", "logp_chosen", "logp_rejected")
SAME = 3e-6
"""Difference of a measured error from the one computed here, above which the two disagree (rows are float32)."""


def plain_numbers(model: nn.Module, batch: PairBatch, pair: int) -> np.ndarray:
    """``‖g_w‖, ‖g_l‖, ⟨g_w, g_l⟩, a, b`` of a pair, by plain autograd on a copy in float64."""
    twin = copy.deepcopy(model).double()
    logps = sequence_logps(twin, batch.select([pair]))
    rows = [torch.cat([g.flatten() for g in torch.autograd.grad(one, list(twin.parameters()), retain_graph=True)])
            for one in logps]  # fmt: skip
    return np.array([*(float(row.norm()) for row in rows), float(rows[0] @ rows[1]), *logps.tolist()])


def errors_of(recorded: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """Errors of a pair's numbers, each in its unit: as the columns of `steps` of these names."""
    scale = exact[0] * exact[1]
    return {
        "norm_error": float(np.abs(recorded[:2] / exact[:2] - 1).max()),
        "inner_error": float(abs(recorded[2] - exact[2]) / scale),
        "cosine_error": float(abs(recorded[2] / (recorded[0] * recorded[1]) - exact[2] / scale)),
        "logp_error": float(np.abs(recorded[3:] - exact[3:]).max()),
    }


def try_precision(folder: Path, count: int, seed: int) -> Tally:
    """So many models of every kind of half precision: the measured errors against those by plain autograd; and, beside,
    how far the other pairs of the step are off."""
    tally = Tally("half precision against float64", zero={"errors mismeasured": 0, "tracebacks": 0})
    random, beyond = Random(seed), Counter[str]()
    for kind, (weights, autocast) in KINDS.items():
        measured, failed = [], 0
        for case in range(count):
            torch.manual_seed(random.randrange(2**31))
            model, batch = Tiny().to(weights), batch_of(random.randrange(97))
            path = folder / f"{kind} {case}".replace(" ", "-")
            trace = _half_step(model, batch, autocast, path)
            rows = trace.pairs.set_index("pair_id").loc[list(batch.ids)][list(NUMBERS)].to_numpy(dtype=float)
            first, *others = (errors_of(row, plain_numbers(model, batch, pair)) for pair, row in enumerate(rows))
            said = trace.steps.iloc[0]
            if any(not abs(float(said[name]) - error) < SAME for name, error in first.items()):
                tally.fail("errors mismeasured", f"{kind}: {dict(said[list(first)])} where they are {first}")
                failed += 1
            measured.append(first["cosine_error"])
            beyond["numbers"] += sum(map(len, others))
            beyond["over"] += sum(one[name] > 3 * float(said[name]) for one in others for name in one)
        tally.parts[kind] = {"tried": count, "failed": failed}
        tally.facts[f"cosine, {kind}"] = f"± {np.median(measured):.1e} (worst {max(measured):.1e})"
        tally.tried += count
    tally.facts["numbers of other pairs that are off by over three times the measured error"] = (
        f"{beyond['over']} of {beyond['numbers']}"
    )
    return tally


def _half_step(model: nn.Module, batch: PairBatch, autocast: torch.dtype | None, path: Path) -> Trace:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Probe(model, path) as probe:
            with probe.step(0, batch.ids):
                with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
                    logps = sequence_logps(model, batch)
                probe.pairs(logps)
                (-F.logsigmoid(0.1 * (logps[:PAIRS] - logps[PAIRS:]))).mean().backward()
            probe.measure_precision(0, batch)
        return load_trace(path)
