"""The engine: exact inner products of per-response gradients, from the backward itself. One file per kind of use."""

from dyn_probe.engine.passes import PairGradients, pair_gradients, row_gram
from dyn_probe.engine.tokens import TokenGram, token_gram

__all__ = ["PairGradients", "TokenGram", "pair_gradients", "row_gram", "token_gram"]
