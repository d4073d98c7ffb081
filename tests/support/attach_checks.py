"""What every recorded training of TRL is held to: the trainer's own logs, and plain autograd outside it."""

from __future__ import annotations

from typing import Any

import attach_runs as runs
import numpy as np
import torch

from dyn_probe.trace.reader import Trace


def check_against_logs(trainer: Any, trace: Trace, accumulation: int = 1, room: float = 1e-4) -> None:
    """The rows average to what the trainer logged at every step."""
    beta = trainer.args.beta
    for entry in runs.logged(trainer):
        rows = trace.pairs[trace.pairs["step"] == entry["step"] - 1]
        assert len(rows) == 2 * accumulation
        chosen = rows["logp_chosen"] - rows["ref_logp_chosen"]
        rejected = rows["logp_rejected"] - rows["ref_logp_rejected"]
        found = {
            "logps/chosen": rows["logp_chosen"].mean(),
            "logps/rejected": rows["logp_rejected"].mean(),
            "rewards/margins": beta * (chosen - rejected).mean(),
            "loss": rows["loss"].mean(),
        }
        for name, value in found.items():
            assert np.isclose(value, entry[name], rtol=room, atol=room), name
        step = trace.steps[trace.steps["step"] == entry["step"] - 1].iloc[0]
        assert np.isclose(step["grad_norm"], entry["grad_norm"], rtol=1e-4)
        assert np.isclose(step["learning_rate"], entry["learning_rate"])
        assert np.isclose(step["loss"], entry["loss"], rtol=1e-4, atol=1e-6)


def check_against_autograd(folder: Any, trace: Trace, model: str, room: float = 1e-4, **options: Any) -> None:
    """Norms and inner products of the first step by plain autograd, with the weights before training."""
    trainer = runs.trainer_of(folder, model, **options)
    policy = trainer.model.train()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    said = batch["completion_mask"][:, 1:].bool()
    logits = policy(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    tokens = torch.log_softmax(logits.float(), -1).gather(2, batch["input_ids"][:, 1:, None])[..., 0]
    trained = [p for p in policy.parameters() if p.requires_grad]
    flat = []
    for row in (tokens * said).sum(1):
        parts = torch.autograd.grad(row, trained, retain_graph=True, allow_unused=True)
        flat.append(torch.cat([g.flatten().double() for g in parts if g is not None]))
    gram = torch.stack(flat) @ torch.stack(flat).T
    half = len(gram) // 2
    rows = trace.pairs[trace.pairs["step"] == 0].iloc[:half]
    diagonal = gram.diagonal().sqrt().numpy()
    inner = gram[torch.arange(half), torch.arange(half) + half].numpy()
    assert np.allclose(rows["grad_norm_chosen"], diagonal[:half], rtol=room)
    assert np.allclose(rows["grad_norm_rejected"], diagonal[half:], rtol=room)
    assert np.allclose(rows["grad_inner"], inner, rtol=10 * room, atol=room * float(gram.diagonal().max()))


def gradients(
    trainer: Any, batch: dict[str, torch.Tensor], whole: bool = True
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """By plain autograd, with the weights as they are: log-probabilities of the responses, rows' gradients, and the
    gradient of the trainer's loss; the mask of a response is read off its labels."""
    policy = trainer.model.train()
    trained = [p for p in policy.parameters() if p.requires_grad]
    rows, logps = [], []
    for side in ("chosen", "rejected"):
        ids, labels = batch[f"{side}_input_ids"], batch[f"{side}_labels"][:, 1:]
        logits = policy(input_ids=ids, attention_mask=batch[f"{side}_attention_mask"]).logits[:, :-1]
        tokens = torch.log_softmax(logits.float(), -1).gather(2, ids[:, 1:, None])[..., 0]
        logps.append((tokens * (labels != -100)).sum(1))
        for row in logps[-1]:
            parts = torch.autograd.grad(row, trained, retain_graph=True, allow_unused=True)
            rows.append(torch.cat([g.flatten().double() for g in parts if g is not None]))
    own = torch.autograd.grad(trainer.compute_loss(policy, batch), trained) if whole else rows[:1]
    return torch.cat(logps).detach(), torch.stack(rows), torch.cat([g.flatten().double() for g in own])
