"""The two tables as plain rows of text, for ``dyn-probe methods`` and the documentation. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dyn_probe.objectives.losses import OBJECTIVES
from dyn_probe.objectives.options import LIKELIHOOD, Value, option
from dyn_probe.objectives.scores import Score
from dyn_probe.objectives.shaping import SHAPINGS, composes_with, shapings_of
from dyn_probe.objectives.table import Objective, Shaping


@dataclass(frozen=True)
class MethodText:
    """One objective, warm-up stage or shaping as text; ``kind`` says which.

    ``options`` has one line per option: ``name=default: letter, meaning, values``; ``common`` one per option that every
    objective has. ``needs`` names what it reads besides log-probabilities and lengths; ``score`` what an objective
    compares of a response; ``composes_with`` an objective's shapings, or a shaping's objectives.
    """

    kind: str
    name: str
    formula: str
    options: tuple[str, ...]
    needs: tuple[str, ...]
    composes_with: tuple[str, ...]
    paper: str
    when: str
    dynamics: str
    notes: str
    score: str = ""
    common: tuple[str, ...] = ()

    @property
    def defaults(self) -> tuple[str, ...]:
        """``name=default`` of every option."""
        return tuple(line.partition(":")[0] for line in self.options)


KINDS = {
    "objective": "--objective NAME",
    "warm-up stage": "--sft-objective NAME",
    "shaping": "--shaping NAME",
}
"""Kind of method → how one is chosen on the command line."""


def describe() -> list[MethodText]:
    """A row for every objective, then every warm-up stage, then every shaping, in the tables' order."""
    losses = [
        _method("warm-up stage" if o.stage else "objective", o, o.needs(o.defaults), shapings_of(o))
        for o in OBJECTIVES.values()
    ]
    shapings = [_method("shaping", s, s.needs, composes_with(s.name)) for s in SHAPINGS.values()]
    return sorted(losses + shapings, key=lambda row: list(KINDS).index(row.kind))


def _method(kind: str, row: Objective | Shaping, needs: tuple[str, ...], fits: tuple[str, ...]) -> MethodText:
    return MethodText(
        kind, row.name, row.formula, _options(row.name, row.defaults), needs, fits,
        row.paper, row.when, row.dynamics, row.notes, *_of_objectives(row),
    )  # fmt: skip


def _of_objectives(row: Objective | Shaping) -> tuple[str, tuple[str, ...]]:
    """Score and common options, which a shaping does not have."""
    if not isinstance(row, Objective):
        return "", ()
    return _score(row), () if row.stage else _options(row.name, LIKELIHOOD)


def _score(row: Objective) -> str:
    """The score with the default hyper-parameters, then those that a switch changes."""
    plain = row.score_of(row.defaults)
    others = {switch: row.score_of({**row.defaults, switch: not row.defaults[switch]}) for switch in row.score_if}
    said = [f"{switch}={str(not row.defaults[switch]).lower()}: {_worded(one)}" for switch, one in others.items()]
    return "; ".join([_worded(plain), *said])


def _worded(score: Score) -> str:
    return f"{score.formula}: {score.meaning} ({score.unit})"


def _options(owner: str, defaults: Mapping[str, Value]) -> tuple[str, ...]:
    """One line per option, e.g. ``beta=0.1: β, how strongly …, a number above 0``."""
    return tuple(_line(owner, key, value) for key, value in defaults.items())


def _line(owner: str, key: str, default: Value) -> str:
    known = option(owner, key)
    if isinstance(default, bool):
        shown, values = str(default).lower(), "true or false"
    elif isinstance(default, str):
        shown, values = default, " or ".join(known.choices)
    else:
        shown, values = f"{default:g}", known.wanted
    return f"{key}={shown}: " + ", ".join(part for part in (known.letter, known.meaning, values) if part)
