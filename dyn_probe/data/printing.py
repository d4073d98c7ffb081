"""``dyn-probe data`` for a terminal: plain data as lines. Colours help where there are any; the words do without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.text import Text

from dyn_probe.data.records import visible
from dyn_probe.data.wording import counted

STYLES = {"plain": "", "note": "cyan", "warning": "yellow", "loud": "bold red"}
"""Level of a line → its style."""
BAR = "│"
"""Stands between two tokens."""
SIDES = {"prompt": ("", 12, 24), "chosen": ("green", 40, 12), "rejected": ("magenta", 40, 12)}
"""Part → style, and how many tokens of its beginning and end are shown."""


def inspect_lines(found: dict[str, Any]) -> Iterator[Text]:
    """The plain data of ``inspect_data`` as lines."""
    yield from _head(found)
    yield Text()
    yield from _lengths(found)
    yield from _checks(found)
    for number, pair in enumerate(found["shown"], start=1):
        yield Text()
        yield from _pair(pair, number)


def _head(found: dict[str, Any]) -> Iterator[Text]:
    yield Text.assemble(
        (visible(found["name"]), "bold"), f"  {counted(found['rows'], 'row')}, {counted(found['pairs'], 'pair')}"
    )
    yield _labelled("read as", found["read_as"])
    yield _labelled("not read", ", ".join(found["not_read"]) or "–")
    yield _labelled("tokenizer", f"{found['model']}, {_template(found)}")


def _template(found: dict[str, Any]) -> str:
    """How this tokenizer writes these pairs."""
    if not found["conversations"]:
        return "plain texts: no chat template is used; every response ends with the end-of-sequence token"
    if found["template"]:
        return "conversations, rendered by its chat template"
    return "conversations, written as “User: …” lines, since it has no chat template"


def _lengths(found: dict[str, Any]) -> Iterator[Text]:
    widest = max(map(len, found["lengths"]))
    yield Text(f"{'tokens':{widest}}  {'median':>7} {'95 %':>7} {'most':>7}", style="dim")
    for part, (median, high, most) in found["lengths"].items():
        yield Text(f"{part:{widest}}  {median:7,} {high:7,} {most:7,}")


def _checks(found: dict[str, Any]) -> Iterator[Text]:
    limit = found["limit"]
    whose = "the model's positions" if limit["of_model"] else "--max-length"
    longest = found["lengths"]["prompt + longer response"][2]
    if limit["tokens"] is None or longest <= limit["tokens"]:
        yield Text(f"no pair is longer than {limit['tokens']} tokens ({whose})")
    yield Text()
    lines = [*found["facts"], *found["left_out"]]
    for level, text in lines or [("plain", "no row is left out, and the tokens match the text")]:
        yield Text(visible(text), style=STYLES[level])


def _pair(pair: dict[str, Any], number: int) -> Iterator[Text]:
    yield Text.assemble((f"pair {number}", "bold"), f"  {pair['pair_id']}  ", (visible(pair["source"]), "dim"))
    for part in SIDES:
        yield _tokens(part, pair[part], pair["cut"][part])


def _tokens(part: str, tokens: Sequence[str], cut: bool) -> Text:
    """One part: its number of tokens, then the tokens, each between two bars."""
    style, head, tail = SIDES[part]
    line = Text.assemble((f"{part:8}", f"bold {style}".strip()), f" {len(tokens):5,}  ")
    hidden = len(tokens) - head - tail
    groups = [tokens] if hidden <= 1 else [tokens[:head], tokens[-tail:]]
    if cut and part == "prompt":
        line.append("✂ ", style="bold red")
    for place, group in enumerate(groups):
        if place:
            line.append(f" … {hidden:,} more … ", style="dim")
        line.append(BAR, style="dim")
        for token in group:
            line.append(visible(token), style=style)
            line.append(BAR, style="dim")
    if cut and part != "prompt":
        line.append(" ✂ cut here", style="bold red")
    return line


def _labelled(label: str, text: str) -> Text:
    return Text.assemble((f"{label:10}", "dim"), visible(text))
