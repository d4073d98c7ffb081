"""Recording as often as a share of the training's time allows.

How long a step takes is measured. Steps that are not recorded, nor follow one that is (a device works off a recorded
step behind the host's back), give the plain time ``m``, their median. What a recorded step and the one behind it take
beyond ``m`` each is what that record has cost; the median of such costs, so that an evaluation or a checkpoint that
falls between two steps is nobody's, times the records so far is what is spent. A step is recorded where that, with its
own, stays under the budget times ``m`` times the steps so far. Full records (Gram, pushes, realised change) and plain
ones have half of the budget each, so that neither waits for the other.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from dyn_probe.engine.survey import distributed
from dyn_probe.errors import BadInput
from dyn_probe.probe.schedule import Schedule

RECENT = 65
"""Plain steps whose median is the plain time."""
KNOWN = 64
"""Decisions that are kept: rows of a step may be finished when the next ones have begun."""
LEARNT = 3
"""Plain steps before anything but the first step is recorded."""


@dataclass
class Account:
    """What one kind of record costs, in seconds.

    Args:
        guessed: its cost in plain steps, as long as none has been measured.
    """

    guessed: float
    count: int = 0
    costs: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    def usual(self, plain: float) -> float:
        """What one of them costs."""
        return max(0.0, statistics.median(self.costs)) if self.costs else self.guessed * plain


@dataclass
class Thinned(Schedule):
    """Steps as a budget allows; the first one is recorded in full, with its self-check, and not counted.

    Args:
        gram_every, metric_every: as for ``Schedule``; full records, which hold both, come so many steps after each
            other at least (the smaller of the two).
        budget: largest share of the plain time that records may take.
        last: number of the last step, where it is known: recorded in full like the first one, whatever is left.
        clock: seconds.

    Raises:
        BadInput: a budget that is no share.
    """

    budget: float = 0.05
    last: int | None = None
    clock: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.budget <= 1:
            raise BadInput(f"wanted a budget above 0 and of at most 1, a share of the plain time; got {self.budget}")
        self._apart = min((n for n in (self.gram_every, self.metric_every) if n > 0), default=0)
        self._accounts = {False: Account(1.0), True: Account(4.0)}
        self._plain: deque[float] = deque(maxlen=RECENT)
        self._kinds: dict[int, bool | None] = {}
        self._realised: dict[int, int] = {}
        self._began, self._first, self._since, self._steps = 0.0, True, 0, 0

    def records(self, step: int) -> bool:
        return self._kind(step) is not None

    def full_gram(self, step: int) -> bool:
        return self.gram_every > 0 and self._kind(step) is True

    def takes_apart(self, step: int) -> bool:
        return self.metric_every > 0 and self._kind(step) is True

    def realises(self, step: int, every: int) -> bool:
        """With full records the realised change is part of them; where there are none, it is measured at recorded steps
        at least ``every`` steps after each other."""
        kind = self._kind(step)
        if self._apart or kind is None or every == 0:
            return every > 0 and kind is True
        if step not in self._realised and (not self._realised or self._steps - max(self._realised.values()) >= every):
            self._realised = {step: self._steps}
        return step in self._realised

    @property
    def facts(self) -> dict[str, Any]:
        """For ``run.json``: the budget, the steps so far, how many were recorded, how many of them in full, and the
        share of the plain time that they took, but for the first."""
        plain = statistics.median(self._plain) if self._plain else None
        counts = {kind: account.count for kind, account in self._accounts.items()}
        spent = sum(account.count * account.usual(plain or 0.0) for account in self._accounts.values())
        return {
            "budget": self.budget,
            "steps": self._steps,
            "recorded": counts[True] + counts[False] + 1,
            "full": counts[True] + 1,
            "share": None if not plain else spent / (plain * self._steps),
        }

    def _kind(self, step: int) -> bool | None:
        """Whether the step's record is a full one; None where it has none. Decided when it is asked for first; of a
        step that is long over nothing is known any more."""
        if step not in self._kinds:
            if self._kinds and step < max(self._kinds):
                return None
            self._close()
            self._kinds[step] = self._decided(step)
            self._steps, self._since = self._steps + 1, self._since + 1
            while len(self._kinds) > KNOWN:
                del self._kinds[next(iter(self._kinds))]
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
                self._accounts[last].costs.append(beyond)
            elif costs := self._accounts[bool(before)].costs:
                costs[-1] += beyond

    def _decided(self, step: int) -> bool | None:
        if not self._kinds:
            return True
        if step == self.last:
            self._accounts[True].count += 1
            return True
        if len(self._plain) < LEARNT:
            return None
        plain = statistics.median(self._plain)
        share = self.budget / (2 if self._apart else 1)
        kinds = [True, False] if self._apart and self._since >= self._apart else [False]
        for kind in kinds:
            account = self._accounts[kind]
            if (account.count + 1) * account.usual(plain) <= share * plain * self._steps:
                account.count += 1
                self._since = 0 if kind else self._since
                return kind
        return None


def schedule_of(
    every: int | str, budget: float, gram_every: int, metric_every: int, split: bool, last: int | None = None
) -> Schedule:
    """The schedule of a probe.

    Raises:
        BadInput: ``every`` is neither a number nor ``auto``, or ``auto`` in several processes (each would decide for
            itself) or with momentum kept apart (which follows every step).
    """
    if isinstance(every, Integral):  # numpy's too
        return Schedule(int(every), gram_every, metric_every)
    if every != "auto":
        raise BadInput(f"wanted every as a number of steps, or auto; got {every!r}")
    if split:
        raise BadInput("split_momentum follows every step, so nothing can be thinned; write split_momentum=False")
    if distributed():
        raise BadInput(
            "every=auto decides by measured time, on which several processes would not agree; write a number of steps"
        )
    return Thinned(1, gram_every, metric_every, budget, last)
