"""Which parameter is used where, and by which kind of module."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dyn_probe.engine.layout import Layout
from dyn_probe.errors import UnsupportedUse

_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


@dataclass(frozen=True)
class Kind:
    """How one kind of module uses its parameters: a row of ``kinds.KINDS``.

    Args:
        name: the kind's name, as shown in errors and manifests.
        claims: whether a module looks like this kind (by its type and shapes alone).
        check: ``(call) -> bool``: whether the module computes what this kind says, on one call; asked once per module
            and mode. May leave in ``call.claim.notes`` what later calls need.
        keep: ``(call) -> bool``: leaves in ``call.saved`` the tensors that the backward needs and in ``call.notes``
            anything else; False if the call is not of this kind after all.
        factors: ``(call, saved, output gradients) -> {local parameter name: factor}``.
        alike: ``(call) -> key``: calls with equal keys, whose tensors have the same shapes, may be stacked along their
            rows and given to ``factors`` as one call of any of their modules; None: this call may not.
        computes: whether ``keep`` computes with tensors or runs modules.
    """

    name: str
    claims: Callable[[nn.Module], bool]
    check: Callable[[Call], bool]
    keep: Callable[[Call], bool]
    factors: Callable[[Call, Sequence[Tensor], Sequence[Tensor | None]], dict[str, Any]]
    alike: Callable[[Call], Hashable | None] = lambda call: None
    computes: bool = True


@dataclass(frozen=True, eq=False)
class Use:
    """A module with trained parameters of its own: ``parameters`` maps local names to model-wide names."""

    name: str
    module: nn.Module
    parameters: Mapping[str, str]


@dataclass(eq=False)
class Claim:
    """What was found out about a module: its kind, the mode in which that was checked, and the kind's own notes."""

    kind: Kind
    mode: tuple[Any, ...]
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Call:
    """One forward call of a module; ``explain`` gives it its ``claim``."""

    use: Use
    layout: Layout
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[Tensor, ...]
    places: tuple[int, ...] = (0,)
    claim: Claim = None  # type: ignore[assignment]
    saved: tuple[Tensor, ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def module(self) -> Any:
        """The module, whose attributes its kind knows."""
        return self.use.module

    @property
    def kind(self) -> Kind:
        """The kind that explains the call."""
        return self.claim.kind

    @property
    def trained(self) -> frozenset[str]:
        """Local names of the parameters that are trained."""
        return frozenset(self.use.parameters)

    @property
    def mode(self) -> tuple[Any, ...]:
        """What a check depends on beside the module itself."""
        first = self.outputs[0]
        return (self.module.training, torch.is_autocast_enabled(first.device.type), first.dtype)

    def __str__(self) -> str:
        return f"{self.use.name} ({type(self.module).__name__})"


def plain_name(name: str) -> str:
    """A parameter's name without the prefixes that DDP, FSDP, ``torch.compile`` and checkpoint wrappers add."""
    return _WRAPPERS.sub("", name)


def find_uses(model: nn.Module) -> list[Use]:
    """Every module with trained parameters of its own. A parameter shared by two modules has one name in both."""
    names = {id(p): n for n, p in trained_parameters(model).items()}
    uses = []
    for module_name, module in model.named_modules():
        own = {local: names[id(p)] for local, p in module._parameters.items() if p is not None and id(p) in names}
        if own:
            uses.append(Use(plain_name(module_name + ".")[:-1] or "(model)", module, own))
    return uses


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters by plain name (by their full names if two would be one); shared ones once."""
    full = {n: p for n, p in model.named_parameters() if p.requires_grad}
    plain = {plain_name(n): p for n, p in full.items()}
    return plain if len(plain) == len(full) else full


def is_split(model: nn.Module) -> bool:
    """Whether parameters are split over processes (FSDP2)."""
    return any(hasattr(p, "placements") for p in trained_parameters(model).values())


def refuse(complaints: Collection[str], why: str = "") -> None:
    """Raise if there are complaints, with all of them.

    Raises:
        UnsupportedUse: there are some.
    """
    if complaints:
        raise UnsupportedUse(f"cannot record this model exactly{why}:\n  " + "\n  ".join(complaints))


def kept(call: Call, known: Claim) -> bool:
    """Whether what was found out about the module before holds for this call too; what it needs then lies in
    ``call.saved``."""
    if known.mode != call.mode:
        return False
    call.claim = known
    return known.kind.keep(call)


def explain(call: Call, kinds: Iterable[Kind], known: Claim | None = None) -> Claim:
    """The claim of the first kind that takes the call; what it needs then lies in ``call.saved``.

    Args:
        known: what was found out about this module before; enough if the mode is the same.

    Raises:
        UnsupportedUse: no kind takes it; says what went wrong.
    """
    if known is not None and kept(call, known):
        return known
    failed = "no rule explains this use"
    for kind in kinds:
        call.claim, call.notes = Claim(kind, call.mode), {}
        try:
            if kind.claims(call.module) and kind.check(call) and kind.keep(call):
                return call.claim
        except UnsupportedUse:
            raise
        except Exception as error:  # a module of any kind runs inside a rule, and may raise anything
            said = (str(error).splitlines() or [""])[0]
            failed = f"{failed}; the {kind.name} rule met {type(error).__name__}: {said}"
    raise UnsupportedUse(f"{call}: {failed}")
