"""Pairs as token ids, by TRL's rules, so that a pair has one id in every tool that follows them.

- A response begins where the tokens of the prompt and of prompt + response first differ (on either side, for both),
  never at ``len(tokenize(prompt))``: tokens may merge across the boundary.
- A plain response ends with the end-of-sequence token. A conversation ends as the chat template says, which reads the
  turns with all their keys, the tools and the template's own variables.
- ``max_length`` cuts each row of prompt + response: ``keep_start`` keeps its first tokens (the response loses its
  end), ``keep_end`` its last (the prompt loses its beginning).
- A conversation under a tokenizer without a chat template is written by ``FALLBACK_TEMPLATE``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dyn_probe.data.records import BadRow, PreferencePair, Skipped, Text
from dyn_probe.data.shared_start import common_prefix
from dyn_probe.data.token_checks import TokenChecks, token_checks
from dyn_probe.data.turns import calls
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
class EncodedRow:
    """Tokens of prompt and response; the response begins at ``start``."""

    ids: tuple[int, ...]
    start: int

    @property
    def marked(self) -> tuple[list[int], list[bool]]:
        """Token ids, and which of them are response."""
        return list(self.ids), [place >= self.start for place in range(len(self.ids))]


@dataclass(frozen=True)
class EncodedPair:
    """A pair as two rows of tokens, with its id, its text, and what was found in its tokens.

    ``win_probability`` is p(chosen is preferred) where the data gives one.
    """

    chosen: EncodedRow
    rejected: EncodedRow
    pair_id: str
    text: PreferencePair
    checks: TokenChecks = TokenChecks()  # noqa: RUF009
    win_probability: float | None = None


def encode_pairs(
    pairs: Sequence[PreferencePair],
    tokenizer: Any,
    max_length: int | None = None,
    truncation: str = "keep_start",
) -> tuple[list[EncodedPair], list[Skipped]]:
    """The pairs as tokens, in order, and those that cannot be trained on at this length or with this tokenizer.

    Args:
        tokenizer: a Hugging Face tokenizer.
        max_length: most tokens of prompt and response together; None: no limit.
        truncation: which end of a longer row stays (TRUNCATIONS).

    Raises:
        BadInput: unknown truncation.
    """
    if truncation not in TRUNCATIONS:
        raise BadInput(f"truncation must be {' or '.join(TRUNCATIONS)}; got {truncation!r}")
    encoded: dict[str, EncodedPair] = {}
    skipped: list[Skipped] = []
    for pair in pairs:
        try:
            found = encode_pair(pair, tokenizer, max_length, truncation)
            if found.pair_id in encoded:
                raise BadRow("a duplicate pair", f"the same pair as {encoded[found.pair_id].text.source}")
            encoded[found.pair_id] = found
        except BadRow as bad:
            skipped.append(bad.at(pair.source))
    return list(encoded.values()), skipped


def encode_pair(pair: PreferencePair, tokenizer: Any, max_length: int | None, truncation: str) -> EncodedPair:
    """One pair as tokens.

    Raises:
        BadRow: the chat template refuses it, or it cannot be trained on at this length.
    """
    alone = _ids(pair, (), tokenizer)
    sides = _ids(pair, pair.chosen, tokenizer), _ids(pair, pair.rejected, tokenizer)
    start = min(common_prefix(alone, sides[0]), common_prefix(alone, sides[1]))
    rows = _cut([EncodedRow(tuple(side), start) for side in sides], max_length, truncation)
    for row, side in zip(rows, sides, strict=True):
        if start >= len(side):
            raise BadRow("the response adds no token to the prompt", _unwritten(pair))
        check_row(row, max_length)
    if rows[0] == rows[1]:
        within = f" within {max_length}" if max_length else ""
        raise BadRow(f"chosen and rejected are the same tokens{within}")
    lost = [truncation == "keep_start" and len(row.ids) < len(side) for row, side in zip(rows, sides, strict=True)]
    checks = token_checks(pair, tokenizer, alone, sides, start, (rows[0].start < start, lost[0], lost[1]))
    name = pair_id(rows[0].marked, rows[1].marked)
    return EncodedPair(rows[0], rows[1], name, pair, checks, pair.win_probability)


def _ids(pair: PreferencePair, response: Text, tokenizer: Any) -> list[int]:
    """Token ids of the prompt alone (``response`` empty) or with its response."""
    if isinstance(pair.prompt, str):
        text = pair.prompt + (response if isinstance(response, str) else "")
        return _plain_ids(text, tokenizer, ended=bool(response))
    assert not isinstance(response, str)
    messages = [*pair.prompt, *response]
    options = {**pair.template_options, "add_generation_prompt": not response, "return_dict": False}
    if tokenizer.chat_template is None and (pair.tools or any(map(calls, messages))):
        raise BadRow(
            "the tokenizer has no chat template, and tools or tool calls need one",
            "name a model whose tokenizer has one (--model), or skip the tools with --columns ignore=tools",
        )
    try:
        if tokenizer.chat_template is None:
            text = tokenizer.apply_chat_template(messages, chat_template=FALLBACK_TEMPLATE, tokenize=False, **options)
            return _plain_ids(text, tokenizer, ended=False)
        return list(tokenizer.apply_chat_template(messages, tools=list(pair.tools) or None, tokenize=True, **options))
    except Exception as error:  # a template may raise anything, jinja's own errors included
        roles = ", ".join(str(message["role"]) for message in messages) or "no messages"
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadRow(f"the chat template rejects it: {said[:200]}", f"a conversation of roles {roles}") from error


def _plain_ids(text: str, tokenizer: Any, ended: bool) -> list[int]:
    """Ids of a text with the tokenizer's own beginning; with the end-of-sequence token at its end if ``ended``."""
    ids = list(tokenizer(text)["input_ids"])
    end = tokenizer.eos_token_id
    if not ended or end is None or (ids and ids[-1] == end):
        return ids
    return [*ids, end]


def _cut(rows: list[EncodedRow], max_length: int | None, truncation: str) -> list[EncodedRow]:
    """Both rows within the length. ``keep_end`` takes the same off both, so that they keep one prompt."""
    if max_length is None:
        return rows
    if truncation == "keep_start":
        return [EncodedRow(row.ids[:max_length], row.start) for row in rows]
    over = max(0, *(len(row.ids) - max_length for row in rows))
    return [EncodedRow(row.ids[over:], row.start - over) for row in rows]


def _unwritten(pair: PreferencePair) -> str:
    """Why a response may have no token."""
    roles = [one["role"] for one in pair.chosen if isinstance(one, dict)]
    return f"the chat template does not render turns of the role {roles[0]}" if roles else ""


def check_row(row: EncodedRow, max_length: int | None) -> None:
    """Refuse a row that the limit leaves without a response, or without anything before it.

    Raises:
        BadRow: says which.
    """
    if row.start >= len(row.ids):
        raise BadRow(f"the prompt leaves no room for a response in {max_length} tokens", f"it takes {row.start}")
    if row.start < 0 or (row.start == 0 and len(row.ids) == max_length):
        raise BadRow(f"the response fills all {max_length} tokens and leaves no room for the prompt")
    if row.start == 0:
        raise BadRow("there is no token before the response: it has no prompt")
