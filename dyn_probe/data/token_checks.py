"""What the tokens of one pair are not as one would think: cut, begun twice, without their end, differing from the
text."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dyn_probe.data.records import PreferencePair, Text
from dyn_probe.data.token_text import decoded
from dyn_probe.data.turns import call_names


@dataclass(frozen=True)
class TokenChecks:
    """Facts about the tokens of one pair; empty and False where all is as it should be.

    Args:
        prompt: tokens of the prompt before any cut.
        whole: tokens of prompt + chosen and of prompt + rejected before any cut.
        cut_chosen, cut_rejected: the response lost its end to ``max_length``.
        cut_prompt: the prompt lost its beginning to ``max_length``.
        begun_twice: the row begins with two beginning-of-sequence tokens.
        open_end: what the responses end with instead of the tokenizer's end-of-sequence token.
        left_out: end of the prompt alone that is not in prompt + response: the model does not see it in training.
        merged: end of the prompt that is within the response's first token.
        dropped_response, dropped_prompt: a text of the responses or of the prompt that the template does not render.
        dropped_responses: number of responses of which the template does not render everything.
        dropped_tools: the template does not render the tools.
    """

    prompt: int = 0
    whole: tuple[int, int] = (0, 0)
    cut_chosen: bool = False
    cut_rejected: bool = False
    cut_prompt: bool = False
    begun_twice: bool = False
    open_end: str = ""
    left_out: str = ""
    merged: str = ""
    dropped_response: str = ""
    dropped_responses: int = 0
    dropped_prompt: str = ""
    dropped_tools: bool = False


def token_checks(
    pair: PreferencePair,
    tokenizer: Any,
    alone: Sequence[int],
    sides: tuple[Sequence[int], Sequence[int]],
    start: int,
    cut: tuple[bool, bool, bool],
) -> TokenChecks:
    """The facts about one pair.

    Args:
        alone: tokens of the prompt alone.
        sides: tokens of prompt + chosen and of prompt + rejected, uncut.
        start: where the responses begin in them.
        cut: whether the prompt, the chosen and the rejected response are cut.
    """
    first = getattr(tokenizer, "bos_token_id", None)
    left_out, merged = _boundary(tokenizer, alone, sides, start)
    dropped = _dropped(pair, tokenizer, sides, start) if pair.conversational else ("", 0, "", False)
    return TokenChecks(
        start, (len(sides[0]), len(sides[1])), cut[1], cut[2], cut[0],
        first is not None and list(sides[0][:2]) == [first, first],
        _open_end(pair, tokenizer, sides, start), left_out, merged, *dropped,
    )  # fmt: skip


def _boundary(tokenizer: Any, alone: Sequence[int], sides: Sequence[Sequence[int]], start: int) -> tuple[str, str]:
    """The end of the prompt alone that is not a prefix of prompt + response: what of it is lost, or merely merged."""
    if start >= len(alone):
        return "", ""
    text, end = decoded(tokenizer, alone), decoded(tokenizer, alone[start:])
    if all(decoded(tokenizer, side).startswith(text) for side in sides):
        return "", end
    return end, ""


def _open_end(pair: PreferencePair, tokenizer: Any, sides: Sequence[Sequence[int]], start: int) -> str:
    """What the responses end with, quoted, where no end-of-sequence token is among their last two tokens."""
    end = getattr(tokenizer, "eos_token_id", None)
    for response, side in zip((pair.chosen, pair.rejected), sides, strict=True):
        if end is None or end not in side[start:][-2:]:
            text = decoded(tokenizer, side[start:])
            said = response if isinstance(response, str) else response[-1].get("content") or ""
            last = (said.strip().splitlines() or [""])[-1]
            behind = text.rpartition(last)[2] if last and last in text else text
            return repr(behind[-24:]) if behind else "nothing"
    return ""


def _dropped(
    pair: PreferencePair, tokenizer: Any, sides: Sequence[Sequence[int]], start: int
) -> tuple[str, int, str, bool]:
    """What a chat template does not render: of the responses, of the prompt, the tools."""
    lost = [
        _missing(tokenizer, response, decoded(tokenizer, side[start:]))
        for response, side in zip((pair.chosen, pair.rejected), sides, strict=True)
    ]
    before = decoded(tokenizer, sides[0][:start])
    tools = any(name not in before for name in _tool_names(pair.tools))
    return max(lost, key=len), sum(map(bool, lost)), _missing(tokenizer, pair.prompt, before), tools


def _missing(tokenizer: Any, text: Text, written: str) -> str:
    """The longest line of the turns' contents, or a called function's name, that is not in the written text."""
    if isinstance(text, str):
        return ""
    there = _flat(written)
    wanted = [one.get("content") or "" for one in text] + [name for one in text for name in call_names(one)]
    lost = [content for content in wanted if _flat(content) not in there and _kept(tokenizer, content) not in there]
    lines = [line for content in lost for line in content.splitlines() if _flat(line) not in there]
    return _core(max((_flat(line) for line in lines or lost), key=len, default=""), there)


def _core(line: str, there: str, least: int = 4) -> str:
    """A line without what is there of its beginning and of its end, if that is more than a few characters."""
    first = bisect_left(range(len(line) + 1), True, key=lambda size: line[:size] not in there) - 1
    last = bisect_left(range(len(line) + 1), True, key=lambda size: line[len(line) - size :] not in there) - 1
    begin, end = (size if size >= least else 0 for size in (first, last))
    return line[begin : len(line) - end].strip() if begin + end < len(line) else line


def _kept(tokenizer: Any, text: str) -> str:
    """The text as the tokenizer keeps it: some write it in small letters or without accents."""
    return _flat(decoded(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"]))


def _tool_names(tools: Sequence[Any]) -> list[str]:
    functions = [one.get("function") or one for one in tools if isinstance(one, dict)]
    return [one["name"] for one in functions if isinstance(one, dict) and isinstance(one.get("name"), str)]


def _flat(text: str) -> str:
    return " ".join(text.split())
