"""The token heat map of one pair under a model by name: what ``dyn-probe heatmap MODEL`` computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dyn_probe.errors import BadInput
from dyn_probe.gram.tokens import token_gram
from dyn_probe.token_analysis import TokenHeat
from dyn_probe.train.batches import collate
from dyn_probe.train.data import load_pairs
from dyn_probe.train.encode import EncodedPair, encode_pairs
from dyn_probe.train.models import load_model, pad_token
from dyn_probe.train.records import listed
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
) -> TokenHeat:
    """Load model and data and compute one pair's chosen-against-rejected token Gram.

    Args:
        model: as ``record --model``.
        data: as ``record --data``.
        pair: the pair's id, the beginning of one, or its number in the data from 0.
        params: ``all``, ``head``, ``last-block``, or a regular expression on parameter names.
        max_length: most tokens of prompt and response together.
        progress: called with ``(tiles done, tiles in all)``.

    Raises:
        BadInput: model, data, pair or parameters are not there.
    """
    texts, skipped = load_pairs(data)
    network, tokenizer = load_model(model, dtype=dtype, device=device)
    encoded, more = encode_pairs(texts, tokenizer, max_length)
    if not encoded:
        raise BadInput(f"no pair of {data} can be used: {listed([*skipped, *more])}")
    found = find_pair(encoded, pair)
    batch = collate([found], pad_token(tokenizer)).to(next(network.parameters()).device)
    gram = token_gram(network, batch, params=params, progress=progress)
    chosen, rejected = (token_strings(tokenizer, ids.tolist()) for ids in (gram.tokens_chosen, gram.tokens_rejected))
    inner, cosine = (values.cpu().double().numpy() for values in (gram.chosen_rejected, gram.cosine))
    return TokenHeat(0, found.pair_id, tuple(chosen), tuple(rejected), inner, cosine)


def find_pair(pairs: Sequence[EncodedPair], name: str) -> EncodedPair:
    """The pair of that id, whose id begins so, or of that number.

    Raises:
        BadInput: none or several; says what there is.
    """
    exact = [one for one in pairs if one.pair_id == name]
    if exact:
        return exact[0]
    if name.isascii() and name.isdigit() and int(name) < len(pairs):
        return pairs[int(name)]
    starting = [one for one in pairs if name and one.pair_id.startswith(name)]
    if len(starting) == 1:
        return starting[0]
    several = ", ".join(one.pair_id for one in (starting or pairs)[:3])
    raise BadInput(
        f"--pair {name!r} names {len(starting) or 'no'} pairs; write a number from 0 to {len(pairs) - 1} or an id, "
        f"for example {several}"
    )
