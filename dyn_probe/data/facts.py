"""What the tokens of a data set are not as one would think, counted, each fact in one sentence.

The console, ``run.json`` and the report print the same sentences. A fact is a row of FACTS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dyn_probe.data.encoding import EncodedPair
from dyn_probe.data.records import Skipped

LOUD = 0.1
"""Share of left-out rows above which it is said loudly."""

KNOWN_ROLES = ("system", "developer", "user", "assistant", "tool")
"""Roles that chat templates know."""


@dataclass(frozen=True)
class Limit:
    """Most tokens of a row, which end stays, and whether the model's positions set it and not ``--max-length``."""

    tokens: int | None = None
    truncation: str = "keep_start"
    of_model: bool = False


@dataclass(frozen=True)
class Fact:
    """One finding: its name, how many of how many pairs, its sentence, and whether it is a ``warning`` or a
    ``note``."""

    name: str
    count: int
    of: int
    sentence: str
    level: str = "warning"


def facts_of(pairs: Sequence[EncodedPair], limit: Limit, tokenizer: Any) -> list[Fact]:
    """Every finding that some pair has, in the order of FACTS."""
    return [fact for find in FACTS if (fact := find(pairs, limit, tokenizer)) is not None]


def cut(pairs: Sequence[EncodedPair], limit: Limit, tokenizer: Any) -> Fact | None:
    """Responses that lost their end, or prompts that lost their beginning, to the limit."""
    ends = sum(pair.checks.cut_chosen + pair.checks.cut_rejected for pair in pairs)
    found = [pair for pair in pairs if pair.checks.cut_chosen or pair.checks.cut_rejected or pair.checks.cut_prompt]
    if not found:
        return None
    lost = f"the end of {counted(ends, 'response')} (no end-of-sequence token)" if ends else "the prompt's beginning"
    longest = max(max(pair.checks.whole) for pair in found)
    knob = "the model has no more positions" if limit.of_model else f"raise --max-length (the longest has {longest:,})"
    sentence = (
        f"{share(found, pairs)} {'is' if len(found) == 1 else 'are'} longer than {limit.tokens} tokens and "
        f"{verb('lose', found)} {lost}; {knob}"
    )
    return Fact("cut", len(found), len(pairs), sentence)


def begun_twice(pairs: Sequence[EncodedPair], limit: Limit, tokenizer: Any) -> Fact | None:
    """Prompts that begin with two beginning-of-sequence tokens."""
    found = [pair for pair in pairs if pair.checks.begun_twice]
    sentence = (
        f"{share(found, pairs, 'prompt')} {verb('begin', found)} with two {tokenizer.bos_token}: the text brings one, "
        "the tokenizer adds another; take it out of the text"
    )
    return Fact("begun_twice", len(found), len(pairs), sentence) if found else None


def left_out(pairs: Sequence[EncodedPair], limit: Limit, tokenizer: Any) -> Fact | None:
    """Prompts that the template writes otherwise when a response follows."""
    found = [pair for pair in pairs if pair.checks.left_out]
    sentence = (
        f"the prompt of {share(found, pairs)} is no prefix of prompt + response in tokens: "
        f"{example(found, 'left_out')} at its end is not in what is trained on, since the chat template writes the "
        f"prompt otherwise when a response follows{_roles(found)}"
    )
    return Fact("left_out", len(found), len(pairs), sentence) if found else None


def _roles(found: Sequence[EncodedPair]) -> str:
    """Roles that a template may not know, and what they are called in most."""
    turns = [one for pair in found for one in (*pair.text.prompt, *pair.text.chosen) if isinstance(one, dict)]
    odd = [str(role) for role in dict.fromkeys(one["role"] for one in turns) if role not in KNOWN_ROLES]
    return f"; it may not know the roles {' and '.join(odd)} (wanted user and assistant)" if odd else ""


def merged(pairs: Sequence[EncodedPair], limit: Limit, tokenizer: Any) -> Fact | None:
    """Prompts whose last characters are part of the response's first token."""
    found = [pair for pair in pairs if pair.checks.merged]
    sentence = (
        f"the prompt of {share(found, pairs)} is no prefix of prompt + response in tokens: its end "
        f"{example(found, 'merged')} merges with the response's first token, which counts as response"
    )
    return Fact("merged", len(found), len(pairs), sentence, "note") if found else None


def open_end(pairs: Sequence[EncodedPair], limit: Limit, tokenizer: Any) -> Fact | None:
    """Responses that the chat template, or a tokenizer without such a token, leaves without an end."""
    found = [pair for pair in pairs if pair.checks.open_end]
    if not found:
        return None
    if getattr(tokenizer, "eos_token_id", None) is None:
        why = "the tokenizer has none"
    else:
        why = f"the chat template ends them with {found[0].checks.open_end}, not with {tokenizer.eos_token}"
    has = "has" if len(found) == 1 else "have"
    sentence = f"{share(found, pairs)} {has} responses without an end-of-sequence token: {why}"
    return Fact("open_end", len(found), len(pairs), sentence, "note")


def dropped_responses(pairs: Sequence[EncodedPair], limit: Limit, tokenizer: Any) -> Fact | None:
    """Texts of responses that the chat template does not write."""
    found = [pair for pair in pairs if pair.checks.dropped_responses]
    number = sum(pair.checks.dropped_responses for pair in found)
    sentence = (
        f"the chat template leaves out part of {counted(number, 'response')} of {share(found, pairs)}, such as "
        f"{example(found, 'dropped_response')}: it is neither trained on nor shown"
    )
    return Fact("dropped_responses", len(found), len(pairs), sentence) if found else None


def dropped_prompts(pairs: Sequence[EncodedPair], limit: Limit, tokenizer: Any) -> Fact | None:
    """Texts of prompts that the chat template does not write."""
    found = [pair for pair in pairs if pair.checks.dropped_prompt]
    sentence = (
        f"the chat template leaves out part of the prompt of {share(found, pairs)}, such as "
        f"{example(found, 'dropped_prompt')}: the model does not see it"
    )
    return Fact("dropped_prompts", len(found), len(pairs), sentence) if found else None


def dropped_tools(pairs: Sequence[EncodedPair], limit: Limit, tokenizer: Any) -> Fact | None:
    """Tools that the chat template does not write."""
    found = [pair for pair in pairs if pair.checks.dropped_tools]
    sentence = f"the chat template does not write the tools of {share(found, pairs)}: the model does not see them"
    return Fact("dropped_tools", len(found), len(pairs), sentence) if found else None


FACTS: tuple[Callable[[Sequence[EncodedPair], Limit, Any], Fact | None], ...] = (
    cut, begun_twice, left_out, dropped_responses, dropped_prompts, dropped_tools, merged, open_end,
)  # fmt: skip


def left_out_rows(skipped: Sequence[Skipped], rows: int) -> tuple[int, bool]:
    """Number of rows that are left out against expectation, and whether they are a loud share of all."""
    number = sum(not row.expected for row in skipped)
    return number, number > LOUD * rows


def lengths(pairs: Sequence[EncodedPair]) -> dict[str, tuple[int, int, int]]:
    """Part → (median, 95 %, largest) number of tokens, before any cut."""
    sizes = {
        "prompt": [pair.checks.prompt for pair in pairs],
        "chosen": [pair.checks.whole[0] - pair.checks.prompt for pair in pairs],
        "rejected": [pair.checks.whole[1] - pair.checks.prompt for pair in pairs],
        "prompt + longer response": [max(pair.checks.whole) for pair in pairs],
    }
    return {part: _spread(values) for part, values in sizes.items()}


def _spread(values: Sequence[int]) -> tuple[int, int, int]:
    middle, high = np.quantile(values, (0.5, 0.95), method="inverted_cdf")
    return int(middle), int(high), max(values)


def share(found: Sequence[object], pairs: Sequence[object], noun: str = "pair") -> str:
    """``3 of 10 pairs``."""
    return f"{len(found):,} of {counted(len(pairs), noun)}"


def counted(number: int, noun: str) -> str:
    """``1 pair``, ``6 pairs``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def verb(stem: str, found: Sequence[object]) -> str:
    """The verb for so many: ``begins`` for one, ``begin`` for more."""
    return stem + ("s" if len(found) == 1 else "")


def example(found: Sequence[EncodedPair], name: str) -> str:
    """The first pair's text of that check, quoted."""
    text = getattr(found[0].checks, name) if found else ""
    return repr(text if len(text) <= 50 else f"{text[:49]}…")
