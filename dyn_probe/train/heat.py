"""The token heat map of one pair under a named model, as ``dyn-probe heatmap MODEL`` computes it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from dyn_probe.errors import BadInput
from dyn_probe.gram.tokens import token_gram
from dyn_probe.token_analysis import TokenHeat, row_number
from dyn_probe.train.batches import collate
from dyn_probe.train.data import load_pairs
from dyn_probe.train.encode import EncodedPair, encode_pairs
from dyn_probe.train.models import load_model, pad_token
from dyn_probe.train.records import Skipped, listed
from dyn_probe.train.token_rows import token_strings


def pair_heat(
    model: str,
    data: str,
    pair: str = "0",
    params: str = "all",
    *,
    max_length: int = 512,
    dtype: str = "float32",
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> TokenHeat:
    """Load model and data and compute one pair's chosen-against-rejected token Gram.

    Args:
        model: as ``record --model``.
        data: as ``record --data``.
        pair: its number among the rows of the data from 0, the pair's id, or the beginning of one.
        params: ``all``, ``head``, ``last-block``, or a regular expression on parameter names.
        max_length: most tokens of prompt and response together.
        progress: called with ``(tiles done, tiles in all)``.
        say: called with lines of text: which pair was selected, which rows were skipped.

    Raises:
        BadInput: model, data, pair or parameters cannot be found.
    """
    texts, unread = load_pairs(data)
    network, tokenizer = load_model(model, dtype=dtype, device=device)
    encoded, unusable = encode_pairs(texts, tokenizer, max_length)
    skipped = [*unread, *unusable]
    if not encoded:
        raise BadInput(f"no pair of {data} can be used: {listed(skipped)}")
    found = find_pair(encoded, pair, skipped)
    say(f"pair {found.pair_id} ({found.text.source})")
    if skipped:
        say(f"{len(skipped)} rows of the data were skipped: {listed(skipped, 3)}")
    batch = collate([found], pad_token(tokenizer)).to(next(network.parameters()).device)
    gram = token_gram(network, batch, params=params, progress=progress)
    chosen, rejected = (token_strings(tokenizer, ids.tolist()) for ids in (gram.tokens_chosen, gram.tokens_rejected))
    inner, cosine = (values.cpu().double().numpy() for values in (gram.chosen_rejected, gram.cosine))
    return TokenHeat(0, found.pair_id, tuple(chosen), tuple(rejected), inner, cosine)


def find_pair(pairs: Sequence[EncodedPair], name: str, skipped: Sequence[Skipped] = ()) -> EncodedPair:
    """The pair of that number among the rows of the data, skipped ones counted; of that id; or whose id begins so.

    Raises:
        BadInput: none or several, or a skipped row; says what there is.
    """
    rows = data_rows(pairs, skipped)
    number = row_number(name)
    if number is not None and number < len(rows):
        row = rows[number]
        if isinstance(row, Skipped):
            raise BadInput(
                f"--pair {name} is a row that cannot be used ({listed([row])}); write another number, or an id"
            )
        return row
    starting = [one for one in pairs if name and one.pair_id.startswith(name)]
    if len(starting) == 1:
        return starting[0]
    several = ", ".join(one.pair_id for one in (starting or pairs)[:3])
    raise BadInput(
        f"--pair {name!r} matches {len(starting) or 'no'} pairs; write a number from 0 to {len(rows) - 1} or an id, "
        f"for example {several}"
    )


def data_rows(pairs: Sequence[EncodedPair], skipped: Sequence[Skipped]) -> list[EncodedPair | Skipped]:
    """Used and skipped rows in the order of the data: that of the number at the end of their sources."""
    rows: list[EncodedPair | Skipped] = [*pairs, *skipped]
    if not skipped:
        return rows
    return sorted(rows, key=lambda row: _place(row.source if isinstance(row, Skipped) else row.text.source))


def _place(source: str) -> int:
    number = re.search(r"(\d+)\D*$", source)
    return int(number[1]) if number else -1
