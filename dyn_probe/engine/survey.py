"""Which modules of a model use which trained parameters: read once, and again where any of it has changed.

A walk by names takes longer than a training step's own Python where a model has many adapters, so a recorded step makes
none: it only asks whether modules and parameters are still the same ones.
"""

from __future__ import annotations

from torch import nn

from dyn_probe.engine.uses import Use, find_uses, is_split, trained_parameters


class Survey:
    """What is known of ``model``'s trained parameters; ``renew`` before each use of it.

    Args:
        model: the module that is called.

    ``trained`` maps plain names to parameters, ``uses`` lists the modules that own any, ``split`` says whether
    parameters are divided over processes (FSDP2).
    """

    trained: dict[str, nn.Parameter]
    uses: list[Use]
    split: bool

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._seen: list[int] = []
        self.renew()

    def renew(self) -> None:
        """Read the model again if a module or a trained parameter is not the one it was."""
        seen = _identities(self.model)
        if seen != self._seen:
            self.trained, self.uses, self.split = (
                trained_parameters(self.model),
                find_uses(self.model),
                is_split(self.model),
            )
            self._seen = seen


def _identities(model: nn.Module) -> list[int]:
    """Every module and trained parameter by its identity, in one order; 0 for a frozen parameter."""
    found: list[int] = []
    visited: set[int] = set()
    waiting: list[nn.Module | None] = [model]
    while waiting:
        module = waiting.pop()
        if module is None or id(module) in visited:
            continue
        visited.add(id(module))
        found.append(id(module))
        found.extend(id(p) if p is not None and p.requires_grad else 0 for p in module._parameters.values())
        waiting.extend(module._modules.values())
    return found
