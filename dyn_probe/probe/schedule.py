"""Which steps are recorded, and what is recorded on them."""

from __future__ import annotations

from dataclasses import dataclass

from dyn_probe.errors import BadInput


@dataclass
class Schedule:
    """Steps by divisibility; 0 never.

    Args:
        every: steps that are recorded at all, at least 1.
        gram_every: recorded steps with the full Gram of the batch.
        metric_every: recorded steps whose update is taken apart.

    Raises:
        BadInput: a number below these.
    """

    every: int = 1
    gram_every: int = 0
    metric_every: int = 0

    def __post_init__(self) -> None:
        if self.every < 1 or self.gram_every < 0 or self.metric_every < 0:
            said = ", ".join(f"{name}={value}" for name, value in vars(self).items())
            raise BadInput(f"wanted every >= 1, gram_every >= 0 and metric_every >= 0; got {said}")

    def records(self, step: int) -> bool:
        """Whether the step is recorded."""
        return step % self.every == 0

    def full_gram(self, step: int) -> bool:
        """Whether the full Gram is recorded."""
        return self.records(step) and self.gram_every > 0 and step % self.gram_every == 0

    def takes_apart(self, step: int) -> bool:
        """Whether the optimizer's step is taken apart."""
        return self.records(step) and self.metric_every > 0 and step % self.metric_every == 0

    def realises(self, step: int, every: int) -> bool:
        """Whether the realised change is measured, if that is wanted at steps divisible by ``every`` (0 never)."""
        return self.records(step) and every > 0 and step % every == 0
