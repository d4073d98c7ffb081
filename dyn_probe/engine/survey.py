"""Which modules of a model use which trained parameters: read once, and again where any of it has changed.

A walk by names takes longer than a training step's own Python where a model has many adapters, so a recorded step makes
none: it only asks whether modules and parameters are still the same ones.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from dyn_probe.engine.uses import Claim, find_uses, is_split, trained_parameters


class Survey:
    """What is known of ``model``'s trained parameters; ``renew`` before each use of it.

    Args:
        model: the module that is called.

    ``trained`` maps plain names to parameters, ``uses`` lists the modules that own any, ``language_models`` those of
    transformers, ``split`` says whether parameters are divided over processes (FSDP2). ``claims`` is what captures
    found out about modules, so that each is examined once in a run.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.claims: dict[nn.Module, Claim] = {}
        self._modules: list[nn.Module] = []
        self._seen: Any = None
        self.renew()

    def renew(self) -> None:
        """Read the model again if a module or a trained parameter is not the one it was."""
        if self._seen == self._identities():
            return
        self._modules = list(self.model.modules())
        self._seen = self._identities()
        self.trained, self.uses = trained_parameters(self.model), find_uses(self.model)
        self.split = is_split(self.model)
        self.language_models = [module for module in self._modules if isinstance(module, PreTrainedModel)]

    def _identities(self) -> tuple[Any, ...]:
        """The children of every module and the parameters by their identity, and which are trained."""
        children = chain.from_iterable([module._modules.values() for module in self._modules])
        parameters = list(chain.from_iterable([module._parameters.values() for module in self._modules]))
        trained = [p is not None and p.requires_grad for p in parameters]
        return tuple(map(id, children)), tuple(map(id, parameters)), trained


def distributed() -> bool:
    """Whether this is one of several processes."""
    running = torch.distributed.is_available() and torch.distributed.is_initialized()
    return running and torch.distributed.get_world_size() > 1
