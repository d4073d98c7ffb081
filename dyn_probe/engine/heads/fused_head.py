"""Models whose forward gives token log-probabilities without calling their head (``fused_lm_head=True`` in TRL).

The head's weight is used all the same, inside a function that no module hook sees. Its part is explained by a tap on
the log-probabilities: with the hidden states that enter the head it is made again (``head_rows``). On a module's
first call that is compared with what came out; whatever else happens between hidden states and log-probabilities is
refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dyn_probe.engine.arithmetic import autocast_type
from dyn_probe.engine.factors import Factor, Vector
from dyn_probe.engine.heads.head_rows import HeadMath, HeadRows, repeats_exactly
from dyn_probe.engine.layout import Layout
from dyn_probe.engine.module_copy import agree
from dyn_probe.engine.uses import Call, Claim, Kind, Use
from dyn_probe.errors import UnsupportedUse

SCALES: tuple[tuple[str, Callable[[float], float]], ...] = (
    ("logit_scale", float),
    ("output_multiplier", float),
    ("lm_head_multiplier", float),
    ("logits_scaling", lambda divisor: 1.0 / divisor),
)
"""Where a configuration keeps what logits are multiplied by, and how it is read; the first that is there counts."""


@dataclass(eq=False)
class FusedHead:
    """A model with a trained head, during one forward.

    Args:
        model: a causal language model.
        use: the module that owns the head's weight.
    """

    model: PreTrainedModel
    use: Use
    hidden: Tensor | None = None
    dtype: torch.dtype = torch.float32

    def enter(self, output: Any) -> None:
        """The backbone has run: what it puts out enters the head, under the autocast that is on now."""
        hidden = getattr(output, "last_hidden_state", None)
        if isinstance(hidden, Tensor):
            self.hidden, self.dtype = hidden, autocast_type(hidden.device.type) or hidden.dtype

    def call(self, layout: Layout, kwargs: dict[str, Any], output: Any) -> Call:
        """The head's use behind ``output.log_probs``.

        Raises:
            UnsupportedUse: the log-probabilities are made of something else.
        """
        hidden, self.hidden = self.hidden, None
        logps, targets = output.log_probs, kwargs.get("shift_labels")
        if targets is None and isinstance(labels := kwargs.get("labels"), Tensor):
            targets, hidden = labels[:, 1:], None if hidden is None else hidden[:, :-1]
        if targets is None or hidden is None or not logps.shape == targets.shape == hidden.shape[:2]:
            raise UnsupportedUse(
                f"{self}: its log-probabilities do not fit the hidden states and labels position by position"
            )
        call = Call(self.use, layout, (), {}, (logps,))
        call.notes.update(math=(self.scale, self.cap, self.dtype), exact=repeats_exactly(self.dtype))
        call.saved = _response_part(layout, hidden.detach(), targets, logps.detach())
        call.claim = Claim(KIND, call.mode)
        return call

    def check(self, call: Call, logps: Tensor) -> None:
        """Hold the log-probabilities to those of the head on its inputs.

        Raises:
            UnsupportedUse: they differ.
        """
        hidden, targets, at, valid, _ = call.saved
        again = math_of(call).log_probs(hidden, targets)[valid]
        if not agree(call.layout.by_response(logps, 0).gather(1, at)[valid], again):
            raise UnsupportedUse(
                f"{self}: its log-probabilities are not those of its head on the last hidden states; leave out what "
                "replaces the head or changes logits (Liger's fused loss: use_liger_kernel=False; kernels from the "
                "hub: use_kernels=False)"
            )

    @property
    def scale(self) -> float:
        """What the model multiplies its logits by."""
        config = self.model.config.get_text_config()
        if config.model_type == "hyperclovax" and getattr(config, "logits_scaling", None) is not None:
            return float(config.logits_scaling)
        found = ((getattr(config, name, None), read) for name, read in SCALES)
        return next((read(value) for value, read in found if value is not None), 1.0)

    @property
    def cap(self) -> float | None:
        """Where the model caps its logits."""
        return getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)

    def __str__(self) -> str:
        return f"{type(self.model).__name__}, called with a fused head"


def fused_heads(models: Iterable[PreTrainedModel], uses: Sequence[Use]) -> list[FusedHead]:
    """Of these models the causal language models whose head is trained."""
    found = []
    for module in models:
        if module.base_model is not module:
            head = module.get_output_embeddings()
            weight = getattr(head, "weight", None)
            owners = [use for use in uses if weight is not None and use.module._parameters.get("weight") is weight]
            if owners:
                found.append(FusedHead(module, min(owners, key=lambda use: use.module is not head)))
    return found


def _response_part(layout: Layout, hidden: Tensor, targets: Tensor, logps: Tensor) -> tuple[Tensor, ...]:
    """``(h, y, at, valid, log π)``: inputs, targets and their log-probabilities ``[R, P]`` of each response at its
    positions ``at`` that have a target, filled up where one has fewer (not ``valid``)."""
    there = layout.by_response(targets != -100, 0)
    hidden, targets = layout.by_response(hidden), layout.by_response(targets, 0)
    width = max(1, int(there.sum(1).max()))
    at = (~there).byte().argsort(dim=1, stable=True)[:, :width]
    valid = there.gather(1, at)
    kept = hidden.gather(1, at[..., None].expand(-1, -1, hidden.shape[-1]))
    said = layout.by_response(logps, 0).gather(1, at)  # a copy: a trainer may go on to change its own
    return kept, targets.gather(1, at).clamp(min=0), at, valid, said


def math_of(call: Call) -> HeadMath:
    """The head's arithmetic, with its weights as they are."""
    parameters = call.module._parameters
    weight, bias = parameters["weight"], parameters.get("bias")
    assert weight is not None
    return HeadMath(weight.detach(), None if bias is None else bias.detach(), *call.notes["math"])


def factors(call: Call, saved: Sequence[Tensor], grads: Sequence[Tensor | None]) -> dict[str, Factor]:
    """Weight as an outer product that is made in slices, bias as the sum of its output-gradients."""
    hidden, targets, at, valid, logps = saved
    assert grads[0] is not None
    c = call.layout.by_response(grads[0], 0).gather(1, at).masked_fill(~valid, 0)
    math, normaliser = math_of(call), None
    if call.notes["exact"]:
        normaliser = (math.own_logits(hidden, targets) - logps).masked_fill(~valid, torch.inf)
    rows = HeadRows(c, hidden, cut=True, targets=targets, math=math, normaliser=normaliser)
    found: dict[str, Factor] = {"weight": rows} if "weight" in call.trained else {}
    if "bias" in call.trained:
        found["bias"] = Vector(rows.summed())
    return found


KIND = Kind("fused head", lambda module: False, lambda call: False, lambda call: False, factors)
"""No module is claimed by it: the use is found at the model's output."""
