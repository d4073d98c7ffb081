"""What the tokens of a data set are not as one would think, counted, each fact in one sentence.

The console, ``run.json`` and the report print the same sentences. A fact is a row of FACTS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dyn_probe.data.encoding import EncodedPair
from dyn_probe.data.records import Text
from dyn_probe.data.splitting import prompt_taken_off
from dyn_probe.data.turns import calls
from dyn_probe.data.wording import counted, share, verb

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
        f"{share(found, pairs, 'prompt')} {verb('begin', found)} with two {tokenizer.bos_token}: the text has one "
        "and the tokenizer adds another; remove it from the text"
    )
    return Fact("begun_twice", len(found), len(pairs), sentence) if found else None


def left_out(pairs: Sequence[EncodedPair], limit: Limit, tokenizer: Any) -> Fact | None:
    """Prompts that the template renders differently when a response follows."""
    found = [pair for pair in pairs if pair.checks.left_out]
    sentence = (
        f"the prompt of {share(found, pairs)} is not a prefix of prompt + response (in tokens): its end "
        f"{example(found, 'left_out')} is left out of the training sequence, because the chat template renders the "
        f"prompt differently when a response follows{_roles(found)}"
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
        f"the prompt of {share(found, pairs)} is not a prefix of prompt + response (in tokens): its end "
        f"{example(found, 'merged')} merges into the response's first token, which counts as response"
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
        ends = list(dict.fromkeys(pair.checks.open_end for pair in found))
        others = f" (or {counted(len(ends) - 1, 'other end')})" if len(ends) > 1 else ""
        why = f"the chat template ends them with {ends[0]}{others}, not with {tokenizer.eos_token}"
    has = "has" if len(found) == 1 else "have"
    sentence = f"{share(found, pairs)} {has} responses without an end-of-sequence token: {why}"
    return Fact("open_end", len(found), len(pairs), sentence, "note")


def dropped_responses(pairs: Sequence[EncodedPair], limit: Limit, tokenizer: Any) -> Fact | None:
    """Texts of responses that the chat template does not render."""
    found = [pair for pair in pairs if pair.checks.dropped_responses]
    number = sum(pair.checks.dropped_responses for pair in found)
    sentence = (
        f"the chat template leaves out part of {counted(number, 'response')} of {share(found, pairs)}, such as "
        f"{example(found, 'dropped_response')}: it is neither trained on nor shown"
    )
    return Fact("dropped_responses", len(found), len(pairs), sentence) if found else None


def dropped_prompts(pairs: Sequence[EncodedPair], limit: Limit, tokenizer: Any) -> Fact | None:
    """Texts of prompts that the chat template does not render."""
    found = [pair for pair in pairs if pair.checks.dropped_prompt]
    sentence = (
        f"the chat template leaves out part of the prompt of {share(found, pairs)}, such as "
        f"{example(found, 'dropped_prompt')}: the model does not see it"
    )
    return Fact("dropped_prompts", len(found), len(pairs), sentence) if found else None


def dropped_tools(pairs: Sequence[EncodedPair], limit: Limit, tokenizer: Any) -> Fact | None:
    """Tools that the chat template does not render."""
    found = [pair for pair in pairs if pair.checks.dropped_tools]
    sentence = f"the chat template does not render the tools of {share(found, pairs)}: the model does not see them"
    return Fact("dropped_tools", len(found), len(pairs), sentence) if found else None


def user_turns(pairs: Sequence[EncodedPair], limit: Limit, tokenizer: Any) -> Fact | None:
    """Responses that begin with a turn of the user, which is trained on like the rest of them."""
    found = [pair for pair in pairs if any(_first_role(side) in ("user", "system") for side in _sides(pair))]
    sentence = (
        f"a response of {share(found, pairs)} begins with a user or system turn, which is trained on as response; move "
        "it into the prompt"
    )
    return Fact("user_turns", len(found), len(pairs), sentence) if found else None


def echoes(pairs: Sequence[EncodedPair], limit: Limit, tokenizer: Any) -> Fact | None:
    """Texts of which both sides begin with the prompt, where most pairs of the file do not."""
    found = [pair for pair in pairs if _repeats(pair.text.prompt, *_sides(pair))]
    sentence = f"both responses of {share(found, pairs)} begin with the prompt, which is kept twice, as written"
    return Fact("echoes", len(found), len(pairs), sentence, "note") if found else None


def null_fields(pairs: Sequence[EncodedPair], limit: Limit, tokenizer: Any) -> Fact | None:
    """Calls or tools with null fields, which a Parquet struct writes where functions differ."""
    found = [pair for pair in pairs if _has_null(pair.text.tools) or any(map(_null_call, _sides(pair)))]
    sentence = (
        f"the tools or calls of {share(found, pairs)} contain null fields (a Parquet struct adds them where "
        "functions differ), which the chat template may render; store them as JSON text"
    )
    return Fact("null_fields", len(found), len(pairs), sentence, "note") if found else None


def _sides(pair: EncodedPair) -> tuple[Text, Text]:
    return pair.text.chosen, pair.text.rejected


def _first_role(text: Text) -> str:
    return "" if isinstance(text, str) or not text else str(text[0]["role"])


def _repeats(prompt: Text, chosen: Text, rejected: Text) -> bool:
    texts = isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str)
    return texts and prompt_taken_off(prompt, chosen, rejected) is not None  # type: ignore[arg-type]


def _null_call(text: Text) -> bool:
    return not isinstance(text, str) and any(_has_null(calls(one)) for one in text)


def _has_null(value: Any) -> bool:
    """Whether a null stands anywhere within a value."""
    if isinstance(value, Mapping):
        return any(one is None or _has_null(one) for one in value.values())
    return isinstance(value, list | tuple) and any(map(_has_null, value))


def empty_prompts(pairs: Sequence[EncodedPair], limit: Limit, tokenizer: Any) -> Fact | None:
    """Empty prompts in front of responses that begin alike: the beginning is trained as part of both."""
    found = [pair for pair in pairs if pair.text.prompt == "" and _begin_alike(pair.text.chosen, pair.text.rejected)]
    if not found:
        return None
    sentence = (
        f"{share(found, pairs)} {'has' if len(found) == 1 else 'have'} an empty prompt, and both responses "
        "begin with the same words, which are trained as responses; without the empty column they are the prompt"
    )
    return Fact("empty_prompts", len(found), len(pairs), sentence)


def _begin_alike(chosen: Text, rejected: Text, words: int = 3) -> bool:
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        return False
    first, other = chosen.split()[:words], rejected.split()[:words]
    return len(first) == words and first == other


FACTS: tuple[Callable[[Sequence[EncodedPair], Limit, Any], Fact | None], ...] = (
    cut, empty_prompts, begun_twice, left_out, dropped_responses, dropped_prompts, dropped_tools, user_turns, merged,
    open_end, echoes, null_fields,
)  # fmt: skip


def example(found: Sequence[EncodedPair], name: str) -> str:
    """The first pair's text of that check, quoted."""
    text = getattr(found[0].checks, name) if found else ""
    return repr(text if len(text) <= 50 else f"{text[:49]}…")
