"""TRL's own loss code on given log-probabilities or logits: bare trainers with what their losses read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from trl import DPOTrainer, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer


class _Accelerator:
    """One process on the CPU."""

    device = torch.device("cpu")

    @staticmethod
    def gather_for_metrics(value: Any) -> Any:
        return value

    gather = gather_for_metrics


def _bare(kind: type, **attributes: Any) -> Any:
    """A trainer without its constructor."""
    trainer = kind.__new__(kind)
    common = {
        "accelerator": _Accelerator(),
        "aux_loss_enabled": False,
        "is_encoder_decoder": False,
        "model": SimpleNamespace(training=True),
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_total_train_tokens": 0,
        "_tp_size": 1,
        "precompute_ref_logps": True,
    }
    for name, value in (common | attributes).items():
        setattr(trainer, name, value)
    return trainer


@dataclass(frozen=True)
class Rows:
    """Tokens of some rows ``[rows, T]``: log-probabilities, the same under the reference, response flags."""

    logps: Tensor
    reference: Tensor
    said: Tensor

    def batch(self, prefix: str = "", offset: int = 0) -> dict[str, Tensor]:
        """Model inputs with a prompt of one token; ``offset`` marks the ids."""
        ids = torch.full((len(self.said), self.said.shape[1] + 1), offset)
        mask = torch.cat([torch.zeros(len(self.said), 1, dtype=torch.long), self.said.long()], 1)
        return {
            f"{prefix}input_ids": ids,
            f"{prefix}attention_mask": ids * 0 + 1,
            f"{prefix}completion_mask": mask,
        }


def _outputs(logps: Tensor) -> SimpleNamespace:
    zero = torch.zeros_like(logps)
    return SimpleNamespace(log_probs=logps, entropy=zero, mean_logits=zero, is_top1=zero.bool())


def _logged(trainer: Any) -> dict[str, float]:
    """The last values of the metrics that the trainer's loss has logged."""
    return {name: values[-1] for name, values in trainer._metrics["train"].items() if isinstance(values, list)}


def dpo_loss(loss_type: str, rows: Rows, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """``DPOTrainer._compute_loss`` of rows [chosen; rejected], averaged over the pairs."""
    return dpo_step({loss_type: 1.0}, rows, beta, label_smoothing)[0]


def dpo_step(
    loss_types: dict[str, float], rows: Rows, beta: float, label_smoothing: float = 0.0
) -> tuple[Tensor, dict[str, float]]:
    """``DPOTrainer``'s loss (each type with its weight) and what it logs beside it."""
    trainer = _bare(
        DPOTrainer, ld_alpha=None, f_divergence_type="reverse_kl", loss_types=list(loss_types),
        loss_weights=list(loss_types.values()), beta=beta, label_smoothing=label_smoothing, use_weighting=False,
    )  # fmt: skip
    chosen, rejected = rows.reference.sum(1).chunk(2)
    inputs = rows.batch() | {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    loss = trainer._compute_loss(lambda **_: _outputs(rows.logps), inputs, False)
    return loss, _logged(trainer)


def kto_loss(rows: Rows, mismatched: Rows, beta: float, weights: tuple[float, float]) -> Tensor:
    """``KTOTrainer._compute_loss`` of rows [chosen; rejected], averaged over all of them."""
    return kto_step(rows, mismatched, beta, weights)[0]


def kto_step(
    rows: Rows, mismatched: Rows, beta: float, weights: tuple[float, float]
) -> tuple[Tensor, dict[str, float]]:
    """``KTOTrainer``'s loss and what it logs beside it."""
    trainer = _bare(
        KTOTrainer, calculate_KL=True, loss_type="kto", beta=beta,
        desirable_weight=weights[0], undesirable_weight=weights[1],
    )  # fmt: skip
    half = len(rows.said) // 2
    inputs = rows.batch() | mismatched.batch("KL_", offset=1)
    inputs |= {
        "label": torch.tensor([True] * half + [False] * half),
        "ref_logps": rows.reference.sum(1),
        "ref_KL_logps": mismatched.reference.sum(1),
    }

    def model(input_ids: Tensor, **_: Any) -> SimpleNamespace:
        return _outputs((mismatched if input_ids[0, 0] == 1 else rows).logps)

    loss = trainer._compute_loss(model, inputs, False)
    return loss, _logged(trainer)


def _from_logits(trainer: Any, ids: Tensor, mask: Tensor, logits: Tensor) -> tuple[Tensor, dict[str, float]]:
    """``get_batch_loss_metrics`` of rows [chosen; rejected] with the same right padding."""
    chosen, rejected = ids.chunk(2)
    said, other = mask.chunk(2)
    batch = {}
    for side, tokens, flags in (("chosen", chosen, said), ("rejected", rejected, other)):
        batch[f"{side}_input_ids"] = tokens
        batch[f"{side}_attention_mask"] = (tokens != 0).long()
        batch[f"{side}_labels"] = torch.where(flags, tokens, -100)
    model: Callable[..., Any] = lambda *_, **__: SimpleNamespace(logits=logits)  # noqa: E731
    loss, logged = trainer.get_batch_loss_metrics(model, batch)
    return loss, {name: float(value) for name, value in logged.items()}


def cpo_loss(loss_type: str, ids: Tensor, mask: Tensor, logits: Tensor, **options: float) -> Tensor:
    """``CPOTrainer``'s batch loss, likelihood term (token mean over the batch) included."""
    return cpo_step(loss_type, ids, mask, logits, **options)[0]


def cpo_step(
    loss_type: str, ids: Tensor, mask: Tensor, logits: Tensor, **options: float
) -> tuple[Tensor, dict[str, float]]:
    """``CPOTrainer``'s batch loss and what it logs beside it."""
    defaults = {"beta": 0.1, "cpo_alpha": 0.0, "simpo_gamma": 0.0, "label_smoothing": 0.0, "alpha": 0.0}
    trainer = _bare(CPOTrainer, loss_type=loss_type, pad_token_id=0, **(defaults | options))
    return _from_logits(trainer, ids, mask, logits)


def orpo_loss(ids: Tensor, mask: Tensor, logits: Tensor, beta: float) -> Tensor:
    """``ORPOTrainer``'s batch loss; its likelihood term covers the prompt's tokens too."""
    return orpo_step(ids, mask, logits, beta)[0]


def orpo_step(ids: Tensor, mask: Tensor, logits: Tensor, beta: float) -> tuple[Tensor, dict[str, float]]:
    """``ORPOTrainer``'s batch loss and what it logs beside it."""
    return _from_logits(_bare(ORPOTrainer, beta=beta, padding_value=0), ids, mask, logits)
