"""What an objective sees of a batch: a few numbers per pair, never the model.

Letters (docs/notation.md): ``a``, ``b`` chosen and rejected log-probability (nats, summed over response
tokens), ``r_w``, ``r_l`` the same under the reference policy, ``n_w``, ``n_l`` response lengths (tokens).
``B`` pairs, ``R = 2B`` rows ordered ``[chosen; rejected]``, ``L`` positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dyn_probe.errors import BadInput


@dataclass(frozen=True)
class Term:
    """One term that a loss or a shaping may read besides a, b, n_w and n_l.

    Args:
        meaning: what it is, with its shape.
        live_reference: whether it takes a forward pass of the reference policy in every step, so that
            log-probabilities from before the training do not do.
        least_pairs: pairs that a batch needs for it.
    """

    meaning: str
    live_reference: bool = False
    least_pairs: int = 1


TERMS: dict[str, Term] = {
    "r_w": Term("chosen log-probability under the reference policy, [B]"),
    "r_l": Term("rejected log-probability under the reference policy, [B]"),
    "kl": Term("KL estimate from mismatched responses (nats), see kl_estimate", live_reference=True, least_pairs=2),
    "win_w": Term("probability that the chosen response beats its rival, [B]: the data's win_probability"),
    "win_l": Term("probability that the rejected response beats its rival, [B]: 1 − win_probability"),
    "progress": Term("share of training done, 0 to 1"),
    "token_logps": Term("per-token log-probabilities, [2B, L]"),
    "ref_token_logps": Term("per-token log-probabilities under the reference policy, [2B, L]", live_reference=True),
    "batch_tokens": Term(
        "mean number of tokens of the chosen responses of the whole optimizer step; else of the batch"
    ),
    "response_mask": Term("1 on response tokens, [2B, L]"),
    "token_mask": Term("mask m of every token, 0 to 1, [2B, L]"),
    "masked_logps": Term("masked log-probabilities Σ_t m^t·log π^t, [2B], if already computed"),
}
MEANINGS: dict[str, str] = {name: term.meaning for name, term in TERMS.items()}

_PER_PAIR = ("b", "n_w", "n_l", "r_w", "r_l", "win_w", "win_l")
_PER_TOKEN = ("token_logps", "ref_token_logps", "response_mask", "token_mask")


@dataclass(frozen=True, eq=False)
class Terms:
    """The numbers of ``B`` pairs that losses and shapings may read; ``None`` where unknown.

    ``a`` and ``b`` may be live (part of a graph): losses are differentiable in them. Lengths are kept in the
    precision of ``a``, float32 at least. ``gate``, ``gate_form`` and ``rho`` are written by shapings; a loss
    reads them only through :meth:`chosen` and :meth:`rejected`.

    Raises:
        BadInput: shapes disagree, or only one side has a reference.
    """

    a: Tensor
    b: Tensor
    n_w: Tensor
    n_l: Tensor
    r_w: Tensor | None = None
    r_l: Tensor | None = None
    kl: Tensor | float | None = None
    win_w: Tensor | None = None
    win_l: Tensor | None = None
    progress: float | None = None
    batch_tokens: float | None = None
    token_logps: Tensor | None = None
    ref_token_logps: Tensor | None = None
    response_mask: Tensor | None = None
    token_mask: Tensor | None = None
    masked_logps: Tensor | None = None
    gate: Tensor | None = None
    gate_form: str = "value"
    rho: Tensor | None = None

    def __post_init__(self) -> None:
        wrong = [] if self.a.dim() == 1 else [f"a {tuple(self.a.shape)}"]
        wrong += self._misshapen(_PER_PAIR, tuple(self.a.shape))
        if self.token_logps is not None:
            rows = (2 * self.a.shape[0], self.token_logps.shape[-1])
            wrong += self._misshapen(_PER_TOKEN, rows)
        if wrong:
            raise BadInput(
                f"Terms needs per-pair terms of one shape [B] and per-token terms [2B, L]; with a "
                f"{tuple(self.a.shape)}, these differ: {', '.join(wrong)}"
            )
        if (self.r_w is None) != (self.r_l is None):
            raise BadInput("Terms needs both reference terms r_w and r_l, or neither; got one of them")
        kind = torch.promote_types(self.a.dtype, torch.float32)
        for name in ("n_w", "n_l"):  # whole numbers would turn 1/n and α·n into float32
            object.__setattr__(self, name, getattr(self, name).to(kind))
        if self.progress is not None and not 0 <= self.progress <= 1:
            raise BadInput(f"Terms needs a progress between 0 and 1; got {self.progress}")

    def _misshapen(self, names: tuple[str, ...], shape: tuple[int, ...]) -> list[str]:
        given = ((name, getattr(self, name)) for name in names)
        return [f"{n} {tuple(t.shape)}" for n, t in given if t is not None and tuple(t.shape) != shape]

    @classmethod
    def from_rows(cls, logps: Tensor, lengths: Tensor, reference: Tensor | None = None, **more: Any) -> Terms:
        """Terms from row tensors ``[2B]``, chosen rows first; ``more`` names further terms."""
        if logps.dim() != 1 or logps.shape[0] % 2 or logps.shape[0] == 0:
            raise BadInput(f"Terms.from_rows needs logps [2B], chosen then rejected; got {tuple(logps.shape)}")
        (a, b), (n_w, n_l) = logps.chunk(2), lengths.to(logps.device).chunk(2)
        r_w, r_l = (None, None) if reference is None else reference.detach().chunk(2)
        return cls(a=a, b=b, n_w=n_w, n_l=n_l, r_w=r_w, r_l=r_l, **more)

    @property
    def h_w(self) -> Tensor:
        """``[B]`` log-ratio of the chosen response, ``a − r_w`` (nats)."""
        return self.a - self.need("r_w")

    @property
    def h_l(self) -> Tensor:
        """``[B]`` log-ratio of the rejected response, ``b − r_l`` (nats)."""
        return self.b - self.need("r_l")

    @property
    def mean_w(self) -> Tensor:
        """``[B]`` ā = a/n_w (nats per token)."""
        return self.a / self.n_w

    @property
    def mean_l(self) -> Tensor:
        """``[B]`` b̄ = b/n_l (nats per token)."""
        return self.b / self.n_l

    def chosen(self, contribution: Tensor) -> Tensor:
        """The chosen contribution to a pair term as shaped: times ρ (AdaDPO)."""
        return contribution if self.rho is None else self.rho * contribution

    def rejected(self, contribution: Tensor) -> Tensor:
        """The rejected contribution to a pair term as shaped: times g (Gate-DPO).

        Form ``value`` scales value and gradient: ``g·x``. Form ``gradient`` scales the gradient alone:
        ``sg[x] + g·(x − sg[x])``, which is ``g·x + (1−g)·sg[x]`` with the value exact.
        """
        if self.gate is None:
            return contribution
        if self.gate_form == "value":
            return self.gate * contribution
        still = contribution.detach()
        return still + self.gate * (contribution - still)

    def need(self, name: str) -> Tensor:
        """The term ``name`` as a tensor, or BadInput where it is missing."""
        value = getattr(self, name)
        if value is None:
            raise BadInput(f"term {name} is missing: {MEANINGS[name]}")
        return value if isinstance(value, Tensor) else self.a.new_tensor(value)
