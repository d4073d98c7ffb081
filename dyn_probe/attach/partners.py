"""Responses of a training on single ones whose partner is not in their batch: counted, and said at the end."""

from __future__ import annotations

from dyn_probe.attach.collated import TrainerBatch
from dyn_probe.attach.user_lines import say
from dyn_probe.errors import BadInput
from dyn_probe.trace.writer import TraceWriter


class Partners:
    """Counts over one process's batches.

    Args:
        needed: whether every response must have its partner (the momentum of both sides, from all their gradients).
    """

    def __init__(self, needed: bool = False) -> None:
        self.needed = needed
        self.responses = self.unpaired = self._told = 0

    def count(self, batch: TrainerBatch) -> None:
        """One more batch.

        Raises:
            BadInput: a response without a partner, where each must have one.
        """
        if batch.rows is None:
            return
        self.responses += batch.size
        self.unpaired += batch.unpaired
        if self.needed and batch.unpaired:
            raise BadInput(
                f"split_momentum follows the gradients of all pairs, and {batch.unpaired} of {batch.size} responses of "
                "this batch have no partner in it; leave it out, or bring both responses of a prompt into one batch"
            )

    def missed(self) -> bool:
        """Whether a batch since the last call had responses without a partner."""
        before, self._told = self._told, self.unpaired
        return self.unpaired > before

    def tell(self, writer: TraceWriter) -> None:
        """Say what was not recorded, and keep it in ``run.json``."""
        if not self.unpaired:
            return
        writer.update_manifest(unpaired={"responses": self.responses, "without_partner": self.unpaired})
        say(
            f"{self.unpaired} of {self.responses} responses had no partner in their batch: they are no pairs and have "
            "no rows; their share of the gradient is `other_terms` of the table steps"
        )
