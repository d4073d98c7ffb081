"""The ``tokens`` table: token Grams of a few pairs, the same ones through the whole run."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from dyn_probe.data.collating import collate
from dyn_probe.data.encoding import EncodedPair
from dyn_probe.data.token_text import token_strings
from dyn_probe.engine.tokens import TokenGram, token_gram
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
        with setup.autocast():
            gram = token_gram(setup.model, collate([pair], setup.pad_id).to(setup.device))
        run.writer.add("tokens", token_rows(step, pair.pair_id, gram, setup.tokenizer))


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
