"""Which parameter is used where, by which kind of module, and how parameters add up to layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from dyn_probe.errors import UnsupportedUse

_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


@dataclass(frozen=True)
class Kind:
    """How one kind of module uses its parameters: a row of ``gram.table.KINDS``.

    Args:
        name: the kind's name, as shown in errors and manifests.
        claims: whether a module looks like this kind (by its type and shapes alone).
        keep: ``(call) -> bool``: looks at one forward call, leaves in ``call.saved`` the tensors that the backward
            needs and in ``call.notes`` anything else; False if the call is not of this kind after all.
        factors: ``(call, saved, output gradients) -> {local parameter name: factor}``.
    """

    name: str
    claims: Callable[[nn.Module], bool]
    keep: Callable[[Call], bool]
    factors: Callable[[Call, Sequence[Tensor], Sequence[Tensor | None]], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Use:
    """A module with trained parameters of its own: ``parameters`` maps local names to model-wide names."""

    name: str
    module: nn.Module
    parameters: Mapping[str, str]


@dataclass(frozen=True)
class Span:
    """Where a pair's two rows have tokens, ``[start, end)``, and how many of the first tokens they share."""

    start_chosen: int
    end_chosen: int
    start_rejected: int
    end_rejected: int
    shared: int


@dataclass(eq=False)
class Call:
    """One forward call of a module, in a batch of ``rows`` rows and ``length`` positions."""

    use: Use
    rows: int
    length: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[Tensor, ...]
    spans: tuple[Span, ...] = ()
    kind: Kind | None = None
    saved: tuple[Tensor, ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def module(self) -> nn.Module:
        return self.use.module

    @property
    def trained(self) -> frozenset[str]:
        """Local names of the parameters that are trained."""
        return frozenset(self.use.parameters)

    def forget(self) -> None:
        """Drop the forward's own tensors once ``keep`` has taken what it needs."""
        self.args, self.kwargs, self.outputs = (), {}, ()


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


def explain(call: Call, kinds: Iterable[Kind], claimed: Kind | None = None) -> Kind:
    """The first kind that takes the call; what it needs then lies in ``call.saved``.

    Args:
        claimed: the kind that took this module before, asked first.
    """
    ordered = list(kinds) if claimed is None else [claimed, *(k for k in kinds if k is not claimed)]
    failed = "no rule explains this use"
    for kind in ordered:
        try:
            if kind.claims(call.module) and kind.keep(call):
                call.kind = kind
                return kind
        except UnsupportedUse:
            raise
        except Exception as error:  # a module of any kind runs inside a rule, and may raise anything
            failed = f"{failed}; the {kind.name} rule met {type(error).__name__}: {str(error).splitlines()[0]}"
    raise UnsupportedUse(f"{call.use.name} ({type(call.module).__name__}): {failed}")


_BLOCK = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Layer:
    """A layer's label and its place from input to output."""

    label: str
    depth: int


def layers_of(names: Sequence[str], uses: Sequence[Use]) -> dict[str, Layer]:
    """Parameter name → layer: ``embedding``, the block's number, ``final_norm`` or ``head``.

    A tied head counts as ``embedding``. Parameters before the first block that are no embedding count as
    ``embedding`` too, those behind the last one as ``final_norm`` unless they belong to a wide linear head.
    """
    embeddings = {n for use in uses if isinstance(use.module, nn.Embedding) for n in use.parameters.values()}
    blocks = {name: int(m.group(1)) for name in names if (m := _BLOCK.search(name))}
    last = max(blocks.values(), default=-1)
    ordered = list(names)
    first_block = next((i for i, n in enumerate(ordered) if n in blocks), len(ordered))
    final = {n for use in uses if not isinstance(use.module, nn.Linear) for n in use.parameters.values()}
    layers = {}
    for i, name in enumerate(ordered):
        if name in blocks:
            layers[name] = Layer(str(blocks[name]), blocks[name] + 1)
        elif name in embeddings or i < first_block:
            layers[name] = Layer("embedding", 0)
        elif name in final:
            layers[name] = Layer("final_norm", last + 2)
        else:
            layers[name] = Layer("head", last + 3)
    return layers
