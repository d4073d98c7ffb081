"""A fast way that nobody has tried on this device yet: believed once it has agreed with a slow one.

The first call of each kind is compared with the slow way on the same input; where it differs, or cannot run there, that
is said once and the slow way is used. Answers that are not finite (usual in the first steps of float16 with a loss
scale) compare nothing: the next call does.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

AGREE = 1e-4
"""Largest difference, relative to what an error is measured by: what another order of float32 sums may make."""


@dataclass(eq=False)
class Trusted:
    """What has been found out about a fast way on the devices of this process.

    Args:
        name: of the fast way, in a warning.
        instead: what is used where it is not trusted, in the same sentence.
    """

    name: str
    instead: str
    usable: dict[Hashable, bool] = field(default_factory=dict)

    def __call__(
        self,
        key: Hashable,
        fast: Callable[[], Tensor],
        slow: Callable[[], Tensor],
        sizes: Callable[[Tensor], Tensor],
    ) -> Tensor | None:
        """The answer by the fast way where it is trusted; None where it is not.

        Args:
            key: what the trust is in: device, type, and whatever else makes another program of it.
            slow: asked, and its answer given, as long as it is not finite.
            sizes: what an error is measured by, of the slow answer.
        """
        if key not in self.usable:
            wanted = slow()
            if not bool(wanted.isfinite().all()):
                return wanted
            self.usable[key] = self.agrees(fast, wanted, sizes(wanted))
        return fast() if self.usable[key] else None

    def agrees(self, fast: Callable[[], Tensor], wanted: Tensor, sizes: Tensor) -> bool:
        """Whether the fast way runs and gives what is wanted; warns where not."""
        try:
            found = fast()
        except Exception as error:  # a compiler for a device that nobody has tried yet may raise anything
            said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        else:
            missed = (found - wanted).abs().double()  # nothing missed of nothing agrees
            worst = float((missed / sizes.double().clamp(min=1e-300)).nan_to_num(float("inf")).max())
            if worst <= AGREE:
                return True
            said = f"it differs from the slow way by {worst:.1e}"
        warnings.warn(f"{self.name} is not used on this device ({said}); {self.instead}", stacklevel=2)
        return False


def on_device(tensor: Tensor) -> AbstractContextManager[None]:
    """Kernels are launched on the current device, which need not be the one that a tensor lies on."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
