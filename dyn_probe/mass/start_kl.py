"""KL of the policy to its start: exact where the start can be asked or was kept, else from tokens that it drew.

Letters: ``N`` response positions, ``V`` vocabulary, ``K`` drawn tokens, ``π_t`` and ``q_t`` the next-token
distributions of the policy and of the policy at the start (the reference) at a position, ``r = π_t(v)/q_t(v)``.

The start is known in one of three ways, the first that is possible:

1. its logits at all positions, kept where they are small (``KEPT_BYTES``): exact, and no further forward;
2. a model of it (a live reference, a small copy, or a copy that shares all weights but the adapters): exact, at one
   more forward;
3. K tokens that it drew at each position, with their log-probabilities: an unbiased estimate at no further forward.
   ``E_q[r log r − (r − 1)] = KL(π_t‖q_t)``, each term at least 0 (the importance-weighted form of the "k3" estimator of
   Schulman, *Approximating KL divergence*, 2020). What matters is who drew the tokens: the same sum over the tokens of
   recorded responses, which neither policy drew, estimates no KL.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

KEPT_BYTES = 1 << 26
"""Logits of the start that are kept at most: 64 MiB."""
DRAWN = 8
"""``K``: tokens drawn at a position, in as many strata of its distribution."""
EXACT, SAMPLED = "kl_ref", "kl_ref_sampled"
"""Columns of the two kinds of number."""


def exact_kl(logits: Tensor, start: Tensor) -> Tensor:
    """``[N]`` KL(π_t‖q_t) in nats, from logits ``[N, V]`` of both."""
    ours, theirs = logits.double().log_softmax(1), start.double().log_softmax(1)
    gap = (ours - theirs).masked_fill(ours.isneginf(), 0.0)  # a forbidden token adds nothing
    return (ours.exp() * gap).sum(1)


def drawn_tokens(logits: Tensor, uniform: Tensor, count: int = DRAWN) -> tuple[Tensor, Tensor]:
    """Tokens ``[N, K]`` of q_t and their log-probabilities: one from each of K equal strata of its mass.

    Args:
        uniform: ``[N]`` from [0, 1): with u the tokens stand at ``(k + u)/K`` of the cumulated distribution, so that
            each of them is drawn from the stratum, and all of them together from q_t.
    """
    logps = logits.double().log_softmax(1)
    mass = logps.exp().cumsum(1)
    places = (torch.arange(count, device=logits.device) + uniform.to(mass)[:, None]) / count
    ids = torch.searchsorted(mass, places * mass[:, -1:], right=True).clamp(max=logits.shape[1] - 1)
    return ids, logps.gather(1, ids)


def sampled_kl(logits: Tensor, ids: Tensor, start: Tensor) -> Tensor:
    """``[N]`` estimate of KL(π_t‖q_t) in nats: mean over the drawn tokens of r log r − (r − 1).

    Args:
        ids: ``[N, K]`` tokens that q_t drew, ``start`` their log-probabilities under it.
    """
    log_ratio = logits.double().log_softmax(1).gather(1, ids.long()) - start
    return (log_ratio.exp() * log_ratio - log_ratio.expm1()).mean(1)


def response_key(ids: Sequence[int], start: int) -> str:
    """The name of a response by its tokens and those before it; the response begins at index ``start``."""
    return hashlib.blake2b(repr((tuple(ids), start)).encode(), digest_size=16).hexdigest()


def uniform_of(key: str, positions: int) -> Tensor:
    """``[positions]`` uniform numbers that depend on the response alone, without the global random state."""
    generator = torch.Generator().manual_seed(int(key[:15], 16))
    return torch.rand(positions, generator=generator, dtype=torch.float64)


@dataclass(eq=False)
class StartPolicy:
    """What a run knows of its policy at the start of training.

    Args:
        positions: response positions at which it will be asked in all.
        model: the policy as it was, where a copy is at hand.
        kept: response → logits ``[n, V]``, or drawn tokens ``[n, K]`` and their log-probabilities; of a resumed run.
    """

    positions: int
    model: nn.Module | None = None
    kept: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)
    column: str = EXACT

    def begin(self, keys: Sequence[str], lengths: Sequence[int]) -> BatchKL:
        """The KL of a batch that is measured with the weights of the start: 0, and what is needed later is kept.

        Args:
            keys: :func:`response_key` of each row.
            lengths: response positions of each row.
        """
        return BatchKL(self, keys, lengths)

    def batch(
        self, keys: Sequence[str], lengths: Sequence[int], ask: Callable[[nn.Module], Iterator[Tensor]]
    ) -> BatchKL | None:
        """The KL of a batch that is measured later; None where nothing is known of its start.

        Args:
            ask: the logits of a model at the batch's positions, in the chunks in which those of the policy come.
        """
        if all(key in self.kept for key in keys):
            parts = zip(*(self.kept[key] for key in keys), strict=True)
            return BatchKL(self, keys, lengths, known=[torch.cat(part) for part in parts])
        return None if self.model is None else BatchKL(self, keys, lengths, asked=ask(self.model))

    def keep(self, logits: Tensor, uniform: Tensor) -> tuple[Tensor, ...]:
        """What is kept of positions with these logits ``[n, V]`` of the start."""
        if self.positions * logits.shape[1] * logits.element_size() <= KEPT_BYTES:
            return (logits.detach().clone(),)
        if self.model is not None:
            return ()
        self.column = SAMPLED
        ids, logps = drawn_tokens(logits, uniform)
        return ids.int(), logps.float()


@dataclass(eq=False)
class BatchKL:
    """The KL at the positions of one batch, asked chunk by chunk in their order.

    Args:
        known: what was kept of its positions; ``asked`` the logits of a model of the start instead. Neither: the batch
            is measured with the weights of the start.
    """

    start: StartPolicy
    keys: Sequence[str]
    lengths: Sequence[int]
    known: list[Tensor] | None = None
    asked: Iterator[Tensor] | None = None
    at: int = 0
    new: list[tuple[Tensor, ...]] = field(default_factory=list)

    @property
    def column(self) -> str:
        """``kl_ref`` where the numbers are exact."""
        return self.start.column if self.known is None else (EXACT if len(self.known) == 1 else SAMPLED)

    def of(self, logits: Tensor) -> Tensor:
        """``[n]`` KL (nats) at the next n positions, float64; ``logits`` ``[n, V]`` of the policy there."""
        here = slice(self.at, self.at + len(logits))
        self.at += len(logits)
        if self.known is not None:
            parts = [part[here].to(logits.device) for part in self.known]
            return exact_kl(logits, *parts) if len(parts) == 1 else sampled_kl(logits, *parts)
        if self.asked is not None:
            return exact_kl(logits, next(self.asked))
        uniform = torch.cat([uniform_of(*row) for row in zip(self.keys, self.lengths, strict=True)])
        self.new.append(self.start.keep(logits, uniform[here]))
        if self.at == sum(self.lengths):
            self._store()
        return torch.zeros(len(logits), dtype=torch.float64, device=logits.device)

    def _store(self) -> None:
        parts = [torch.cat(part).split(list(self.lengths)) for part in zip(*self.new, strict=True)]
        for key, *values in zip(self.keys, *parts, strict=True):
            if values:
                self.start.kept[key] = tuple(value.clone() for value in values)
