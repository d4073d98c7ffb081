"""What a verdict is, and how its numbers are written."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from dyn_probe.report.verdicts.advice import KNOBS

Level = Literal["ok", "note", "warning"]


@dataclass(frozen=True)
class Number:
    """One number of a sentence.

    Args:
        key: its name for programs, the same in every version: `change_chosen`. A number of one side ends in its name.
        name: what it is, for the reader.
        unit: `share` is printed as a percentage.
    """

    key: str
    name: str
    value: float
    unit: str


@dataclass(frozen=True)
class Verdict:
    """One statement about a run: the sentence, its numbers, how they are computed, what to change.

    `ok`: as it should be; `note`: worth knowing; `warning`: worth acting on. `topic` is its row in VERDICTS.
    """

    sentence: str
    numbers: tuple[Number, ...]
    formula: str
    knobs: tuple[str, ...]
    level: Level
    topic: str = ""


def say(level: Level, sentence: str, formula: str, *numbers: Number, change: Iterable[str] = ()) -> list[Verdict]:
    """One verdict, as the list that a statement returns; `change` names rows of KNOBS."""
    return [Verdict(sentence, numbers, formula, tuple(KNOBS[name] for name in change), level)]


def sig(value: float, digits: int = 3) -> str:
    """A number with `digits` significant digits and a true minus sign: 0.0123, 48, 1,240, 3.1e−7."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e6 and float(value).is_integer():
        text = f"{int(size):,}"
    elif 1e-3 <= size < 1e6:
        text = f"{size:,.{max(0, digits - 1 - math.floor(math.log10(size)))}f}"
    else:
        mantissa, _, exponent = f"{size:.{digits - 1}e}".partition("e")
        text = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}".replace("-", "−")
    return ("−" if value < 0 else "") + text


def within(value: float, error: float, digits: int = 3) -> str:
    """The same without digits beyond the first one of its error: 0.1234 ± 0.02 is 0.12. An error of 0 or NaN takes
    none away."""
    if not (math.isfinite(value) and math.isfinite(error) and error > 0) or value == 0:
        return sig(value, digits)
    place = math.floor(math.log10(error))
    if not (rounded := round(value, -place)):
        return f"{0:.{max(0, -place)}f}"
    return sig(rounded, min(digits, math.floor(math.log10(abs(rounded))) - place + 1))


def signed(value: float, digits: int = 3) -> str:
    """The same with its sign: +0.012, −1.3."""
    return sig(value, digits) if value <= 0 or math.isnan(value) else "+" + sig(value, digits)


def count(number: int, noun: str) -> str:
    """A number of things in words: 1 row, 4 rows, 1,240 rows."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def percent(value: float) -> str:
    """A share as a percentage without decimals; a part is never rounded to all or nothing."""
    if math.isnan(value):
        return "an unknown share"
    rounded = round(100 * value)
    if rounded == 100 and value < 1:
        return "over 99%"
    if rounded == 0 and value > 0:
        return "under 1%"
    return f"{rounded}%"


def written(number: Number, error: float = math.nan) -> str:
    """A number with its unit, as the report's small print shows it, without digits beyond its error."""
    if number.unit == "share":
        return percent(number.value)
    unit = "" if number.unit in ("", "1") else f" {number.unit}"
    return within(number.value, error) + unit


def quartiles(low: float, high: float) -> str:
    """The interquartile range in words."""
    return f"interquartile range {sig(low)} to {sig(high)}"
