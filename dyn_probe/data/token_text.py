"""Tokens as text: what was measured is what is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dyn_probe.data.encoding import EncodedPair


def decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of some tokens, special ones by their names, nothing tidied up."""
    if not len(ids):
        return ""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def decoded_from(tokenizer: Any, ids: Sequence[int], start: int) -> str:
    """The text of the tokens from ``start`` on, as it stands behind those before: some tokenizers drop the space
    before a text's first word."""
    whole, before = decoded(tokenizer, ids), decoded(tokenizer, ids[:start])
    return whole[len(before) :] if whole.startswith(before) else decoded(tokenizer, ids[start:])


def measured_texts(pair: EncodedPair, tokenizer: Any) -> tuple[str, str, str]:
    """Prompt, chosen and rejected as they were measured.

    What a template strips is not in them, nor what ``max_length`` cut off, which is marked. Markers of a chat template
    are shown. Left away are the beginning-of-sequence token of the prompt and the end-of-sequence token of a response:
    every row has them.
    """
    chosen, rejected, checks = pair.chosen, pair.rejected, pair.checks
    begin = int(bool(chosen.ids) and chosen.ids[0] == getattr(tokenizer, "bos_token_id", None) and chosen.start > 0)
    prompt = decoded(tokenizer, chosen.ids[begin : chosen.start])
    sides = []
    for row, cut in ((chosen, checks.cut_chosen), (rejected, checks.cut_rejected)):
        last = len(row.ids) - 1
        ended = last > row.start and row.ids[last] == getattr(tokenizer, "eos_token_id", None)
        text = decoded_from(tokenizer, row.ids[:last] if ended else row.ids, row.start)
        sides.append(f"{text} ⟨cut at {len(row.ids)} tokens⟩" if cut else text)
    return ("⟨beginning cut⟩ " if checks.cut_prompt else "") + prompt, sides[0], sides[1]


def token_strings(tokenizer: Any, ids: list[int]) -> list[str]:
    """Each token as the text it stands for, its leading space included; the vocabulary's name for it where it is only
    part of a character."""
    return [_string(tokenizer, i, str(name)) for i, name in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True)]


def _string(tokenizer: Any, token: int, name: str) -> str:
    if name.startswith("▁"):  # sentencepiece decodes a lone token without its space
        return name.replace("▁", " ")
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    return name if not text or "\ufffd" in text else text
