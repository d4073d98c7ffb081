"""The tap: an identity in the graph that keeps a module's input and meets its output-gradient in the backward.

What is kept goes through ``save_for_backward`` and so through autograd's own saved-tensor machinery: gradient
checkpointing, DDP and FSDP work, and no activation is pinned beyond what autograd keeps anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dyn_probe.engine.arithmetic import autocast_type
from dyn_probe.engine.heads.fused_head import FusedHead, fused_heads
from dyn_probe.engine.kinds import KINDS
from dyn_probe.engine.layout import Layout
from dyn_probe.engine.randomness import have_moved, random_states
from dyn_probe.engine.shield import Shield
from dyn_probe.engine.survey import Survey
from dyn_probe.engine.uses import Call, Use, explain, kept, refuse
from dyn_probe.errors import BadInput, UnsupportedUse

Receiver = Callable[[Call, Sequence[Tensor], Sequence[Tensor | None]], None]


def nobody(*_: object) -> None:
    """The receiver where none is there."""


class Tap(torch.autograd.Function):
    """Identity on ``outputs``; its backward hands ``(call, saved, output gradients)`` to ``receive``.

    Every tap also takes the ``anchor``, a scalar that requires a gradient: ``autograd.grad(..., [anchor])`` runs all
    taps and computes no gradient of a parameter.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, receive: Receiver, call: Call, anchor: Tensor, saved: Sequence[Tensor], *outputs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.receive, ctx.call = receive, call
        ctx.save_for_backward(*saved)  # given in a sequence, so that no edge of the graph leads to them
        # `.data` is the same storage under a new, view-free tensor: the model may go on to change it in place.
        return tuple(t.data for t in outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if any(grad is not None for grad in grads):
            ctx.receive(ctx.call, ctx.saved_tensors, grads)
        return (None, None, None, None, *grads)


class Meanwhile:
    """Inside, ``owner`` has another value of an attribute (entered for every use: a generator would be slow)."""

    def __init__(self, owner: object, attribute: str, value: object) -> None:
        self.owner, self.attribute, self.value, self.was = owner, attribute, value, getattr(owner, attribute)

    def __enter__(self) -> None:
        setattr(self.owner, self.attribute, self.value)

    def __exit__(self, *_: object) -> None:
        setattr(self.owner, self.attribute, self.was)


class Capture:
    """Hooks on every module of ``model`` with trained parameters, for one forward; they leave with the context.

    Args:
        model: the module that is called (a DDP or PEFT wrapper is fine).
        receiver: called from the backward, once per tapped call.
        segments: ``[rows, length]`` response of each position, for packed rows (``layout.Layout``).
        shield: around every hook.
        survey: what is known of the model's parameters and modules, completed here; renewed by whoever gives it.

    ``around`` is autocast's type where the model is called; ``autocast`` says whether any module runs under it, for the
    forward may enter it itself; ``dtypes`` maps the types of what the uses give to these uses' names.
    """

    def __init__(
        self,
        model: nn.Module,
        receiver: Receiver,
        segments: Tensor | None = None,
        shield: Shield | None = None,
        survey: Survey | None = None,
    ) -> None:
        self.model, self._segments = model, segments
        self.shield = Shield() if shield is None else shield
        self.receiver, self._received = receiver, self.shield.around(self._receive)
        self.survey = Survey(model) if survey is None else survey
        self.uses: list[Use] = self.survey.uses
        self.layout = Layout(0, 0)
        self.around: torch.dtype | None = None
        self.autocast = self.random = False
        self.calls: dict[nn.Module, int] = {}
        self.taken: dict[str, list[Call]] = {}
        self.complaints: list[str] = []
        self.hidden: dict[str, None] = {}
        self.leaves: dict[int, str] = {}
        self.dtypes: dict[torch.dtype, set[str]] = {}
        self.widened: list[str] = []
        self.entry: tuple[Any, Any, Tensor] | None = None
        self.output: Any = None
        self.anchor: Tensor
        self._device: str
        self._inside = self.busy = False
        self._forwards = 0
        self._random_states: list[Any] = []
        self._hooks = ExitStack()
        self._handles: list[Any] = []

    def __enter__(self) -> Capture:
        if not self.uses:
            raise BadInput("the model has no trained parameter (requires_grad is False everywhere)")
        device = next(iter(self.survey.trained.values())).device
        self.anchor, self._device = torch.zeros((), device=device, requires_grad=True), device.type
        around = self.shield.around
        with self._hooks as hooks:  # gone at once if one of them cannot be placed
            self.undo(self._remove)
            self._add(self.model.register_forward_pre_hook(around(self._enter_model), with_kwargs=True))
            for use in self.uses:
                hook = around(partial(self._used, use), True)
                self._add(use.module.register_forward_hook(hook, with_kwargs=True, prepend=True))
            for head in fused_heads(self.survey.language_models, self.uses):
                self._add(head.model.base_model.register_forward_hook(around(partial(self._enter_head, head))))
                self._add(head.model.register_forward_hook(around(partial(self._leave_head, head)), with_kwargs=True))
            self._add(self.model.register_forward_hook(around(self._leave_model), always_call=True))
            self._hooks = hooks.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()
        self.entry = self.output = None
        self.receiver = nobody  # it may hold what it has received

    def _add(self, handle: Any) -> None:
        self._handles.append(handle)

    def _remove(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def undo(self, step: Callable[[], Any]) -> None:
        """Call ``step`` when the capture is left."""
        self._hooks.callback(step)

    def _enter_model(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled() or self.busy:
            return
        tensors = (t.shape for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.dim() > 1)
        shape = next(tensors, None)
        if shape is None:
            raise BadInput("the recorder found no batched tensor among the model's arguments")
        self._forwards += 1
        if self._forwards > 1:
            raise BadInput(
                "the recorded step called the model twice with gradients; wanted one call over all 2B rows, "
                "[chosen; rejected] (run other passes under torch.no_grad(), or outside probe.step)"
            )
        self.layout, self._inside = Layout.of(shape, kwargs, self._segments), True
        self.around = autocast_type(self.anchor.device.type)
        self.entry = (args, kwargs, torch.get_rng_state())
        self._random_states = random_states(self.survey.trained.values())

    def _leave_model(self, _: nn.Module, args: object, output: Any) -> None:
        if not self.busy and self._inside:
            self._inside = False
            self.random = have_moved(self._random_states, random_states(self.survey.trained.values()))
            self.output = output if self.widened else None

    def _used(self, use: Use, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """The hook of a use."""
        if self.busy or not self._forwards:
            return None
        for local, name in use.parameters.items():  # FSDP2 puts whole parameters in place for the forward
            self.leaves[id(module._parameters[local])] = name
        leaves, spec = ([output], None) if isinstance(output, Tensor) else pytree.tree_flatten(output)
        if self._inside:
            self.calls[module] = self.calls.get(module, 0) + 1
            self.autocast = self.autocast or torch.is_autocast_enabled(self._device)
            for one in leaves:
                if isinstance(one, Tensor):
                    self.dtypes.setdefault(one.dtype, set()).add(use.name)
        if not torch.is_grad_enabled() or not self._tap(use, args, kwargs, leaves):
            return None
        return leaves[0] if spec is None else pytree.tree_unflatten(leaves, spec)

    def _enter_head(self, head: FusedHead, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._inside and not self.busy and torch.is_grad_enabled():
            head.enter(output)

    def _leave_head(
        self, head: FusedHead, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """A tap on the log-probabilities of a head that is not called."""
        fused = isinstance(getattr(output, "log_probs", None), Tensor) and not self.calls.get(head.use.module)
        if not fused or not self._inside or self.busy or not torch.is_grad_enabled():
            return
        try:
            with self.quiet(), torch.no_grad():
                call = head.call(self.layout, kwargs, output)
                if head.model not in self.survey.claims:
                    head.check(call, output.log_probs)
        except UnsupportedUse as error:
            self.complaints.append(str(error))
            return
        self.survey.claims[head.model] = call.claim
        self.calls[head.use.module] = 1
        output.log_probs = self._put_tap(call)[0]

    def _tap(self, use: Use, args: tuple[Any, ...], kwargs: dict[str, Any], leaves: list[Any]) -> bool:
        """Put taps on the tensors among what a use gave, in their places; whether there were any."""
        places = tuple([i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad])
        if not places:
            return False
        call = Call(use, self.layout, args, kwargs, tuple([leaves[i] for i in places]), places)
        claims = self.survey.claims
        known = claims.get(use.module)
        try:
            if known is None or known.kind.computes or not kept(call, known):
                with self.quiet(), torch.no_grad():
                    claims[use.module] = explain(call, KINDS, known)
        except UnsupportedUse as error:
            self.complaints.append(str(error))
            return False
        if call.notes.get("per_batch"):  # used once for the whole batch: give every row its own
            rows, length = self.layout.rows, self.layout.length
            call.outputs = tuple(t.expand(rows, length, t.shape[-1]).clone() for t in call.outputs)
            self.widened.append(use.name)
        for place, tensor in zip(places, self._put_tap(call), strict=True):
            leaves[place] = tensor
        return True

    def _put_tap(self, call: Call) -> tuple[Tensor, ...]:
        """The call's outputs behind a tap."""
        outputs, saved = call.outputs, call.saved
        call.args, call.kwargs, call.outputs, call.saved = (), {}, (), ()  # the forward's own tensors may go
        for name in call.use.parameters.values():
            self.taken.setdefault(name, []).append(call)
        tapped: tuple[Tensor, ...] = Tap.apply(self._received, call, self.anchor, saved, *outputs)
        return tapped

    def _receive(self, call: Call, saved: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        with self.quiet():
            self.receiver(call, saved, grads)

    def quiet(self) -> Meanwhile:
        """Modules that run inside are not tapped: the rules themselves run some again."""
        return Meanwhile(self, "busy", True)

    def receiving(self, receiver: Receiver) -> Meanwhile:
        """Backwards that run inside report to ``receiver``."""
        return Meanwhile(self, "receiver", receiver)

    @property
    def expected(self) -> dict[str, int]:
        """How many calls use each parameter in this batch's forward."""
        counts: dict[str, int] = {}
        for use in self.uses:
            for name in use.parameters.values():
                counts[name] = counts.get(name, 0) + self.calls.get(use.module, 0)
        return counts

    def check(self) -> None:
        """Raise what the forward could not explain, all of it at once.

        Raises:
            UnsupportedUse: with every use that no rule explains.
        """
        self.shield.check()
        refuse(dict.fromkeys(self.complaints))
        if not self._forwards:
            raise BadInput("the model given to the recorder was not called; give it the module that you call")
