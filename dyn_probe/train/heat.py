"""The token heat map of one pair under a named model, as ``dyn-probe heatmap MODEL`` computes it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from dyn_probe.data.collating import collate
from dyn_probe.data.encoding import EncodedPair
from dyn_probe.data.inspect import fitting_limit
from dyn_probe.data.models import load_model, pad_token, position_limit
from dyn_probe.data.prepared import Reading, prepare_pairs
from dyn_probe.data.records import Skipped, listed
from dyn_probe.data.token_text import token_strings
from dyn_probe.data.wording import counted
from dyn_probe.engine.tokens import token_gram
from dyn_probe.errors import BadInput
from dyn_probe.token_analysis import TokenHeat, row_number


def pair_heat(
    model: str,
    data: str,
    pair: str = "0",
    params: str = "all",
    *,
    columns: str = "",
    max_length: int = 1024,
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
        columns: as ``record --columns``.
        max_length: most tokens of prompt and response together.
        progress: called with ``(tiles done, tiles in all)``.
        say: called with lines of text: which pair was selected, which rows were skipped.

    Raises:
        BadInput: model, data, pair or parameters cannot be found.
    """
    network, tokenizer = load_model(model, dtype=dtype, device=device)
    limit = fitting_limit(max_length, "keep_start", position_limit(network.config))
    prepared = prepare_pairs(data, tokenizer, limit, Reading(columns))
    skipped = prepared.skipped
    found = find_pair(prepared.pairs, pair, skipped)
    say(f"pair {found.pair_id} ({found.text.source})")
    if skipped:
        verb = "is" if len(skipped) == 1 else "are"
        say(f"{counted(len(skipped), 'row')} of the data {verb} left out: {listed(skipped)}")
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
