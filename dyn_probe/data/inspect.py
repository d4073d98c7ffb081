"""What would be trained, before anything is: ``dyn-probe data`` as plain data."""

from __future__ import annotations

from typing import Any

from dyn_probe.data.encoding import EncodedPair, EncodedRow
from dyn_probe.data.models import load_tokenizer
from dyn_probe.data.prepared import PreparedPairs, Reading, lengths, prepare_pairs
from dyn_probe.data.saying import fact_lines, left_out_lines, read_as
from dyn_probe.data.token_facts import Limit
from dyn_probe.data.token_text import token_strings

SHOWN = 3
"""Pairs that are shown token by token."""


def inspect_data(
    name: str,
    model: str = "built-in",
    *,
    reading: Reading | None = None,
    max_length: int = 1024,
    truncation: str = "keep_start",
    pairs: int = SHOWN,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """What ``record`` would train on, as plain data: how the columns are read, what is left out and why, lengths,
    what is to be known about the tokens, and a few pairs token by token.

    Args:
        name, model: as ``record --data`` and ``--model``; of the model only the tokenizer and the configuration are
            loaded.
        max_length: most tokens of prompt and response together, unless the model has fewer positions.
        pairs: how many pairs to show.

    Raises:
        BadInput: the data or the tokenizer cannot be read, or no row can be used.
    """
    tokenizer, positions = load_tokenizer(model, trust_remote_code)
    data = prepare_pairs(name, tokenizer, fitting_limit(max_length, truncation, positions), reading)
    return {
        "name": name,
        "model": model,
        "template": getattr(tokenizer, "chat_template", None) is not None,
        "conversations": sum(pair.text.conversational for pair in data.pairs),
        "shape": data.read.shape,
        "columns": dict(data.read.columns),
        "read_as": read_as(data.read),
        "not_read": list(data.read.unread),
        "rows": data.read.rows,
        "pairs": len(data.pairs),
        "limit": {"tokens": data.limit.tokens, "truncation": truncation, "of_model": data.limit.of_model},
        "lengths": lengths(data.pairs),
        "facts": fact_lines(data),
        "left_out": left_out_lines(data),
        "shown": [tokens_of(pair, tokenizer) for pair in chosen_examples(data, pairs)],
    }


def fitting_limit(max_length: int, truncation: str, positions: int | None) -> Limit:
    """``max_length``, but no more than the model's positions."""
    if positions is not None and positions < max_length:
        return Limit(positions, truncation, of_model=True)
    return Limit(max_length, truncation)


def chosen_examples(data: PreparedPairs, number: int) -> list[EncodedPair]:
    """The first pair, then one of every fact that no pair before has, then pairs spread over the data."""
    checked = ("cut_chosen", "cut_prompt", "begun_twice", "left_out", "dropped_response", "dropped_prompt")
    found = data.pairs[:1]
    for name in checked:
        if not any(getattr(pair.checks, name) for pair in found):
            found += [pair for pair in data.pairs if getattr(pair.checks, name)][:1]
    spread = [data.pairs[i * (len(data.pairs) - 1) // max(1, number - 1)] for i in range(number)]
    every = {pair.pair_id: pair for pair in [*found, *spread]}
    order = {pair.pair_id: place for place, pair in enumerate(data.pairs)}
    return sorted(list(every.values())[:number], key=lambda pair: order[pair.pair_id])


def tokens_of(pair: EncodedPair, tokenizer: Any) -> dict[str, Any]:
    """One pair token by token: the prompt once, both responses, and what was cut."""
    checks = pair.checks
    return {
        "pair_id": pair.pair_id,
        "source": pair.text.source,
        "prompt": token_strings(tokenizer, list(pair.chosen.ids[: pair.chosen.start])),
        "chosen": _response(pair.chosen, tokenizer),
        "rejected": _response(pair.rejected, tokenizer),
        "cut": {"prompt": checks.cut_prompt, "chosen": checks.cut_chosen, "rejected": checks.cut_rejected},
    }


def _response(row: EncodedRow, tokenizer: Any) -> list[str]:
    return token_strings(tokenizer, list(row.ids[row.start :]))
