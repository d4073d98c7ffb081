"""A head tied to the input embedding: the parameter's gradient is the sum of both uses.

With ``Δ`` the gradient at the embedding's output, ``x`` the ids, ``h`` and ``B`` the head's inputs and
output-gradients, the cross term is ``Σ_{t,s} B_i[t, x_j[s]] (h_i[t]·Δ_j[s])`` and the same with i and j swapped. It
reads only the head gradient's entries of tokens that occur in the batch, so those are all that is kept from the head's
backward to the embedding's: ``M_i = B_i[:, columns]ᵀ h_i``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dyn_probe.gram.embedding import scattered
from dyn_probe.gram.factors import Lookup, Outer, upcast
from dyn_probe.gram.linear import by_rows, response_rows
from dyn_probe.gram.wanted import Wanted, gram


@dataclass(eq=False)
class HeadPart:
    """What the head leaves for the embedding: its own answer, and each group's ``M [n, columns, d]``."""

    answer: Tensor
    restricted: list[Tensor]


def head_part(outer: Outer, ids: Tensor, wanted: Wanted) -> HeadPart:
    """The head's own products, and its gradient on the entries that each group's rows look up."""
    rows = response_rows(outer)
    restricted = []
    for group in wanted.groups():
        columns = torch.unique(ids[torch.tensor(group, device=ids.device)])
        restricted.append(torch.stack([_entries(*rows[i], columns) for i in group]))
    return HeadPart(by_rows(rows, wanted), restricted)


def _entries(inputs: Tensor, outputs: Tensor, columns: Tensor) -> Tensor:
    """``[columns, d]``: the rows ``columns`` of ``outputsᵀ inputs``."""
    chosen = upcast(outputs[:, columns])
    return chosen.T @ upcast(inputs).to(chosen.dtype)


def with_embedding(head: HeadPart, lookup: Lookup, wanted: Wanted) -> Tensor:
    """The wanted products of the sum of both uses."""
    answers = []
    for group, mass in zip(wanted.groups(), head.restricted, strict=True):
        answers.append(_added(mass.flatten(1), scattered(lookup, group)[1].flatten(1)))
    return head.answer + wanted.of_groups(answers)


def _added(head: Tensor, table: Tensor) -> Tensor:
    """``[n, n]``: what the embedding's gradient adds to the head's own Gram."""
    cross = (head @ table.to(head.dtype).T).double()
    return gram(table) + cross + cross.T


def is_tied(calls: Sequence[object], factor: object) -> bool:
    """Whether a parameter with these calls is one head and one embedding, and this factor is the head's."""
    names = sorted(getattr(getattr(call, "kind", None), "name", "") for call in calls)
    return isinstance(factor, Outer) and not factor.transposed and names == ["embedding", "linear"]
