"""The state of a run as a screen of at most 80 columns, and as one line for a log."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich.console import Console
from rich.live import Live
from rich.text import Text

from dyn_probe.errors import on_one_line
from dyn_probe.report.monitor.live_state import LiveState
from dyn_probe.report.pair_columns import SIDES
from dyn_probe.report.push_parts import PARTS
from dyn_probe.report.verdicts.verdict import count, percent, sig, signed
from dyn_probe.trace.schema import CASES

WIDTH = 80
LONGEST = 150
"""Characters of a warning that are shown: two lines."""
SMALL = 0.01
"""Pushes below this share of the largest are not shown."""


def screen(state: LiveState) -> Text:
    """The whole state, wrapped to WIDTH columns; text from the run is shown as text."""
    blocks = [_head(state)]
    if state.step is not None:
        blocks += [_logps(state), _cases(state), _pushes(state), _warnings(state)]
    text = Text("\n\n").join([block for block in blocks if block.plain])
    lines = text.wrap(Console(width=WIDTH), WIDTH)
    return Text("\n").join(lines)


def plain_line(state: LiveState) -> str:
    """The numbers in one line, for a log file or a pipe."""
    if state.step is None:
        return f"{state.status}, no step recorded yet"
    sides = [
        f"{side} {_number(state.logp[side])}"
        + (f" ({signed(state.change[side])})" if _known(state.change[side]) else "")
        for side in SIDES
    ]
    parts = [
        f"step {_step(state)}",
        f"{' '.join(sides)} nats/token",
        f"margin {_signed(state.margin)}",
        f"accuracy {_share(state.accuracy)}",
    ]
    if _known(state.cases[2]):
        parts.append(f"both down {percent(state.cases[2])} {state.cases_basis}")
    if state.pushes:
        name, value = state.pushes[0]
        parts.append(f"chosen pushed most by {PARTS[name]} {signed(value)}")
    parts += [count(len(state.warnings), "warning")] if state.warnings else []
    return "; ".join(parts)


def _head(state: LiveState) -> Text:
    colour = "green" if state.status == "closed" else "yellow"
    text = Text.assemble((on_one_line(state.title, 40), "bold"), "  ", (state.status, colour))
    text.append("  no step recorded yet" if state.step is None else f"  step {_step(state)}")
    if state.reason:
        text.append(f"\n{on_one_line(state.reason, 200)}", "yellow")
    return text


def _step(state: LiveState) -> str:
    return f"{state.step}" + (f" of {state.planned} (from 0)" if state.planned else "")


def _logps(state: LiveState) -> Text:
    text = Text.assemble((f"{'log-prob, nats/token':22}{'now':>10}{'change':>10}", "dim"))
    for side in SIDES:
        value, change = state.logp[side], state.change[side]
        text.append(f"\n{side:22}")
        text.append(f"{_number(value):>10}")
        text.append(f"{_signed(change):>10}", "bold red" if side == "chosen" and change < 0 else "bold")
    text.append(f"\nchange: {state.change_basis}", "dim")
    text.append(f"\nmargin {_signed(state.margin)}   accuracy {_share(state.accuracy)}")
    return text


def _cases(state: LiveState) -> Text:
    known = {number: share for number, share in state.cases.items() if _known(share) and share > 0}
    text = Text("")
    if known:
        text.append(f"Cases {state.cases_basis}", "dim")
    for number, share in known.items():
        text.append(f"\n{CASES[number]:28}{percent(share):>9}  ")
        text.append("█" * round(30 * share), "red" if number == 2 else "blue")
    return text


def _pushes(state: LiveState) -> Text:
    text = Text.assemble(("Pushes on chosen, mean nats a step" if state.pushes else "", "dim"))
    large = [(name, value) for name, value in state.pushes if abs(value) > SMALL * abs(state.pushes[0][1])]
    for name, value in large:
        text.append(f"\n{PARTS[name]:40}{signed(value):>11}", "red" if value < 0 else "default")
    return text


def _warnings(state: LiveState) -> Text:
    marked = [Text.assemble(("▲ ", "yellow"), (on_one_line(words, LONGEST), "default")) for words in state.warnings]
    marked += [Text.assemble(("→ ", "green"), (on_one_line(words, LONGEST), "default")) for words in state.advice]
    return Text("\n").join(marked)


def _known(value: float) -> bool:
    return math.isfinite(value)


def _number(value: float) -> str:
    return sig(value) if _known(value) else "–"


def _signed(value: float) -> str:
    return signed(value) if _known(value) else "–"


def _share(value: float) -> str:
    return percent(value) if _known(value) else "–"


def show(states: Iterable[LiveState], console: Console) -> None:
    """Each state in place of the one before in a terminal, else in a line below it; the last one stays."""
    if not console.is_terminal:
        for state in states:
            console.print(Text(plain_line(state)), soft_wrap=True)
            if state.reason:
                console.print(Text(on_one_line(state.reason)), soft_wrap=True)
        return
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        for state in states:
            live.update(screen(state), refresh=True)
