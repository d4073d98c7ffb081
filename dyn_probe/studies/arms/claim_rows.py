"""The claims of all studies as rows: which figure of which arm must be above or below what; judged by one rule."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dyn_probe.studies.arms.arm_manifest import Figures
from dyn_probe.studies.claims import Estimate, Finding, finding


@dataclass(frozen=True)
class Claim:
    """One claim.

    Args:
        claim, expected: what the paper says, and as which number.
        arm, figure: whose number it is (a row of ``FIGURES``).
        above: the number has to be above the limit, else below it.
        against: arm whose same figure is subtracted, seed by seed.
        less: figure of the arm itself that is subtracted.
        extremes: show the smallest (largest) value of a single pair too.
    """

    claim: str
    expected: str
    arm: str
    figure: str
    above: bool = True
    limit: float = 0.0
    against: str = ""
    less: str = ""
    extremes: bool = False

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms that it needs."""
        return (self.arm, self.against) if self.against else (self.arm,)

    @property
    def unit(self) -> str:
        """What the number is, in a word."""
        return "difference" if self.against or self.less else self.figure.replace("_", " ")


def numbers_of(row: Claim, figures: Figures, figure: str | None = None) -> list[Estimate]:
    """The claim's number of every seed that all its arms have, by seed; of another figure where one is named."""
    name = figure or row.figure
    found = []
    for seed, own in sorted(figures.get(row.arm, {}).items()):
        other = figures.get(row.against, {}).get(seed, {}) if row.against else own
        second = name if row.against else row.less
        if name not in own or (second and second not in other):
            continue
        found.append(own[name] - other[second] if second else own[name])
    return found


def judge(rows: Sequence[Claim], figures: Figures) -> list[Finding]:
    """Every claim with its verdict; "not run" where an arm that it needs, or its figure, is missing."""
    return [
        finding(
            row.claim, row.expected, row.unit, numbers_of(row, figures), row.above, row.limit, row.extremes
        )
        for row in rows
    ]  # fmt: skip


def arms_of(rows: Iterable[Claim]) -> tuple[str, ...]:
    """All arms that some claims need, in order of first use."""
    return tuple(dict.fromkeys(arm for row in rows for arm in row.arms))
