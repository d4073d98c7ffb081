"""Prompt and responses apart: what both sides repeat of the prompt stands once, as TRL has it where it is explicit."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dyn_probe.data.records import BadRow, Message, Text
from dyn_probe.data.shared_start import common_prefix
from dyn_probe.data.turns import as_turns, turn_key

Parts = tuple[Text, Text, Text]
"""Prompt, chosen and rejected, each without the others."""
Turns = tuple[Message, ...]
MARKERS = re.compile(r"<[^<>\s]*>|\[/?\w+\]|#+|\b(?:human|user|gpt|assistant|system|instruction|response)\b:?", re.I)
"""What stands around turns that are written in one text: ``<|user|>``, ``[INST]``, ``Human:``, ``### Response:``."""


def separate(prompt: Text | None, chosen: Text, rejected: Text) -> Parts:
    """The three parts of a pair.

    Three texts stay texts; where one of them is a conversation, all are: a text prompt becomes the user's turn, a
    text response the assistant's. Without a prompt it is what both sides begin with: characters of texts, whole turns
    of conversations.

    Raises:
        BadRow: the sides have no prompt in common, or do not fit each other or the prompt.
    """
    if isinstance(chosen, str) and isinstance(rejected, str) and not isinstance(prompt, tuple):
        return split_texts(chosen, rejected) if prompt is None else (prompt, chosen, rejected)
    if isinstance(prompt, tuple):
        return _explicit(prompt, as_turns(chosen, "assistant"), as_turns(rejected, "assistant"))
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise BadRow("chosen and rejected must both be texts or both be lists of messages", of_file=True)
    return _implicit(chosen, rejected) if prompt is None else _with_text(prompt, chosen, rejected)


def split_texts(chosen: str, rejected: str) -> tuple[str, str, str]:
    """The shared beginning is the prompt; a space at its end goes to the responses, where tokens begin."""
    length = max(min(common_prefix(chosen, rejected), len(chosen) - 1, len(rejected) - 1), 0)
    if chosen[max(length - 1, 0) : length] == " ":
        length -= 1
    return chosen[:length], chosen[length:], rejected[length:]


def shared_turns(chosen: Turns, rejected: Turns) -> int:
    """Number of turns that both begin with; at least one is left to each as its response."""
    same = common_prefix([turn_key(one) for one in chosen], [turn_key(one) for one in rejected])
    return max(min(same, len(chosen) - 1, len(rejected) - 1), 0)


def _implicit(chosen: Turns, rejected: Turns) -> Parts:
    shared = shared_turns(chosen, rejected)
    if not shared:
        raise BadRow("chosen and rejected share no first turn, and there is no prompt")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _explicit(prompt: Turns, chosen: Turns, rejected: Turns) -> Parts:
    """A prompt of turns: what the sides repeat of it is taken off them."""
    own = _repeated([turn_key(one) for one in prompt], [turn_key(one) for one in chosen])
    if own == len(chosen) > 0:  # the column is the chosen conversation with its answer, not the prompt
        rest = prompt[: len(prompt) - own]
        return _explicit(rest, chosen, rejected) if rest else _implicit(chosen, rejected)
    other = _repeated([turn_key(one) for one in prompt], [turn_key(one) for one in rejected])
    if own != other:
        which = ("chosen", "rejected")[other > own]
        raise BadRow(f"{which} repeats the prompt's turns and the other side does not")
    if own:
        return prompt, chosen[own:], rejected[own:]
    shared = shared_turns(chosen, rejected) if chosen and chosen[0]["role"] in ("user", "system") else 0
    end = _found([turn_key(one) for one in prompt], [turn_key(one) for one in chosen[:shared]])
    return (chosen[:end], chosen[end:], rejected[end:]) if end else (prompt, chosen, rejected)


def _repeated(prompt: Sequence[object], side: Sequence[object]) -> int:
    """How many of the prompt's last turns the side begins with."""
    sizes = range(min(len(prompt), len(side)), 0, -1)
    return next((size for size in sizes if prompt[len(prompt) - size :] == side[:size]), 0)


def _found(wanted: Sequence[object], turns: Sequence[object]) -> int:
    """Where ``wanted`` ends within ``turns``; 0 if it is not in them."""
    ends = range(len(turns), len(wanted) - 1, -1)
    return next((end for end in ends if turns[end - len(wanted) : end] == wanted), 0)


def _with_text(prompt: str, chosen: Turns, rejected: Turns) -> Parts:
    """A text prompt beside conversations: one of their shared turns, or the user's turn before them."""
    shared = shared_turns(chosen, rejected)
    turns = chosen[:shared]
    if not prompt.strip() or repeats(prompt, turns):
        return _implicit(chosen, rejected)
    if chosen and rejected and {chosen[0]["role"], rejected[0]["role"]} & {"user", "system"}:
        raise BadRow(
            "the prompt is none of the turns that chosen and rejected begin with, which have a prompt of their own",
            "keep one of the two",
            of_file=True,
        )
    return ({"role": "user", "content": prompt}, *turns), chosen[shared:], rejected[shared:]


def repeats(prompt: str, turns: Turns) -> bool:
    """Whether a text prompt and shared turns say the same: it is one of the turns, part of what the user says there
    (three words or more), or all of the turns written in one text, with names of roles and markers between them. White
    space does not count."""
    text = _flat(prompt)
    said = [_flat(one.get("content") or "") for one in turns]
    asked = [one for one, turn in zip(said, turns, strict=True) if turn["role"] in ("user", "system")]
    if text in said or (len(text.split()) >= 3 and any(text in one for one in asked)):
        return True
    return bool(said) and _bare(text) == _bare(" ".join(said))


def _bare(text: str) -> str:
    """A text without names of roles, markers and white space."""
    return "".join(MARKERS.sub(" ", text).split())


def _flat(text: str) -> str:
    return " ".join(text.split())


def prompt_taken_off(prompt: str, chosen: str, rejected: str) -> tuple[str, str, str] | None:
    """The three texts with the prompt once, where both sides begin with it; None where they do not.

    White space around the prompt may differ: then the prompt is taken as the sides write it.
    """
    if not prompt.strip():
        return None
    if chosen.startswith(prompt) and rejected.startswith(prompt):
        return prompt, chosen[len(prompt) :], rejected[len(prompt) :]
    ends = [len(side) - len(side.lstrip()) + len(prompt.strip()) for side in (chosen, rejected)]
    begin = chosen[: ends[0]]
    same = ends[0] == ends[1] and begin == rejected[: ends[1]] and begin.strip() == prompt.strip()
    return (begin, chosen[ends[0] :], rejected[ends[1] :]) if same else None
