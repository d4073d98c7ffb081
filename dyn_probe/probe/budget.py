"""Recording as often as a share of the training's time allows.

How long a step takes is measured. Steps that are not recorded, nor follow one that is (a device works off a recorded
step behind the host's back), give the plain time ``m``, their median; what a recorded step and the one behind it take
beyond ``m`` each is what that record has cost. A step is recorded where all costs so far, with what its kind of record
usually costs, stay under the budget times ``m`` times the steps so far. Full records (Gram, pushes, realised change)
and plain ones have half of the budget each, so that neither waits for the other.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dyn_probe.engine.recording import distributed
from dyn_probe.errors import BadInput
from dyn_probe.probe.schedule import Schedule

RECENT = 65
"""Plain steps whose median is the plain time."""
LEARNT = 3
"""Plain steps before anything but the first step is recorded."""


@dataclass
class Account:
    """What one kind of record costs, in seconds.

    Args:
        guessed: its cost in plain steps, as long as none has been measured.
    """

    guessed: float
    spent: float = 0.0
    count: int = 0
    costs: deque[float] = field(default_factory=lambda: deque(maxlen=9))

    def expected(self, plain: float) -> float:
        """What the next one will cost."""
        return max(0.0, statistics.median(self.costs)) if self.costs else self.guessed * plain

    def begin(self, seconds: float) -> None:
        """A recorded step has taken so much beyond the plain time."""
        self.spent, self.count = self.spent + seconds, self.count + 1
        self.costs.append(seconds)

    def go_on(self, seconds: float) -> None:
        """So has the step behind it."""
        self.spent += seconds
        self.costs[-1] += seconds


@dataclass
class Thinned(Schedule):
    """Steps as a budget allows; the first one is recorded in full, with its self-check, and not counted.

    Args:
        gram_every, metric_every: as for ``Schedule``; full records, which hold both, come so many steps after each
            other at least (the smaller of the two).
        budget: largest share of the plain time that records may take.
        clock: seconds.

    Raises:
        BadInput: a budget that is no share.
    """

    budget: float = 0.05
    clock: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.budget <= 1:
            raise BadInput(f"wanted a budget above 0 and of at most 1, a share of the plain time; got {self.budget}")
        self._apart = min((n for n in (self.gram_every, self.metric_every) if n > 0), default=0)
        self._accounts = {False: Account(1.0), True: Account(4.0)}
        self._plain: deque[float] = deque(maxlen=RECENT)
        self._kinds: dict[int, bool | None] = {}
        self._began, self._first, self._since, self._steps = 0.0, True, 0, 0

    def records(self, step: int) -> bool:
        return self._kind(step) is not None

    def full_gram(self, step: int) -> bool:
        return self.gram_every > 0 and self._kind(step) is True

    def takes_apart(self, step: int) -> bool:
        return self.metric_every > 0 and self._kind(step) is True

    def realises(self, step: int, every: int) -> bool:
        return every > 0 and self._kind(step) is True

    @property
    def facts(self) -> dict[str, Any]:
        """For ``run.json``: the budget, the steps so far, how many were recorded, how many of them in full, and the
        share of the plain time that they took."""
        full, light = self._accounts[True], self._accounts[False]
        plain = statistics.median(self._plain) * self._steps if self._plain and self._steps else None
        return {
            "budget": self.budget,
            "steps": self._steps + 1,
            "recorded": full.count + light.count + 1,
            "full": full.count + 1,
            "share": None if plain is None else (full.spent + light.spent) / plain,
        }

    def _kind(self, step: int) -> bool | None:
        """Whether the step's record is a full one; None where it has none. Decided when it is asked for first."""
        if step not in self._kinds:
            self._close()
            self._kinds[step] = self._decided()
            for old in [one for one in self._kinds if one < step - 2]:
                del self._kinds[old]
            self._began = self.clock()
        return self._kinds[step]

    def _close(self) -> None:
        """The step in progress is over."""
        if not self._kinds:
            return
        before, last = ([None, *self._kinds.values()])[-2:]
        seconds = self.clock() - self._began
        if self._first:  # the step of the self-check, and the one behind it
            self._first = last is not None
        elif last is None and before is None:
            self._plain.append(seconds)
        elif self._plain:
            beyond = seconds - statistics.median(self._plain)
            if last is not None:
                self._accounts[last].begin(beyond)
            else:
                self._accounts[bool(before)].go_on(beyond)
        self._steps, self._since = self._steps + 1, self._since + 1

    def _decided(self) -> bool | None:
        if not self._kinds:
            return True
        if len(self._plain) < LEARNT:
            return None
        plain = statistics.median(self._plain)
        share = self.budget / (2 if self._apart else 1)
        kinds = [True, False] if self._apart and self._since >= self._apart else [False]
        for kind in kinds:
            account = self._accounts[kind]
            if account.spent + account.expected(plain) <= share * plain * self._steps:
                self._since = 0 if kind else self._since
                return kind
        return None


def schedule_of(every: int | str, budget: float, gram_every: int, metric_every: int, split: bool) -> Schedule:
    """The schedule of a probe.

    Raises:
        BadInput: ``every`` is neither a number nor ``auto``, or ``auto`` in several processes (each would decide for
            itself) or with momentum kept apart (which follows every step).
    """
    if isinstance(every, int):
        return Schedule(every, gram_every, metric_every)
    if every != "auto":
        raise BadInput(f"wanted every as a number of steps, or auto; got {every!r}")
    if split:
        raise BadInput("split_momentum follows every step, so nothing can be thinned; write split_momentum=False")
    if distributed():
        raise BadInput(
            "every=auto decides by the clock, and several processes would not agree; write a number of steps"
        )
    return Thinned(1, gram_every, metric_every, budget)
