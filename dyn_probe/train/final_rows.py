"""The pairs that a run is trained on, as the training finds them and as it leaves them."""

from __future__ import annotations

from dyn_probe.data.encoding import EncodedPair
from dyn_probe.train.reference_model import evaluate_pairs
from dyn_probe.train.run import Run
from dyn_probe.train.start import pairs_trained_on


def measure_start(run: Run) -> None:
    """Keep the log-probabilities of the pairs of ``record_final`` before training, where there is no reference to say
    them."""
    if run.reference is None:
        run.pairs_start = _evaluated(run, _pairs(run), "at the start")


def record_final(run: Run) -> None:
    """Write the table ``final``: log-probabilities of the pairs that the steps used, at most ``--final-pairs`` of them.

    Held-out pairs are not among them. The pairs are those that were met first.
    """
    pairs = _pairs(run)
    table = _evaluated(run, pairs, "at the end  ")
    if pairs and run.setup.processes.first:
        run.writer.add("final", [_row(run, pair, *table[pair.pair_id]) for pair in pairs])


def _pairs(run: Run) -> list[EncodedPair]:
    return pairs_trained_on(run.setup)[: run.config.final_pairs]


def _evaluated(run: Run, pairs: list[EncodedPair], label: str) -> dict[str, tuple[float, float]]:
    """Pair id → log-probabilities ``(a, b)`` (nats) with the weights as they are."""
    setup = run.setup
    if not pairs:
        return {}
    with run.display.bar(label, len(pairs)) as advance:
        return evaluate_pairs(
            run.module, pairs, setup.pad_id, 2 * run.config.batch_size, setup.device, setup.autocast, advance,
            setup.processes,
        )  # fmt: skip


def _row(run: Run, pair: EncodedPair, chosen: float, rejected: float) -> dict[str, object]:
    start = run.pairs_start.get(pair.pair_id, (None, None))
    return {
        "pair_id": pair.pair_id,
        "rank": 0,
        "logp_chosen": chosen,
        "logp_rejected": rejected,
        "start_logp_chosen": start[0],
        "start_logp_rejected": start[1],
        "len_chosen": len(pair.chosen.ids) - pair.chosen.start,
        "len_rejected": len(pair.rejected.ids) - pair.rejected.start,
    }
