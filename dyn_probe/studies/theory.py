"""The theorems of the entanglement paper in numbers: each formula beside what autograd gives (Yuan et al. 2024, §4).

Letters: ``V`` tokens, ``h`` a hidden state of ``d`` numbers, ``W [V, d]`` the last linear layer, ``s = softmax(W h)``,
``j★``, ``k★`` the chosen and rejected token at the first difference ``m``. ``python -m
dyn_probe.studies.theory`` prints all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Checked:
    """One statement: its formula, the value of the formula, the value by autograd."""

    name: str
    formula: str
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Difference, relative where the numbers are above 1."""
        return abs(self.predicted - self.measured) / max(1.0, abs(self.predicted))


def gradient(logp: Tensor, parameter: Tensor) -> Tensor:
    """``∇ logp`` as one vector."""
    return torch.autograd.grad(logp, parameter, retain_graph=True)[0].flatten()


def layer_with_logits(hidden: Tensor, logits: Tensor, seed: int = 0) -> Tensor:
    """A random ``W [V, d]`` for which ``W h_t`` are the given logits at each of the given states.

    Args:
        hidden: ``[T, d]`` linearly independent states.
        logits: ``[T, V]``.
    """
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(logits.shape[1], hidden.shape[1], generator=draw, dtype=torch.float64)
    weight = weight + (torch.linalg.pinv(hidden) @ (logits - hidden @ weight.T)).T
    return weight.requires_grad_()


def uniform_logits(vocabulary: int, tokens: int) -> Tensor:
    """``[V]`` logits of a uniform mass on the first ``M`` tokens and none on the others."""
    return torch.where(torch.arange(vocabulary) < tokens, 0.0, -800.0).double()


def random_states(positions: int, width: int, seed: int) -> Tensor:
    """``[T, d]`` random hidden states."""
    return torch.randn(positions, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def theorem_1(tokens: int = 8, width: int = 16, vocabulary: int = 32, seed: int = 0) -> list[Checked]:
    """Responses of one token, mass uniform on ``M`` tokens, ``W`` the only parameter."""
    h = random_states(1, width, seed)
    weight = layer_with_logits(h, uniform_logits(vocabulary, tokens)[None], seed)
    logp = (h @ weight.T).log_softmax(1)[0]
    g_w, g_l = gradient(logp[0], weight), gradient(logp[1], weight)
    size = float(h @ h.T)
    return [
        Checked("Theorem 1, inner product", "⟨g_w,g_l⟩ = −‖h‖²/M", -size / tokens, float(g_w @ g_l)),
        Checked("Theorem 1, chosen", "‖g_w‖² = (M−1)/M·‖h‖²", (tokens - 1) / tokens * size, float(g_w @ g_w)),
        Checked("Theorem 1, rejected", "‖g_l‖² = (M−1)/M·‖h‖²", (tokens - 1) / tokens * size, float(g_l @ g_l)),
    ]


def corollary_2(
    length: int = 5, tokens: int = 8, width: int = 16, vocabulary: int = 32, seed: int = 0
) -> list[Checked]:
    """Responses of ``L`` tokens that differ only in the last, mass uniform on ``M`` tokens at every position.

    What the equal tokens add to both gradients is orthogonal to ``g_w − g_l = (e_j★ − e_k★) h_Lᵀ``, so the changes are
    those of the last token alone: chosen rises and rejected falls.
    """
    assert tokens > length + 1, "the shared tokens are others than the last two"
    h = random_states(length, width, seed)
    weight = layer_with_logits(h, uniform_logits(vocabulary, tokens).expand(length, -1), seed)
    logps = (h @ weight.T).log_softmax(1)
    shared = sum((logps[t, t + 2] for t in range(length - 1)), start=torch.zeros((), dtype=torch.float64))
    g_w, g_l = (gradient(shared + logps[-1, last], weight) for last in (0, 1))
    size = float(h[-1] @ h[-1])
    return [
        Checked("Corollary 2, chosen", "⟨g_w, g_w − g_l⟩ = ‖h_L‖² ≥ 0", size, float(g_w @ (g_w - g_l))),
        Checked("Corollary 2, rejected", "⟨g_l, g_w − g_l⟩ = −‖h_L‖² ≤ 0", -size, float(g_l @ (g_w - g_l))),
    ]


def logit_change(logits_w: Tensor, logits_l: Tensor, token_w: int, token_l: int) -> tuple[float, float]:
    """Change of the chosen token's log-probability at one position under ``g_w − g_l``, the logits the only parameter:
    ``⟨g_w, g_w⟩ − ⟨g_w, g_l⟩`` by autograd.

    Args:
        logits_w: ``[V]`` logits after the beginning of the chosen response.
        logits_l: ``[V]`` logits after that of the rejected one.

    Returns:
        The change, and the largest entry by which autograd's gradient differs from ``e − s``.
    """
    places = [logits.clone().requires_grad_() for logits in (logits_w, logits_l)]
    grads = [gradient(x.log_softmax(0)[t], x) for x, t in zip(places, (token_w, token_l), strict=True)]
    closed = [
        torch.nn.functional.one_hot(torch.tensor(t), len(x)) - x.softmax(0)
        for x, t in zip(places, (token_w, token_l), strict=True)
    ]
    difference = max(float((a - b).detach().abs().max()) for a, b in zip(grads, closed, strict=True))
    return float(grads[0] @ (grads[0] - grads[1])), difference


def after_difference(s_w: Tensor, s_l: Tensor, token: int) -> float:
    """``(1−s_w[i])(s_l[i]−s_w[i]) − Σ_{j≠i} s_w[j]·(s_l[j]−s_w[j])``: positions after ``m``, the same token ``i``."""
    change = s_l - s_w
    others = float((s_w * change).sum() - s_w[token] * change[token])
    return float((1 - s_w[token]) * change[token]) - others


def assumption(s_w: Tensor, s_l: Tensor, token: int) -> bool:
    """Theorem 3's: after the chosen beginning token ``i`` is at least as probable, and every other at most."""
    others = torch.arange(len(s_w)) != token
    return bool(s_w[token] >= s_l[token]) and bool((s_w[others] <= s_l[others]).all())


def theorem_3(vocabulary: int = 12, seed: int = 0) -> list[Checked]:
    """Logits the only parameter: before, at and after the first difference ``m``.

    At ``m`` the sign is that of the appendix (the main text swaps it). After ``m`` the logits satisfy the assumption:
    the rejected beginning makes the shared token less probable and all others more.
    """
    draw = torch.Generator().manual_seed(seed)
    before, at, behind = torch.randn(3, vocabulary, generator=draw, dtype=torch.float64)
    chosen, rejected, token = 0, 1, 2
    s = at.softmax(0)
    lowered = behind - 1.5 * torch.nn.functional.one_hot(torch.tensor(token), vocabulary)
    s_w, s_l = behind.softmax(0), lowered.softmax(0)
    assert assumption(s_w, s_l, token)
    rows = (
        ("before m", "0", 0.0, logit_change(before, before, token, token)[0]),
        (
            "at m",
            "1 + s[k★] − s[j★] ≥ 0",
            float(1 + s[rejected] - s[chosen]),
            logit_change(at, at, chosen, rejected)[0],
        ),
        (
            "after m",
            "(1−s_w[i])(s_l[i]−s_w[i]) − Σ_{j≠i} s_w[j]·(s_l[j]−s_w[j]) ≤ 0",
            after_difference(s_w, s_l, token),
            logit_change(behind, lowered, token, token)[0],
        ),
    )
    return [Checked(f"Theorem 3, {place}", *rest) for place, *rest in rows]  # type: ignore[arg-type]


STATEMENTS: dict[str, Callable[..., list[Checked]]] = {
    "Theorem 1": theorem_1,
    "Corollary 2": corollary_2,
    "Theorem 3": theorem_3,
}


def table(seed: int = 0) -> str:
    """All statements as lines of text: formula, its number, the measured number."""
    rows = [one for statement in STATEMENTS.values() for one in statement(seed=seed)]
    wide = max(len(one.formula) for one in rows)
    head = f"{'statement':28}{'formula':{wide + 2}}{'predicted':>14}{'measured':>14}"
    lines = [f"{one.name:28}{one.formula:{wide + 2}}{one.predicted:14.8f}{one.measured:14.8f}" for one in rows]
    return "\n".join([head, *lines])


if __name__ == "__main__":
    print(table())
