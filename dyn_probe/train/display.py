"""What a person sees while a run is recorded: bars in a terminal, plain lines in a log file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import IO, Any, cast

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from dyn_probe.data.printing import STYLES
from dyn_probe.data.records import visible
from dyn_probe.data.saying import Line
from dyn_probe.probe.step_rows import margins
from dyn_probe.train.log_lines import stage_lines


class StandardError:
    """Standard error, whichever it is at the time. What cannot be shown (a full disk, a terminal that is gone) is no
    reason to stop training."""

    @property
    def _stream(self) -> Any:
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)  # while a bar moves, rich stands in its place

    def write(self, text: str) -> int:
        """Write, or leave it."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand it on, or leave it."""
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Display:
    """Progress and notes on standard error; silent if asked."""

    def __init__(self, shown: bool = True) -> None:
        self.console = Console(file=cast(IO[str], StandardError()), quiet=not shown, highlight=False)

    def say(self, text: str) -> None:
        """One line of plain text."""
        self.console.print(escape(text), soft_wrap=True)

    def show(self, lines: Iterable[Line]) -> None:
        """Lines about the data, each in the style of its level."""
        for level, text in lines:
            self.console.print(Text(visible(text), style=STYLES[level]), soft_wrap=True)

    @contextmanager
    def bar(self, title: str, total: int, leave: bool = True) -> Iterator[Callable[..., None]]:
        """A bar, or lines where there is no terminal; what it yields is called with ``(advance, text)``.

        Args:
            leave: False removes the bar when it is full, for a stage within another one.
        """
        shown = self._drawn if self.console.is_terminal or self.console.quiet else self._lines
        with shown(title, total, leave) as advance:
            yield advance

    def _lines(self, title: str, total: int, leave: bool) -> AbstractContextManager[Callable[..., None]]:
        return stage_lines(title, total, self.say, last_line=leave)

    @contextmanager
    def _drawn(self, title: str, total: int, leave: bool) -> Iterator[Callable[..., None]]:
        columns = (
            TextColumn("{task.description}", table_column=Column(no_wrap=True, min_width=len(title))),
            BarColumn(bar_width=10),
            TextColumn(
                "{task.completed:.0f}/{task.total:.0f}",
                table_column=Column(no_wrap=True, min_width=2 * len(str(total)) + 1),
            ),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
        )
        silent = self.console.quiet
        with Progress(*columns, console=self.console, expand=True, disable=silent, transient=not leave) as progress:
            task = progress.add_task(title, total=total, note="")

            def advance(by: float = 1, note: str = "") -> None:
                progress.update(task, advance=by, note=note)

            yield advance


LARGE = 100.0
"""MiB of trained weights from which on a copy of them is worth a word."""


def cost_before(mib: float, every: int) -> str:
    """What taking steps apart will hold, said before it is done; empty where that is little.

    Args:
        mib: the trained weights.
        every: how often it is done.
    """
    if not every or mib < LARGE:
        return ""
    which = "every step is" if every == 1 else f"every {every}th step is"
    return (
        f"{which} taken apart (--metric-every): until it is made it holds a copy of the trained weights, {mib:,.0f} "
        "MiB, and its rows' gradients in factored form"
    )


def cost_after(row: Mapping[str, Any], every: int) -> str:
    """What taking the first step apart took, and what that means for the run; empty where it was little.

    Args:
        row: the step's row of the ``steps`` table.
    """
    seconds, whole, mib = (row.get(name) for name in ("pushes_seconds", "step_seconds", "pushes_mib"))
    if not (seconds and whole and mib) or mib < LARGE:
        return ""
    share = seconds / max(whole - seconds, 1e-9) / every
    rarer = f"; --metric-every {10 * every} would make that {share / 10:.0%}" if share > 0.1 else ""
    return (
        f"step {row['step']}: taking it apart took {seconds:.1f} of {whole:.1f} s and held {mib:,.0f} MiB; the run "
        f"takes about {share:.0%} longer for it{rarer}"
    )


BASES = {
    "case_realised": "both fell",
    "case_update": "both pushed down",
    "case_plain": "both down, each pair alone:",
}
"""Basis of a case → the words before the share of case 2; the first that all rows have is shown."""


def live_numbers(rows: Sequence[dict[str, Any]], start: dict[str, float]) -> str:
    """The numbers that matter while training: loss, margin, accuracy, change of both sides since the start, cosine,
    share of case 2.

    Args:
        rows: the step's rows of the ``pairs`` table.
        start: mean per-token log-probability of each side at the first step; filled on first use.
    """
    if not rows:
        return ""
    sides = {}
    for side in ("chosen", "rejected"):
        per_token = sum(r[f"logp_{side}"] / r[f"len_{side}"] for r in rows) / len(rows)
        sides[side] = per_token - start.setdefault(side, per_token)
    loss = sum(r["loss"] for r in rows) / len(rows)
    margin = margins(rows)
    cosine = sum(r["grad_cosine"] for r in rows) / len(rows)
    basis = next((name for name in BASES if all(r.get(name) is not None for r in rows)), "")
    down = sum(r[basis] == 2 for r in rows) / len(rows) if basis else 0.0
    falling = f" {BASES[basis]} {down:.0%}" if basis else ""
    return (
        f"loss {loss:.3f} margin {margin.mean():+.2f} acc {(margin > 0).mean():.0%} "
        f"Δchosen {sides['chosen']:+.3f} Δrejected {sides['rejected']:+.3f} cos {cosine:+.2f}{falling}"
    )
