"""What a language-model head leaves behind that gives token log-probabilities and keeps its logits to itself.

With ``h [R, P, d]`` the head's inputs at the positions that predict response tokens ``y``, and ``c [R, P]``
∂loss/∂(token log-probability), the head's output-gradient is ``B[t, v] = c[t] (1[v = y_t] − π_t(v)) ∂z_t(v)/∂x_t(v)``
with ``z`` the logits and ``x = W h + b``. It is made again from ``h``, a slice of the vocabulary at a time, so that
``[rows, positions, V]`` is never in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from dyn_probe.engine.factors import Outer, RowGradients, added

SLICE = 1 << 24
"""Logits that are in memory at once (64 MiB in float32)."""


@dataclass(frozen=True, eq=False)
class HeadMath:
    """How logits are made of ``x = W h + b``: ``z = s x``, or ``cap · tanh(s x / cap)``.

    Args:
        weight: ``W [V, d]``.
        bias: ``b [V]``, None where there is none.
        scale: ``s``.
        cap: None where logits are not capped.
        dtype: the type that ``x`` is computed in.
    """

    weight: Tensor
    bias: Tensor | None
    scale: float
    cap: float | None
    dtype: torch.dtype

    def logits(self, hidden: Tensor, entries: slice) -> tuple[Tensor, Tensor]:
        """``(z, ∂z/∂x)`` for some vocabulary entries, ``[…, V']`` in float32 or better."""
        x = hidden.to(self.dtype) @ self.weight[entries].to(self.dtype).T
        return self._from_products(x, None if self.bias is None else self.bias[entries])

    def of_tokens(self, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """``(z, ∂z/∂x)`` of the entries ``tokens [G, m, S]`` at ``hidden [G, P, d]``: ``[G, P, m, S]``."""
        weight = self.weight[tokens.flatten(1)].to(self.dtype)
        x = (hidden.to(self.dtype) @ weight.mT).unflatten(2, tokens.shape[1:])
        return self._from_products(x, None if self.bias is None else self.bias[tokens].unsqueeze(1))

    def _from_products(self, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        x = x if bias is None else x + bias.to(self.dtype)
        z = torch.promote_types(x.dtype, torch.float32)
        x = x.to(z) * self.scale
        if self.cap is None:
            return x, torch.full((), self.scale, dtype=x.dtype, device=x.device)
        squashed = torch.tanh(x / self.cap)
        return squashed * self.cap, (1 - squashed**2) * self.scale

    def slices(self, tokens: int) -> Iterator[slice]:
        """The vocabulary in parts whose logits for so many tokens fit into ``SLICE``."""
        size, width = len(self.weight), max(1, SLICE // max(1, tokens))
        return (slice(begin, min(begin + width, size)) for begin in range(0, size, width))

    def log_normaliser(self, hidden: Tensor) -> Tensor:
        """``log Σ_v exp z(v)``, ``[R, P]``."""
        parts = [self.logits(hidden, part)[0].logsumexp(-1) for part in self.slices(hidden[..., 0].numel())]
        return torch.stack(parts).logsumexp(0)

    def own_logits(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Logits of ``targets [R, P]``."""
        own, _ = self.of_tokens(hidden.flatten(0, 1)[:, None], targets.flatten()[:, None, None])
        return own.reshape(targets.shape)

    def log_probs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Log-probabilities of ``targets [R, P]``."""
        return self.own_logits(hidden, targets) - self.log_normaliser(hidden)


def repeats_exactly(dtype: torch.dtype) -> bool:
    """Whether logits that are made again are the same but for the rounding of this type, so that a normaliser may be
    read off the model's own log-probabilities: in half precision, and where products are rounded to it (TF32),
    probabilities would not add up to 1 by per cents."""
    if torch.finfo(dtype).bits < 32:
        return False
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set by torch.backends.fp32_precision and its like, to something less
        return False


@dataclass(eq=False, kw_only=True)
class HeadRows(Outer):
    """``grad_i = Σ_t B_i[t] ⊗ h_i[t]`` of a head's weight, with ``B`` made a slice of the vocabulary at a time.

    Args:
        grads: ``c [R, P]``; 0 where a row has no token.
        inputs: ``h [R, P, d]``.
        targets: ``[R, P]`` the tokens whose log-probabilities were taken.
        math: how the logits are made.
        normaliser: ``log Σ_v exp z(v)``, ``[R, P]``, where it is known; else it takes the logits once more.
    """

    targets: Tensor
    math: HeadMath
    normaliser: Tensor | None = None
    form: ClassVar[str] = "head"
    trained, _kept = RowGradients.trained, Outer._all_columns

    def part(self, rows: slice) -> HeadRows:
        own = {name: getattr(self, name)[rows] for name in ("grads", "inputs", "targets")}
        return replace(self, **own, normaliser=self._normaliser[rows])

    @cached_property
    def _normaliser(self) -> Tensor:
        return self.math.log_normaliser(self.inputs) if self.normaliser is None else self.normaliser

    def settled(self) -> HeadRows:
        bias = None if self.math.bias is None else self.math.bias.clone()
        return replace(self, math=replace(self.math, weight=self.math.weight.clone(), bias=bias))

    def tiles(self) -> Iterator[tuple[slice, Outer]]:
        """The factor of each part of the vocabulary, one after the other."""
        for part in self.math.slices(self.grads.numel()):
            yield part, Outer(self._outputs(part), self.inputs, cut=True)

    def _outputs(self, part: slice) -> Tensor:
        """``B [R, P, V']``."""
        z, slope = self.math.logits(self.inputs, part)
        found = (z - self._normaliser[..., None]).exp().neg()
        place = self.targets - part.start
        here = (place >= 0) & (place < part.stop - part.start)
        found.scatter_add_(2, place.clamp(0, part.stop - part.start - 1)[..., None], here[..., None].to(found))
        return found * slope * self.grads[..., None]

    def summed(self) -> Tensor:
        """``Σ_t B_i[t]``, ``[R, V]``: the gradient of the head's bias."""
        return torch.cat([tile.grads.sum(1) for _, tile in self.tiles()], 1)

    def block(self, entries: slice, out: Tensor | None = None) -> Tensor:
        return Outer(self._outputs(entries), self.inputs, cut=True).block(slice(None), out)

    def dense(self, row: int) -> Tensor:
        return torch.cat([tile.dense(row) for _, tile in self.tiles()])

    def along(self, direction: Tensor) -> Tensor:
        return torch.stack([tile.along(direction[part]) for part, tile in self.tiles()]).sum(0)

    def weighted(self, coefficients: Tensor, total: Tensor | None, shape: torch.Size) -> Tensor:
        return added(total, torch.cat([tile.weighted(coefficients, None, shape) for _, tile in self.tiles()]))

    def columns(self, row: int, ids: Tensor) -> Tensor:
        groups, tokens = ids.shape[1], ids.transpose(0, 1)
        hidden, targets, c, norm = (
            t.unflatten(0, (-1, groups))[row] for t in (self.inputs, self.targets, self.grads, self._normaliser)
        )
        z, slope = self.math.of_tokens(hidden, tokens)
        own = (tokens[:, None] == targets[:, :, None, None]).to(z)
        return (own - (z - norm[:, :, None, None]).exp()) * slope * c[:, :, None, None]
