"""Pairs as token ids, by TRL's rules, so that a pair has one id in every tool that follows them.

- A response begins where the tokens of the prompt and of prompt + response first differ (on either side, for both),
  never at ``len(tokenize(prompt))``: tokens may merge across the boundary.
- A plain response ends with the end-of-sequence token. A conversation ends as the chat template says.
- ``max_length`` cuts each row of prompt + response: ``keep_start`` keeps its first tokens (the response loses its
  end), ``keep_end`` its last (the prompt loses its beginning).
- A conversation under a tokenizer without a chat template is written by ``FALLBACK_TEMPLATE``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dyn_probe.data.prefix import common_prefix
from dyn_probe.data.records import PreferencePair, Skipped, Text
from dyn_probe.errors import BadInput
from dyn_probe.pairs import pair_id

FALLBACK_TEMPLATE = (
    "{% for message in messages %}{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ message['role'].capitalize() }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n' }}Assistant:{% endif %}"
)
"""``User: …``, ``Assistant: …`` and the end-of-sequence token, a line each."""

TRUNCATIONS = ("keep_start", "keep_end")


@dataclass(frozen=True)
class Row:
    """Tokens of prompt and response; the response begins at ``start``."""

    ids: tuple[int, ...]
    start: int

    @property
    def marked(self) -> tuple[list[int], list[bool]]:
        """Token ids, and which of them are response."""
        return list(self.ids), [place >= self.start for place in range(len(self.ids))]


@dataclass(frozen=True)
class EncodedPair:
    """A pair as two rows of tokens, with its id and its text."""

    chosen: Row
    rejected: Row
    pair_id: str
    text: PreferencePair


def encode_pairs(
    pairs: Sequence[PreferencePair],
    tokenizer: Any,
    max_length: int | None = None,
    truncation: str = "keep_start",
) -> tuple[list[EncodedPair], list[Skipped]]:
    """The pairs as tokens, in order, and those that cannot be trained on at this length.

    Args:
        tokenizer: a Hugging Face tokenizer.
        max_length: most tokens of prompt and response together; None: no limit.
        truncation: which end of a longer row stays (TRUNCATIONS).

    Raises:
        BadInput: unknown truncation, or a conversation that the chat template refuses.
    """
    if truncation not in TRUNCATIONS:
        raise BadInput(f"truncation must be {' or '.join(TRUNCATIONS)}; got {truncation!r}")
    encoded: dict[str, EncodedPair] = {}
    skipped: list[Skipped] = []
    for pair in pairs:
        rows = _cut(_rows(pair, tokenizer), max_length, truncation)
        name = pair_id(rows[0].marked, rows[1].marked)
        reason = next((why for row in rows if (why := _unusable(row, max_length))), None)
        if reason is None and rows[0] == rows[1]:
            reason = "chosen and rejected are the same tokens" + (f" within {max_length}" if max_length else "")
        if reason is None and name in encoded:
            reason = f"the same pair as {encoded[name].text.source}"
        if reason is not None:
            skipped.append(Skipped(pair.source, reason))
        else:
            encoded[name] = EncodedPair(rows[0], rows[1], name, pair)
    return list(encoded.values()), skipped


def _rows(pair: PreferencePair, tokenizer: Any) -> tuple[Row, Row]:
    """Both rows, uncut; they share the place where the response begins."""
    prompt = _ids(pair.prompt, (), tokenizer)
    chosen = _ids(pair.prompt, pair.chosen, tokenizer)
    rejected = _ids(pair.prompt, pair.rejected, tokenizer)
    start = min(common_prefix(prompt, chosen), common_prefix(prompt, rejected))
    return Row(tuple(chosen), start), Row(tuple(rejected), start)


def _ids(prompt: Text, response: Text, tokenizer: Any) -> list[int]:
    """Token ids of the prompt alone (``response`` empty) or with its response."""
    if isinstance(prompt, str):
        text = prompt + (response if isinstance(response, str) else "")
        return _plain_ids(text, tokenizer, ended=bool(response))
    assert not isinstance(response, str)
    messages = [*prompt, *response]
    options = {"add_generation_prompt": not response, "return_dict": False}
    try:
        if tokenizer.chat_template is None:
            text = tokenizer.apply_chat_template(messages, chat_template=FALLBACK_TEMPLATE, tokenize=False, **options)
            return _plain_ids(text, tokenizer, ended=False)
        return list(tokenizer.apply_chat_template(messages, tokenize=True, **options))
    except Exception as error:  # a template may raise anything, jinja's own errors included
        roles = ", ".join(message["role"] for message in messages) or "no messages"
        raise BadInput(f"the tokenizer's chat template refuses a conversation of roles {roles}: {error}") from error


def _plain_ids(text: str, tokenizer: Any, ended: bool) -> list[int]:
    """Ids of a text with the tokenizer's own beginning; with the end-of-sequence token at its end if ``ended``."""
    ids = list(tokenizer(text)["input_ids"])
    end = tokenizer.eos_token_id
    if not ended or end is None or (ids and ids[-1] == end):
        return ids
    return [*ids, end]


def _cut(rows: tuple[Row, Row], max_length: int | None, truncation: str) -> list[Row]:
    """Both rows within the length. ``keep_end`` takes the same off both, so that they keep one prompt."""
    if max_length is None:
        return list(rows)
    if truncation == "keep_start":
        return [Row(row.ids[:max_length], row.start) for row in rows]
    over = max(0, *(len(row.ids) - max_length for row in rows))
    return [Row(row.ids[over:], row.start - over) for row in rows]


def _unusable(row: Row, max_length: int | None) -> str | None:
    """Why a row cannot be trained on; None if it can."""
    if row.start >= len(row.ids):
        return f"the prompt takes {row.start} tokens and leaves no room for a response in {max_length}"
    if row.start < 0 or (row.start == 0 and len(row.ids) == max_length):
        return f"the response fills all {max_length} tokens and leaves none of the prompt"
    if row.start == 0:
        return "no token stands before the response: it has no prompt"
    return None
