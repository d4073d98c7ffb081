"""What a trial of many cases came to: how many, what must be zero and is not, what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SHOWN = 5


@dataclass
class Tally:
    """The result of one trial.

    Args:
        title: what was tried.
        tried: number of cases.
        zero: name → count of what may not happen.
        facts: name → what was measured beside, as it is printed.
        parts: kind of case → its own counts, where there are several kinds.
        failures: what happened, for the first cases in which something may not have.
    """

    title: str
    tried: int = 0
    zero: dict[str, int] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    parts: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether anything was tried, and nothing happened that may not."""
        return self.tried > 0 and not any(self.zero.values())

    def fail(self, name: str, what: str, count: int = 1) -> None:
        """Count something that may not happen."""
        self.zero[name] = self.zero.get(name, 0) + count
        self.failures.append(f"{name}: {what}")

    def lines(self) -> list[str]:
        """The result in lines for a terminal."""
        counts = [f"{self.tried:,} tried", *(f"{name} {count}" for name, count in self.zero.items())]
        facts = [f"{name} {value}" for name, value in self.facts.items()]
        mark = "holds" if self.holds else "FAILS"
        parts = [f"    {kind}: {', '.join(f'{n} {v:,}' for n, v in row.items())}" for kind, row in self.parts.items()]
        first = f"{mark}  {self.title}: {', '.join([*counts, *facts])}"
        return [first, *parts, *(f"    {failure}" for failure in self.failures[:SHOWN])]

    def as_json(self) -> dict[str, object]:
        """Plain values."""
        known = {"title": self.title, "tried": self.tried, "zero": self.zero, "facts": self.facts, "holds": self.holds}
        return known | ({"parts": self.parts} if self.parts else {})

    @staticmethod
    def of_json(content: Mapping[str, object]) -> Tally:
        """The tally that ``as_json`` gave."""
        known = {name: content[name] for name in ("title", "tried", "zero", "facts")}
        return Tally(**known)  # type: ignore[arg-type]
