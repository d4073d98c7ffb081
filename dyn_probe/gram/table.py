"""The table of kinds of use, asked from the first to the last.

A newcomer owes three functions: ``claims(module)``, ``keep(call)`` (put what the backward needs into ``call.saved``)
and ``factors(call, saved, grads)`` (each trained parameter's gradient per row, in one of the forms of ``factors.py``).
The smallest example is ``scale.py``.
"""

from __future__ import annotations

from torch import Tensor

from dyn_probe.capture.uses import Kind
from dyn_probe.gram import embedding, generic, linear, scale
from dyn_probe.gram.factors import Factor, Lookup, Outer, Vector
from dyn_probe.gram.wanted import Wanted

KINDS: tuple[Kind, ...] = (
    Kind("linear", linear.claims, linear.keep, linear.factors),
    Kind("embedding", embedding.claims, embedding.keep, embedding.factors),
    Kind("scale", scale.claims, scale.keep, scale.factors),
    Kind("generic", generic.claims, generic.keep, generic.factors),
)


def reduce(factor: Factor, wanted: Wanted) -> Tensor:
    """The wanted inner products of one factor, float64."""
    if isinstance(factor, Outer):
        return linear.reduce(factor, wanted)
    if isinstance(factor, Lookup):
        return embedding.reduce(factor, wanted)
    if isinstance(factor, Vector):
        return wanted.of_rows(factor.values)
    return wanted.of_dense(factor.dense)
