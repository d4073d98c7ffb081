"""The reference point of KTO: a KL estimate from responses to other prompts of the same batch.

The rule is TRL's (``KTOTrainer``): prompts keep their place and responses are rotated by one. Here it is done
within each side, so that with two pairs or more no prompt is combined with either of its own responses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dyn_probe.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor


def mismatched_rows(pairs: int) -> list[int]:
    """``[2B]`` row numbers: row ``i``'s prompt goes with the response of row ``mismatched_rows(B)[i]``.

    Pair ``i`` takes the responses of pair ``i − 1`` (the first those of the last), chosen for chosen,
    rejected for rejected: the set of responses stays that of the batch.
    """
    if pairs < 2:
        raise BadInput(f"the KL estimate of kto needs at least 2 pairs in a batch; got {pairs}: raise the batch size")
    return [side * pairs + (i - 1) % pairs for side in (0, 1) for i in range(pairs)]


def kl_estimate(logps: Tensor, reference: Tensor) -> Tensor:
    """Scalar max(0, mean(log π(y′|x) − log π_ref(y′|x))) in nats, without a gradient; the loss has the β.

    Args:
        logps, reference: ``[N]`` log-probabilities of the mismatched responses (nats, summed over tokens).
            With several processes, gather them first.
    """
    return (logps - reference).detach().mean().clamp(min=0)
