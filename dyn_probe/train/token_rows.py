"""The ``tokens`` table: token Grams of a few pairs, the same ones through the whole run."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dyn_probe.data.collating import collate
from dyn_probe.data.encoding import EncodedPair
from dyn_probe.data.token_text import token_strings
from dyn_probe.engine.module_copy import eval_mode
from dyn_probe.engine.tokens import TokenGram, token_gram
from dyn_probe.pairs import PairBatch, batch_logits
from dyn_probe.token_analysis import align
from dyn_probe.train.objective import logits_and_hidden
from dyn_probe.train.setup import Setup

if TYPE_CHECKING:
    from dyn_probe.train.run import Run


def follows(setup: Setup, step: int) -> bool:
    """Whether the token Grams are recorded at this step: every ``tokens_every`` steps, and at the last."""
    config = setup.config
    return config.tokens_every > 0 and (step % config.tokens_every == 0 or step == config.steps - 1)


def followed_pairs(setup: Setup) -> list[EncodedPair]:
    """``token_pairs`` of the training pairs, drawn by the run's seed alone."""
    count = min(setup.config.token_pairs, len(setup.pairs))
    order = random.Random(f"{setup.config.seed}:tokens").sample(range(len(setup.pairs)), count)
    return [setup.pairs[i] for i in order]


def record_tokens(run: Run, step: int) -> None:
    """Write the tracked pairs' token Grams before the step's update. Gradients, random state and train mode stay as
    they are. With several processes the first does it, on its unsharded model."""
    setup = run.setup
    if not (setup.processes.first and follows(setup, step)):
        return
    for pair in followed_pairs(setup):
        batch = collate([pair], setup.pad_id).to(setup.device)
        with setup.autocast():
            gram = token_gram(setup.model, batch)
            with eval_mode(setup.model):
                columns = theorem_3(setup.model, batch, gram) | token_masks(run, batch, step)
        rows = token_rows(step, pair.pair_id, gram, setup.tokenizer)
        run.writer.add("tokens", [rows[0] | columns, *rows[1:]])


@torch.no_grad()
def token_masks(run: Run, batch: PairBatch, step: int) -> dict[str, list[float]]:
    """``mask_tokens_chosen`` and ``mask_tokens_rejected`` of the batch's only pair; none where no masks are learned."""
    if run.mask is None:
        return {}
    _, hidden = logits_and_hidden(run.setup.model, run.setup.model, batch)
    masks = run.mask(hidden, step / run.config.steps)
    sides = zip(("chosen", "rejected"), masks, batch.response_mask.bool(), strict=True)
    return {f"mask_tokens_{side}": mask[said].double().tolist() for side, mask, said in sides}


@torch.no_grad()
def theorem_3(model: nn.Module, batch: PairBatch, gram: TokenGram) -> dict[str, list[float]]:
    """Theorem 3 of Yuan et al. 2024 at the positions after the first difference at which both responses have the same
    token ``i``, from the model's own distributions ``s_w``, ``s_l`` there (tokens are aligned, so that a position need
    not have the same number on both sides).

    Args:
        batch: the pair alone.
        gram: its token Gram, for the tokens of its responses.

    Returns:
        For each such position ``theorem_3_holds``: 1 where the theorem's assumption holds, ``s_w[i] ≥ s_l[i]`` and
        ``s_w[j] ≤ s_l[j]`` for every other token; else 0. ``theorem_3_change``: what a step on the pair adds to the
        chosen token's log-probability if the logits are all that is trained,
        ``(1 − s_w[i])(s_l[i] − s_w[i]) − Σ_{j≠i} s_w[j]·(s_l[j] − s_w[j])``, which the assumption makes ≤ 0.
    """
    chosen, rejected = gram.tokens_chosen.tolist(), gram.tokens_rejected.tolist()
    first = next((k for k, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), len(chosen))
    places = [(i, j) for i, j in align(chosen, rejected) if i is not None and j is not None and max(i, j) > first]
    same = [(i, j) for i, j in places if chosen[i] == rejected[j]]
    if not same:
        return {"theorem_3_holds": [], "theorem_3_change": []}
    logits = batch_logits(model, batch)
    behind = batch.response_mask.float().argmax(1) - 1 - (batch.input_ids.shape[1] - logits.shape[1])
    s_w, s_l = (
        logits[side, [int(behind[side]) + place[side] for place in same]].double().softmax(1) for side in (0, 1)
    )
    rows = torch.arange(len(same), device=logits.device)
    tokens = torch.tensor([chosen[i] for i, _ in same], device=logits.device)
    change = s_l - s_w
    own = change[rows, tokens]
    wrong = change < 0
    wrong[rows, tokens] = own > 0
    others = (s_w * change).sum(1) - s_w[rows, tokens] * own
    moved = (1 - s_w[rows, tokens]) * own - others
    return {"theorem_3_holds": (~wrong.any(1)).double().tolist(), "theorem_3_change": moved.tolist()}


def token_rows(step: int, pair_id: str, gram: TokenGram, tokenizer: Any) -> list[dict[str, Any]]:
    """Three rows of the ``tokens`` table: chosen against rejected, and each response within itself."""
    chosen, rejected = (token_strings(tokenizer, ids.tolist()) for ids in (gram.tokens_chosen, gram.tokens_rejected))
    sides = (
        ("chosen_rejected", chosen, rejected, gram.chosen_rejected, gram.cosine),
        ("chosen", chosen, chosen, gram.chosen, gram.cosine_chosen),
        ("rejected", rejected, rejected, gram.rejected, gram.cosine_rejected),
    )
    return [
        {
            "step": step,
            "pair_id": pair_id,
            "side": side,
            "tokens_rows": rows,
            "tokens_columns": columns,
            "inner": inner.flatten().tolist(),
            "cosine": cosine.flatten().tolist(),
        }
        for side, rows, columns, inner, cosine in sides
    ]
