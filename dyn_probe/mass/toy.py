"""The squeezing effect in its smallest form: a negative gradient in softmax regression. Numpy only.

Ren & Sutherland 2024 (arXiv 2407.10490): ``V = 50`` classes, one input ``x``, logits ``z = W x``. A step
of size ``η`` that lowers log π(y⁻) moves the logits by ``−η‖x‖²(e_{y⁻} − π)``. ``y★`` is the most
probable class other than y⁻; the classes that are neither are the bystanders. *Squeeze* is the mean fall
of the bystanders' log-probabilities (nats): positive where the mass that y⁻ gives up goes to y★ at their
cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CLASSES, FEATURES, RATE = 50, 8, 2.0
SHARPNESS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
TARGET_MASS = (0.3, 0.1, 0.03, 0.01, 1e-3, 1e-5)


@dataclass(frozen=True)
class ToyCase:
    """One distribution before and after the negative gradient, and the class it was put on."""

    name: str
    negative: int
    """y⁻."""
    before: Floats
    """``[V]`` probabilities π."""
    after: Floats

    @property
    def top(self) -> int:
        """y★: the most probable class other than y⁻, before the step."""
        return int(np.argmax(np.where(np.arange(len(self.before)) == self.negative, -1.0, self.before)))

    @property
    def change(self) -> Floats:
        """``[V]`` Δ log π in nats."""
        return np.log(self.after) - np.log(self.before)

    @property
    def squeeze(self) -> float:
        """Mean fall of the bystanders' log-probabilities, in nats."""
        return float(-np.delete(self.change, [self.negative, self.top]).mean())


@dataclass(frozen=True)
class ToyStatement:
    """One of the five statements, whether it holds in the toy, and the numbers that show it."""

    text: str
    holds: bool
    numbers: dict[str, float]


def softmax(logits: Floats) -> Floats:
    """``[V]`` probabilities."""
    shifted = np.exp(logits - logits.max())
    return shifted / shifted.sum()


def negative_step(weights: Floats, features: Floats, negative: int, rate: float) -> Floats:
    """``[V, d]`` weights after one step of size η down the gradient of log π(y⁻): W − η (e_{y⁻} − π) xᵀ."""
    residual = -softmax(weights @ features)
    residual[negative] += 1.0
    return weights - rate * np.outer(residual, features)


def push_down(probabilities: Floats, negative: int, *, name: str = "", rate: float = RATE, steps: int = 1) -> ToyCase:
    """Softmax regression from ``probabilities`` on: ``steps`` negative-gradient steps on y⁻."""
    features = np.full(FEATURES, FEATURES**-0.5)  # ‖x‖ = 1
    weights = np.outer(np.log(probabilities), features)
    for _ in range(steps):
        weights = negative_step(weights, features, negative, rate)
    return ToyCase(name, negative, probabilities, softmax(weights @ features))


def hill(sharpness: float = 1.0) -> Floats:
    """``[V]`` probabilities with one high and one low hill, sharper with ``sharpness``; 0 is flat."""
    classes = np.arange(CLASSES)
    high, low = np.exp(-(((classes - 15) / 5) ** 2)), np.exp(-(((classes - 34) / 4) ** 2))
    return softmax(sharpness * (5.0 * high + 2.5 * low + 0.002 * classes))


def with_target_mass(probabilities: Floats, negative: int, mass: float) -> Floats:
    """The same distribution with π(y⁻) set to ``mass``; the other classes keep their proportions."""
    rest = np.where(np.arange(len(probabilities)) == negative, 0.0, probabilities)
    moved = (1.0 - mass) * rest / rest.sum()
    moved[negative] = mass
    return moved


def cases(steps: int = 1) -> tuple[ToyCase, ...]:
    """The three cases of the paper's figure: y⁻ in a flat distribution, on a peak, in a valley."""
    return (
        push_down(hill(0.0), 25, name="flat", steps=steps),
        push_down(hill(), int(hill().argmax()), name="peak", steps=steps),
        push_down(hill(), int(hill().argmin()), name="valley", steps=steps),
    )


def by_sharpness(mass: float = 0.01, negative: int = 48) -> tuple[ToyCase, ...]:
    """One case per :data:`SHARPNESS`: the same π(y⁻) under ever peakier distributions."""
    return tuple(push_down(with_target_mass(hill(s), negative, mass), negative, name=f"{s:g}") for s in SHARPNESS)


def by_target_mass(negative: int = 48) -> tuple[ToyCase, ...]:
    """One case per :data:`TARGET_MASS`: ever smaller π(y⁻) under the same distribution of the rest."""
    return tuple(push_down(with_target_mass(hill(), negative, m), negative, name=f"{m:g}") for m in TARGET_MASS)


def statements() -> tuple[ToyStatement, ...]:
    """The five statements of the paper, in its order, each checked on this toy."""
    shown = cases()
    sharper = {case.name: case.squeeze for case in by_sharpness()}
    rarer = {case.name: case.squeeze for case in by_target_mass()}
    falls = {case.name: float(case.change[case.negative]) for case in shown}
    rises = {case.name: float(case.change[case.top]) for case in shown}
    disorder = {case.name: float(_out_of_order(case)) for case in shown}
    return (
        ToyStatement("π(y⁻) falls", max(falls.values()) < 0, falls),
        ToyStatement("π(y★) rises", min(rises.values()) > 0, rises),
        ToyStatement("the rich get richer: the larger π, the larger Δ log π", not any(disorder.values()), disorder),
        ToyStatement("the peakier π, the stronger the squeeze", _increasing(sharper), sharper),
        ToyStatement("the smaller π(y⁻), the stronger the squeeze", _increasing(rarer), rarer),
    )


def _out_of_order(case: ToyCase) -> int:
    """Neighbours in the order of π, without y⁻, of which the richer one gained less (beyond rounding)."""
    kept = np.delete(np.arange(len(case.before)), case.negative)
    ordered = kept[np.argsort(case.before[kept])]
    return int((np.diff(case.change[ordered]) < -1e-12).sum())


def _increasing(values: dict[str, float]) -> bool:
    return bool((np.diff(list(values.values())) > 0).all())
