"""The Gram of rows: inner products of per-response gradients, one file per kind of use."""

from dyn_probe.gram.api import PairGradients, pair_gradients, row_gram
from dyn_probe.gram.tokens import TokenGram, token_gram

__all__ = ["PairGradients", "TokenGram", "pair_gradients", "row_gram", "token_gram"]
