"""The same numbers by other libraries, where they are installed and run: optional packages, each a row of a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cost.training import Training

Made = tuple[Callable[[], object], Callable[[], Tensor]]
"""A step, and the ``[3, B]`` numbers that the last one gave."""


@dataclass(frozen=True)
class Peer:
    """A library's way.

    Args:
        make: of one training; ImportError where the package is absent.
        package: what to install.
        leaves_out: what it does not measure, in a sentence.
    """

    make: Callable[[Training], Made]
    package: str
    leaves_out: str


def row_logps(model: Any, batch: Any) -> Tensor:
    """``[2B]`` (nats), with a position of its own for every row: a module that is called with one row for the whole
    batch is not explained by the peers."""
    ids = batch.input_ids
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids).contiguous()
    logits = model(input_ids=ids, position_ids=places, use_cache=False).logits[:, :-1]
    tokens = torch.log_softmax(logits.float(), -1).gather(2, ids[:, 1:, None]).squeeze(2)
    return (tokens * batch.response_mask[:, 1:]).sum(1)


def from_gram(gram: Tensor) -> Tensor:
    """``[3, B]`` of a ``[2B, 2B]`` Gram."""
    pairs = len(gram) // 2
    squares = gram.diagonal()
    return torch.stack([squares[:pairs].sqrt(), squares[pairs:].sqrt(), gram.diagonal(pairs)])


def torchjd(training: Training) -> Made:
    """``torchjd.autogram``: the Gram of all rows, module by module; then the loss's backward."""
    from torchjd.autogram import Engine

    found: list[Tensor] = []

    def backward() -> None:
        engine = Engine(training.model, batch_dim=0)  # its hooks go with it
        logps = row_logps(training.model, training.batch)
        gram = engine.compute_gramian(logps)
        training.loss(logps).backward()  # type: ignore[no-untyped-call]
        found[:] = [from_gram(gram).detach()]
        del engine

    return lambda: training.step(backward), lambda: found[0]


def opacus(training: Training) -> Made:
    """Opacus' ghost norms of all rows' log-probabilities in a first backward; then the loss's backward."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    found: list[Tensor] = []

    def backward() -> None:
        options: dict[str, Any] = {"batch_first": True, "loss_reduction": "sum", "strict": False}
        hooked = GradSampleModuleFastGradientClipping(training.model, **options)
        try:
            logps = row_logps(hooked, training.batch)
            logps.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
            norms = hooked.get_norm_sample()
            hooked.disable_hooks()
            training.optimizer.zero_grad(set_to_none=True)
            training.loss(logps).backward()  # type: ignore[no-untyped-call]
        finally:
            hooked.to_standard_module()
        sides = norms.detach().unflatten(0, (2, -1))
        found[:] = [torch.cat([sides, torch.full_like(sides[:1], torch.nan)])]

    return lambda: training.step(backward), lambda: found[0]


def vmapped(training: Training) -> Made:
    """``torch.func``: both gradients of a pair by ``vmap(grad(…))`` on the whole model; then the step."""
    found: list[Tensor] = []

    def logp(weights: dict[str, Tensor], ids: Tensor, response: Tensor) -> Tensor:
        said = {"input_ids": ids[None], "use_cache": False}
        logits = torch.func.functional_call(training.model, weights, (), said).logits[0, :-1]
        tokens = torch.log_softmax(logits.float(), -1).gather(1, ids[1:, None]).squeeze(1)
        return (tokens * response[1:]).sum()

    rows = torch.func.vmap(torch.func.grad(logp), in_dims=(None, 0, 0))

    def backward() -> None:
        weights = {n: p.detach() for n, p in training.model.named_parameters() if p.requires_grad}
        answers = []
        for pair in range(training.batch.pairs):
            take = [pair, pair + training.batch.pairs]
            grads = rows(weights, training.batch.input_ids[take], training.batch.response_mask[take])
            flat = torch.cat([g.flatten(1) for g in grads.values()], 1)
            answers.append(torch.stack([*flat.norm(dim=1), flat[0] @ flat[1]]))
        training.loss(training.logps()).backward()  # type: ignore[no-untyped-call]
        found[:] = [torch.stack(answers, 1)]

    return lambda: training.step(backward), lambda: found[0]


PEERS: dict[str, Peer] = {
    "TorchJD autogram": Peer(
        torchjd,
        "torchjd",
        "the Gram of all rows, whose rows' gradients are written out per module; "
        "no cross terms of a tied weight; a second backward",
    ),
    "Opacus ghost norms": Peer(
        opacus,
        "opacus",
        "norms only: no inner product of chosen with rejected; refuses tied weights; "
        "gradients per row where a module is not a plain Linear, Embedding or norm (GPT-2's Conv1D); a second backward",
    ),
    "torch.func vmap": Peer(
        vmapped, "torch", "nothing left out, but two gradients of the model's size are written for each pair"
    ),
}
"""Name → how it is called and what it leaves out."""
