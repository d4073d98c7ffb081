"""One forward and backward of the trainer, recorded: everything is seen from outside, and nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

from dyn_probe.attach.collated import TrainerBatch
from dyn_probe.attach.pair_losses import Means
from dyn_probe.attach.token_logps import seen
from dyn_probe.attach.trainer_kinds import TrainerKind, vanishes
from dyn_probe.errors import BadInput
from dyn_probe.pairs import sums_by_segment
from dyn_probe.probe import Probe
from dyn_probe.probe.pair_differences import difference_columns

Guard = Callable[[Callable[..., None]], Callable[..., None]]


class MicroStep:
    """Between the trainer's ``training_step`` and its end.

    Args:
        probe: records the step.
        step: the optimizer step.
        inputs: the batch, as the trainer's collator made it.
        found: what is in it.
        kind: of the trainer.
        args: the trainer's.
        guard: put around everything that runs inside the trainer's own code.
    """

    def __init__(
        self,
        probe: Probe,
        step: int,
        inputs: Mapping[str, Any],
        found: TrainerBatch,
        kind: TrainerKind,
        args: Any,
        guard: Guard,
    ) -> None:
        assert found.pairs is not None
        self.probe, self.kind, self.args, self.guard = probe, kind, args, guard
        self.found, self.called = found, found.pairs
        self.batch = self.called.unpacked()
        self.loss: Tensor | None = None
        self._scale: Tensor | None = None
        self._watched = False
        self.dtype = torch.float32
        self._means = Means(found.size, guard)
        self._inside, self._stack = ExitStack(), ExitStack()
        self._found: dict[str, Tensor] = {}
        if "ref_chosen_logps" in inputs:
            self._found["reference"] = torch.cat([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]])
        if "ref_logps" in inputs:
            self._found["reference"] = found.of_responses(inputs["ref_logps"])
        mask, segments = self.called.response_mask, self.called.segments
        self._stack.enter_context(probe.step(step, self.batch.ids, segments=segments, responses=mask))

    def watch(self, trainer: Any, model: nn.Module, plain_reference: bool) -> None:
        """See the policy's forward, and the reference's.

        Args:
            model: what the trainer calls with gradients.
            plain_reference: whether given reference log-probabilities are plain sums over tokens.
        """
        self._vanishing = vanishes(trainer, self.kind)
        if not plain_reference:
            self._found.pop("reference", None)
        self._wanted = plain_reference and self.kind.reference and "reference" not in self._found
        hooks = [model.register_forward_hook(self.guard(self._policy), with_kwargs=True)]
        if self._wanted:
            reference = trainer.model if trainer.ref_model is None else trainer.ref_model
            hooks.append(reference.register_forward_hook(self.guard(self._reference), with_kwargs=True))
        for hook in hooks:
            self._stack.callback(hook.remove)
        self._inside.enter_context(seen(trainer, self.guard(self._take_tokens)))

    def _policy(self, _: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if torch.is_grad_enabled() and not self._watched:
            if isinstance(tokens := getattr(output, "log_probs", None), Tensor):
                self._take_tokens(tokens)
            self._inside.enter_context(self._means)

    def _reference(self, _: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if not torch.is_grad_enabled() and isinstance(tokens := getattr(output, "log_probs", None), Tensor):
            ids = kwargs.get("input_ids")
            self._take_tokens(tokens, ids[:, 1:] if isinstance(ids, Tensor) else None)

    def _take_tokens(self, tokens: Tensor, ids: Tensor | None = None) -> None:
        """``[rows, L-1]`` log-probabilities, of the policy with gradients, and then of the reference without.

        Args:
            ids: the tokens, where they are known.
        """
        if tokens.requires_grad and not self._watched:
            said, tokens = self.called.response_mask[:, 1:], self._fitting(tokens)
            columns = {}
            if self.probe.recording:
                columns = difference_columns(torch.nn.functional.pad(tokens.detach() * said, (1, 0)), self.called)
            given: dict[str, Any] = {"mask": said, "lengths": self.batch.lengths, "alone": self.found.unpaired == 0}
            self.probe.pairs(tokens, vanishing=self._vanishing, **given, **columns)  # type: ignore[arg-type]
            self._watched, self.dtype = True, tokens.dtype
        elif self._watched and self._wanted and not tokens.requires_grad and self._are_ours(ids):
            said = self.called.response_mask[:, 1:]
            self._found["reference"] = sums_by_segment(self._fitting(tokens) * said, self.called.segments)
            self._wanted = False

    def _are_ours(self, ids: Tensor | None) -> bool:
        """Whether these are the batch's own tokens, where a trainer also evaluates others (KTO's KL rows)."""
        own = self.called.input_ids[:, 1:]
        return self.found.rows is None or ids is None or (ids.shape == own.shape and bool(torch.equal(ids, own)))

    def _fitting(self, tokens: Tensor) -> Tensor:
        wanted = self.called.response_mask[:, 1:].shape
        if tokens.shape != wanted:
            raise BadInput(
                f"wanted log-probabilities of the tokens of {wanted[0]} rows, {list(wanted)}; the trainer computed "
                f"{list(tokens.shape)}"
            )
        return tokens

    def take_loss(self, loss: Tensor) -> None:
        """The trainer has computed its loss; what it is scaled by on its way to the backward is read there."""
        self._inside.close()
        self.loss = loss.detach()
        if not self._watched:
            raise BadInput(
                "the trainer computed its loss without token log-probabilities that can be seen (the fused head's "
                "outputs.log_probs, or TRL's selective_log_softmax); record a trainer that computes them as TRL does"
            )
        weights = list(self.kind.terms(self.args).values())
        losses = self._means.losses(loss, weights, self.kind.likelihood(self.args))
        if losses is not None:
            self._found["losses"] = self.found.of_pairs(losses)
        loss.register_hook(self.guard(self._take_scale))

    def _take_scale(self, gradient: Tensor) -> None:
        self._scale = gradient.detach()

    def finish(self) -> None:
        """The backward has run."""
        if self._scale is None:
            raise BadInput("the trainer's loss was not backpropagated")
        others = self._means.coefficients(self.called.response_mask[:, 1:])
        if others is not None:
            self._found["coefficients"] = others
        self.probe.complete(loss_scale=self._scale * self.found.share, **self._found)
        self._stack.close()

    def leave(self) -> None:
        """Take every hook away, whatever has happened."""
        self._inside.close()
        broken = BadInput("the step was broken off")
        with suppress(Exception):
            self._stack.__exit__(BadInput, broken, None)
