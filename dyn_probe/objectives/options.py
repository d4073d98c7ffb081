"""Options of objectives and shapings: the text form ``name:key=value,…``, and the allowed values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dyn_probe.errors import BadInput, did_you_mean

Value = float | bool | str


@dataclass(frozen=True)
class Option:
    """One option: its letter in the formulas, its meaning, and the values it may take."""

    letter: str
    meaning: str
    wanted: str = "a number"
    allows: Callable[[float], bool] = math.isfinite
    choices: tuple[str, ...] = ()


def _above_zero(value: float) -> bool:
    return 0 < value < math.inf


def _not_negative(value: float) -> bool:
    return 0 <= value < math.inf


_SCALE = ("a number > 0", _above_zero)
_WEIGHT = ("a number ≥ 0", _not_negative)

# An entry "owner.key" takes precedence over "key".
OPTIONS: dict[str, Option] = {
    "beta": Option("β", "how strongly log-ratios are held near the reference", *_SCALE),
    "sppo.beta": Option("β", "1/η of the paper: the targets of the hard form are ±1/(2β)", *_SCALE),
    "simpo.beta": Option("β", "scale of the margin of per-token means", *_SCALE),
    "cpo.beta": Option("β", "scale of the margin of log-probabilities", *_SCALE),
    "label_smoothing": Option(
        "ε", "assumed share of flipped labels", "a number in [0, 0.5)", lambda v: 0 <= v < 0.5
    ),
    "alpha": Option("α", "strength of the length penalty (nats per token)"),
    "gamma": Option("γ", "target margin"),
    "delta": Option("δ", "target margin (nats per sequence)"),
    "lambda": Option("λ", "weight of the likelihood term", *_WEIGHT),
    "dpop.lambda": Option("λ", "weight of the penalty on a chosen response below its reference", *_WEIGHT),
    "orpo.lambda": Option("λ", "weight of the odds-ratio term", *_WEIGHT),
    "dpo_shift.lambda": Option(
        "λ", "factor on the rejected log-ratio", "a number in (0, 1]", lambda v: 0 < v <= 1
    ),
    "lambda_w": Option("λ_w", "weight of the chosen term", *_WEIGHT),
    "lambda_l": Option("λ_l", "weight of the rejected term", *_WEIGHT),
    "kappa": Option("κ", "weight of the calibration term", *_WEIGHT),
    "nll": Option("λ_nll", "weight of a likelihood term on chosen that is added to the loss", *_WEIGHT),
    "nll_mean": Option(
        "",
        "mean over all chosen tokens of the step's batch, over the pair's own (ā), or the plain sum (a)",
        choices=("batch", "pair", "sum"),
    ),
    "average": Option("", "divide the log-ratios by the response lengths"),
    "mean_nll": Option("", "likelihood term per token (ā) instead of per sequence (a)"),
    "soft": Option("", "targets from the data's win probabilities instead of 1 and 0"),
    "schedule": Option("", "raise λ linearly to 1 over training"),
    "form": Option(
        "",
        "value: scale the rejected contribution; gradient: scale only its gradient",
        choices=("value", "gradient"),
    ),
    "gate-seq.alpha": Option("α", "slope of the gate", *_SCALE),
    "gate-q10.alpha": Option("α", "slope of the gate", *_SCALE),
    "tau": Option(
        "τ", "probability at which the gate is ½", "a number in [0, 1]", lambda v: 0 <= v <= 1
    ),
    "q": Option("q", "which quantile of the token probabilities is read", "a number in [0, 1]", lambda v: 0 <= v <= 1),
    "space": Option(
        "",
        "balance ratios to the reference or the policy's probabilities; auto: ratio if there is a reference",
        choices=("auto", "ratio", "policy"),
    ),
    "metric": Option(
        "P",
        "plain: norms as they are; optimizer: norms in the metric of the optimizer's last step",
        choices=("plain", "optimizer"),
    ),
    "per": Option("", "one factor α for all pairs, or one for each pair", choices=("batch", "pair")),
    "ema": Option(
        "", "decay of the average over steps (per=batch)", "a number in [0, 1)", lambda v: 0 <= v < 1
    ),
    "stable": Option("", "balance per-token quantities instead of per-sequence ones"),
    "ceiling": Option("C", "largest ρ", *_SCALE),
    "penalty": Option("η_s", "weight of the l1 norm, in units of what the loss gives an average token", *_WEIGHT),
    "slope": Option("k", "slope of the mask once it is annealed", *_SCALE),
    "slope_start": Option("", "slope of the mask at the start of the training", *_SCALE),
    "anneal": Option(
        "", "share of the training in which the slope rises", "a number in [0, 1]", lambda v: 0 <= v <= 1
    ),
    "readout_lr": Option("", "learning rate of the read-out, at the peak of the schedule", *_SCALE),
    "wait": Option("", "margin per token (nats) up to which there is no penalty", *_WEIGHT),
    "floor": Option(
        "", "mean mask of a pair up to which there is no penalty", "a number in [0, 1)", lambda v: 0 <= v < 1
    ),
    "threshold": Option("r", "read-out at which the mask is ½"),
    "through_hidden": Option("", "let the gradient of the mask reach the model through the hidden states"),
}  # fmt: skip


LIKELIHOOD: dict[str, Value] = {"nll": 0.0, "nll_mean": "batch"}
"""Options that every objective of preference training has beside its own, and their defaults."""


def option(owner: str, key: str) -> Option:
    """What is known of option ``key`` of the objective or shaping ``owner``."""
    return OPTIONS.get(f"{owner}.{key}") or OPTIONS.get(key, Option("", ""))


def resolve(owner: str, defaults: Mapping[str, Value], given: Mapping[str, Value] | None) -> dict[str, Value]:
    """``defaults`` overlaid with ``given``; BadInput lists every unknown option and every bad value."""
    wrong = []
    values = dict(defaults)
    for key, value in (given or {}).items():
        if key not in defaults:
            hint = did_you_mean(key, defaults)
            wrong.append(f"unknown option {key!r}{hint}; {owner} takes {', '.join(defaults) or 'no options'}")
            continue
        values[key], complaint = _coerce(owner, key, defaults[key], value)
        wrong += [complaint] if complaint else []
    if wrong:
        raise BadInput(f"{owner}: " + "; ".join(wrong))
    return values


def _coerce(owner: str, key: str, default: Value, value: Value) -> tuple[Value, str]:
    """``value`` in the type of ``default``, and what is wrong with it (empty where nothing is)."""
    known = option(owner, key)
    if isinstance(default, str):
        if value in known.choices:
            return value, ""
        return value, f"{key} must be {' or '.join(known.choices)}; got {value!r}{did_you_mean(value, known.choices)}"
    if isinstance(default, bool):
        read = {"true": True, "false": False}.get(str(value).lower())
        return (value, f"{key} must be true or false; got {value!r}") if read is None else (read, "")
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    bad = not (math.isfinite(number) and known.allows(number))
    return number, f"{key} must be {known.wanted}; got {value!r}" if bad else ""


def parse(text: str) -> tuple[str, dict[str, Value]]:
    """``"gate-seq:form=gradient,alpha=50"`` → ``("gate-seq", {"form": "gradient", "alpha": "50"})``."""
    name, _, rest = text.partition(":")
    options: dict[str, Value] = {}
    for part in (p.strip() for p in rest.split(",") if p.strip()):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (key and equals and value) or key in options:
            raise BadInput(f"{text!r}: wanted NAME:KEY=VALUE,KEY=VALUE with each key once; could not parse {part!r}")
        options[key] = value
    return name.strip(), options
