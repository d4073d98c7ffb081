"""One forward and backward of the trainer, recorded: everything is seen from outside, and nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

from dyn_probe.attach.pair_losses import Means
from dyn_probe.attach.pair_texts import pair_batch
from dyn_probe.errors import BadInput
from dyn_probe.probe import Probe
from dyn_probe.probe.pair_differences import difference_columns

Guard = Callable[[Callable[..., None]], Callable[..., None]]


class MicroStep:
    """Between the trainer's ``training_step`` and its end.

    Args:
        probe: records the step.
        step: the optimizer step.
        inputs: the batch, as the trainer's collator made it.
        weights: of the terms of the loss.
        guard: put around everything that runs inside the trainer's own code.
    """

    def __init__(self, probe: Probe, step: int, inputs: Mapping[str, Any], weights: list[float], guard: Guard) -> None:
        self.probe, self.weights, self.guard = probe, weights, guard
        self.batch = pair_batch(inputs)
        self.loss: Tensor | None = None
        self._scale: Tensor | None = None
        self._watched = False
        self._means = Means(self.batch.pairs)
        self._inside, self._stack = ExitStack(), ExitStack()
        self._found: dict[str, Tensor] = {}
        if "ref_chosen_logps" in inputs:
            self._found["reference"] = torch.cat([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]])
        self._stack.enter_context(probe.step(step, self.batch.ids, responses=self.batch.response_mask))

    def watch(self, model: nn.Module, reference: nn.Module | None, plain_reference: bool) -> None:
        """See the policy's forward, and the reference's.

        Args:
            model: what the trainer calls with gradients.
            reference: what it calls without them; the policy itself where an adapter is switched off for that.
            plain_reference: whether given reference log-probabilities are plain sums over tokens.
        """
        hooks = [model.register_forward_hook(self.guard(self._policy))]
        if "reference" not in self._found and reference is not None:
            hooks.append(reference.register_forward_hook(self.guard(self._reference)))
        if not plain_reference:
            self._found.pop("reference", None)
        for hook in hooks:
            self._stack.callback(hook.remove)

    def _policy(self, _: nn.Module, args: Any, output: Any) -> None:
        if self._watched or not torch.is_grad_enabled():
            return
        tokens = self._tokens(output)
        said = self.batch.response_mask[:, 1:]
        columns = difference_columns(torch.nn.functional.pad(tokens.detach() * said, (1, 0)), self.batch)
        self.probe.pairs(tokens, mask=said, lengths=self.batch.lengths, **columns)  # type: ignore[arg-type]
        self._watched = True
        self._inside.enter_context(self._means)

    def _reference(self, _: nn.Module, args: Any, output: Any) -> None:
        if self._watched and not torch.is_grad_enabled() and "reference" not in self._found:
            self._found["reference"] = (self._tokens(output) * self.batch.response_mask[:, 1:]).sum(1)

    def _tokens(self, output: Any) -> Tensor:
        tokens = getattr(output, "log_probs", None)
        if not isinstance(tokens, Tensor) or tokens.shape != self.batch.response_mask[:, 1:].shape:
            raise BadInput(
                "the model was not called with the fused head of TRL 1.16, which gives outputs.log_probs [2B, L-1]; "
                "install trl>=1.16"
            )
        return tokens

    def take_loss(self, loss: Tensor) -> None:
        """The trainer has computed its loss; what it is scaled by on its way to the backward is read there."""
        self._inside.close()
        self.loss = loss.detach()
        if not self._watched:
            raise BadInput("the trainer computed a loss without calling its model with gradients")
        losses = self._means.losses(loss, self.weights)
        if losses is not None:
            self._found["losses"] = losses
        loss.register_hook(self.guard(self._take_scale))

    def _take_scale(self, gradient: Tensor) -> None:
        self._scale = gradient.detach()

    def finish(self) -> None:
        """The backward has run."""
        if self._scale is None:
            raise BadInput("the trainer's loss was not backpropagated")
        self.probe.complete(loss_scale=float(self._scale), **self._found)
        self._stack.close()

    def leave(self) -> None:
        """Take every hook away, whatever has happened."""
        self._inside.close()
        broken = BadInput("the step was broken off")
        with suppress(Exception):
            self._stack.__exit__(BadInput, broken, None)
