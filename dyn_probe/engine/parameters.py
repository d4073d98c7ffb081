"""Which parameters a token Gram sums over: all, the head, the last block, or those that a regular expression finds."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from dyn_probe.engine.layers import layers_of
from dyn_probe.engine.uses import plain_name, trained_parameters
from dyn_probe.errors import BadInput

SHOWN = 5
"""Names that an error lists."""


def select_parameters(model: nn.Module, params: str) -> set[str]:
    """Names of the trained parameters that ``params`` means.

    Args:
        params: ``all``; ``head`` (those of the output embedding; a tied one is the input embedding's parameter);
            ``last-block`` (the model's last block, trained or not); or a regular expression on names.

    Raises:
        BadInput: nothing is selected; says what there is.
    """
    trained = trained_parameters(model)
    if params == "all":
        found, reason = set(trained), "the model has no trained parameter"
    elif params == "head":
        found, reason = _of_head(model)
    elif params == "last-block":
        found, reason = _of_last_block(model)
    else:
        found, reason = _matching(trained, params), f"no trained parameter matches {params!r}"
    if not found:
        names = ", ".join(list(trained)[:SHOWN]) or "none"
        names += f", … ({len(trained)} in all)" if len(trained) > SHOWN else ""
        raise BadInput(f"{reason}; trained are: {names}; write a regular expression that finds one")
    return found


def output_head(model: nn.Module) -> nn.Module | None:
    """The module that makes logits (``get_output_embeddings``), seen through DDP; None where the model names none."""
    inner: Any = model
    while not hasattr(inner, "get_output_embeddings") and isinstance(getattr(inner, "module", None), nn.Module):
        inner = inner.module
    named = getattr(inner, "get_output_embeddings", None)
    return named() if named is not None else None


def _of_head(model: nn.Module) -> tuple[set[str], str]:
    head = output_head(model)
    if head is None:
        return set(), f"{type(model).__name__} does not name its head (it has no output embedding)"
    own = {id(p) for p in head.parameters()}
    found = {name for name, p in trained_parameters(model).items() if id(p) in own}
    return found, "the head is not trained"


def _of_last_block(model: nn.Module) -> tuple[set[str], str]:
    trained = trained_parameters(model)
    names = [*trained, *(plain_name(name) for name, _ in model.named_parameters())]
    blocks = {name: int(layer.label) for name, layer in layers_of(names, ()).items() if layer.label.isdigit()}
    if not blocks:
        return set(), "the model has no numbered blocks"
    last = max(blocks.values())
    return {name for name in trained if blocks.get(name) == last}, f"the last block ({last}) is not trained"


def _matching(names: Iterable[str], pattern: str) -> set[str]:
    try:
        return {name for name in names if re.search(pattern, name)}
    except re.error as error:
        raise BadInput(f"--params wants all, head, last-block or a regular expression; {pattern!r}: {error}") from error
