"""The end of a run: every pair that was trained on, evaluated once more with the weights that the training left."""

from __future__ import annotations

from dyn_probe.train.reference_model import evaluate_pairs
from dyn_probe.train.run import Run
from dyn_probe.train.start import pairs_trained_on


def record_final(run: Run) -> None:
    """Write the table ``final``: log-probabilities of the pairs that the steps used, at most ``--final-pairs`` of them.

    Held-out pairs are not among them. The pairs are those that were met first.
    """
    config, setup = run.config, run.setup
    pairs = pairs_trained_on(setup)[: config.final_pairs]
    if not pairs:
        return
    with run.display.bar("at the end  ", len(pairs)) as advance:
        table = evaluate_pairs(
            run.module, pairs, setup.pad_id, 2 * config.batch_size, setup.device, setup.autocast, advance,
            setup.processes,
        )  # fmt: skip
    if setup.processes.first:
        run.writer.add(
            "final",
            [
                {
                    "pair_id": pair.pair_id,
                    "rank": 0,
                    "logp_chosen": table[pair.pair_id][0],
                    "logp_rejected": table[pair.pair_id][1],
                    "len_chosen": len(pair.chosen.ids) - pair.chosen.start,
                    "len_rejected": len(pair.rejected.ids) - pair.rejected.start,
                }
                for pair in pairs
            ],
        )
