"""The run walked again: pulls of another method on the recorded kernels, step by step.

First order, and more than once around: the pulls follow the log-probabilities of the walk. Assumed is that

- a unit of pull, averaged over the momentum, moves responses as it did at the same point of the recorded path; with
  another learning rate the path is the same, walked faster or slower;
- an adaptive optimizer divides by the running size of the gradient, so a common factor on all pulls changes nothing;
- a response that becomes more certain than in the recorded run is moved less, and not at all once it is certain
  (``_softened``). Its one constant was fitted to runs of the built-in model (docs/fix-table.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dyn_probe.report.frames import Floats
from dyn_probe.report.replay.kernels import MOMENTUM, Kernels
from dyn_probe.report.replay.pull_forms import FORMS, PairState, Pulls, likelihood_pull
from dyn_probe.report.replay.shape_forms import SHAPES, normalised

CERTAIN = 0.1
"""Where pushes begin to fade: at this share of the recorded distance from certainty they are about half."""
SECOND_MOMENT = 0.999
"""Decay of the squared gradient by which adaptive optimizers divide."""
ADAPTIVE = ("adam", "adamw", "nadam", "rmsprop", "adagrad", "adafactor")
TINY = 1e-12
FINE, PARTS = 0.01, 256
"""A step is walked in parts of at most FINE nats/token, PARTS of them at most: where pushes nearly cancel, a response
that is moved past certain in one stride would leave the other without its counterweight."""


@dataclass(frozen=True)
class Method:
    """How a run is trained: objective (None: the pulls as recorded), its hyper-parameters, shapings with their options,
    and its learning rate and length relative to the recorded run's."""

    objective: str | None
    hyper: Mapping[str, Any] = field(default_factory=dict)
    shapings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rate: float = 1.0
    length: float = 1.0


@dataclass(frozen=True)
class Walk:
    """Where a walk ends: change per token of chosen and rejected over the run, [R] each (nats/token); `balance`: mean
    d_w/d_l of its steps relative to the recorded one, less 1."""

    chosen: Floats
    rejected: Floats
    balance: Floats


def pulls_of(method: Method, known: Kernels, state: PairState, position: int) -> Pulls:
    """Pulls of the pairs [R, pairs] in this state; with the pulls as recorded, of the mean pair [R, 1]."""
    if method.objective is None:
        d_w, d_l = (known.pull[q][:, position, None] for q in "wl")
    else:
        for name, options in method.shapings.items():
            if name in SHAPES:
                state = SHAPES[name](method.objective, state, options)
        d_w, d_l = FORMS[method.objective](state, method.hyper)
    if "pairwise-normalised" in method.shapings:
        d_w, d_l = normalised((d_w, d_l), *(1 / known.norm[q][:, position, None] for q in "wl"))
    weight = method.hyper.get("nll", 0.0)
    return (d_w + likelihood_pull(state, method.hyper).mean() if weight and method.objective is None else
            d_w + likelihood_pull(state, method.hyper) if weight else d_w), d_l  # fmt: skip


def walk(known: Kernels, method: Method, adaptive: bool = True) -> Walk:
    """Walk the run with another method's pulls; without `adaptive` the step scales with the pulls."""
    positions = known.pull["w"].shape[1]
    state, keep, slow = _begin(known), MOMENTUM**known.stride, SECOND_MOMENT**known.stride
    recorded = {q: _smoothed(known.pull[q], keep) for q in "wl"}
    moved = {q: np.zeros(len(known.picks)) for q in "wl"}
    weight, size, size_then, tau, balance = 0.0, TINY, TINY, 0.0, np.zeros(len(known.picks))
    strides = max(1, round(method.length * positions))
    for _ in range(strides):
        at = min(int(tau), positions - 1)
        state = replace(state, progress=min(1.0, tau / positions))
        now = dict(zip("wl", map(known_mean(known.picks), pulls_of(method, known, state, at)), strict=True))
        weight = keep * weight + 1 - keep
        moved = {q: keep * moved[q] + (1 - keep) * now[q] for q in "wl"}
        soft = _soft(known, state, at)
        size = slow * size + np.maximum(_energy(known, recorded, at, now, soft), TINY)
        then = {q: known.pull[q][:, at] for q in "wl"}
        size_then = slow * size_then + np.maximum(_energy(known, recorded, at, then, dict.fromkeys("wl", 1.0)), TINY)
        speed = np.sqrt(size_then / size) if adaptive else 1.0
        share = {q: speed * moved[q] / weight / recorded[q][:, at] for q in "wl"}
        balance = balance + (_over(now["w"], now["l"]) / _over(then["w"], then["l"]) - 1) / strides
        state = _stride(known, state, share, at, method.rate * known.stride)
        tau += method.rate
    start = known.state
    chosen, rejected = (
        (known.picks * (end - begin) / n).sum(1)
        for end, begin, n in ((state.a, start.a, start.n_w), (state.b, start.b, start.n_l))
    )
    return Walk(chosen, rejected, balance)


def _stride(known: Kernels, state: PairState, share: Mapping[str, Floats], at: int, far: float) -> PairState:
    """Move the pairs by `far` steps of the pushes at this position, in parts: how far a response is from certain, which
    weakens its gradient, is asked again for each."""
    left = far
    while left > 0:
        soft = _soft(known, state, at)
        push = {
            s: sum(known.others[s, q][:, at] * soft[s] * soft[q] * share[q] for q in "wl") + known.rest[s][:, at]
            for s in "wl"
        }
        fast = max(float(np.abs(push[s]).max() / n.mean()) for s, n in (("w", state.n_w), ("l", state.n_l)))
        part = min(left, max(far / PARTS, FINE / max(fast, TINY)))
        left = left - part if part < left else 0.0
        a, b = (_down(logp + part * push[s][:, None]) for s, logp in (("w", state.a), ("l", state.b)))
        state = replace(state, a=a, b=b)
    return state


def _soft(known: Kernels, state: PairState, at: int) -> dict[str, Floats]:
    return {s: _softened(_uncertain(state, s, known.picks) / known.certain[s][:, at]) for s in "wl"}


def _over(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)


def known_mean(picks: Floats) -> Callable[[Floats], Floats]:
    """values [R, pairs] (or [R, 1], the mean already) → their mean over the picked pairs [R]."""
    return lambda values: values[:, 0] if values.shape[-1] == 1 != picks.shape[-1] else (picks * values).sum(1)


def _softened(ratio: Floats) -> Floats:
    """How much a response is moved, relative to the recorded run, where its 1 − e^(log-prob per token) is `ratio` times
    the recorded: 1 at 1, 0 at 0."""
    return np.asarray(ratio * (1 + CERTAIN) / (ratio + CERTAIN))


def _begin(known: Kernels) -> PairState:
    """The start of the run, once for every resample."""
    every = np.ones((len(known.picks), 1))
    return replace(known.state, a=every * known.state.a, b=every * known.state.b)


def _down(logp: Floats) -> Floats:
    """A log-probability stays below 0."""
    return np.minimum(logp, -1e-3)


def _uncertain(state: PairState, side: str, picks: Floats) -> Floats:
    mean = state.a / state.n_w if side == "w" else state.b / state.n_l
    return np.asarray((picks * -np.expm1(mean)).sum(1))


def _smoothed(values: Floats, keep: float) -> Floats:
    """The momentum's mean of the values up to every position [R, P]."""
    found, mean, weight = np.empty_like(values), np.zeros(len(values)), 0.0
    for place in range(values.shape[1]):
        mean, weight = keep * mean + (1 - keep) * values[:, place], keep * weight + 1 - keep
        found[:, place] = mean / weight
    return found


def _energy(
    known: Kernels, recorded: Mapping[str, Floats], at: int, pull: Mapping[str, Floats], soft: Mapping[str, Any]
) -> Floats:
    """The step's squared gradient in the optimizer's metric, d_w Δa − d_l Δb of a plain step with these pulls, up to a
    constant [R]: a step's own share of the other pairs' pushes, and the pair's own."""
    found: Floats = np.zeros(len(known.picks))
    for s, sign in (("w", 1.0), ("l", -1.0)):
        for q in "wl":
            unit = (1 - MOMENTUM) * known.others[s, q][:, at] / recorded[q][:, at]
            unit = unit + known.own[s, q][:, at] / known.pull[q][:, at]
            found = found + sign * pull[s] * unit * soft[s] * soft[q] * pull[q]
    return found
