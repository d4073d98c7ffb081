"""What the routes to the products of two linear uses cost, in multiply-adds of the device."""

from __future__ import annotations

from dyn_probe.engine.factors import Outer
from dyn_probe.engine.routes.merged import fewer, gathering
from dyn_probe.engine.routes.prefix import pairs_work
from dyn_probe.engine.routes.rates import CPU, rates_of

FUSED = 1.5
"""How long a multiply-add of the fused kernel takes beside a library's (measured 1.3 to 1.8 on a GPU)."""
LAUNCHES = 1e-4
"""Seconds that a dozen kernels more, those of token Grams, are taken to cost the host (not measured)."""
LARGEST = 1 << 24
"""Entries of all pairs' token Grams up to which they are written down where the kernel would write nothing: 64 MiB,
three times at once."""
LAUNCHED = {"cpu": 1 << 18}
DEVICE = 1 << 22
"""Numbers of all rows' gradients (elsewhere than on a CPU: ``DEVICE``) below which launches decide."""


def few(numbers: int, device: str) -> bool:
    """Whether launching costs more than computing where all rows' gradients have so many numbers."""
    return numbers <= LAUNCHED.get(device, DEVICE)


def cheaper_by_tokens(one: Outer, other: Outer, groups: int, sum_up: bool = False) -> bool:
    """Whether token Grams cost less than blocks: multiply-adds, and entries moved at the device's rates.

    Args:
        sum_up: whether the sum of the rows is wanted too, which blocks have at hand and token Grams have not. It goes
            by the rates of a CPU, since the training itself depends on the choice, which no clock may make.
    """
    size = one.rows * one.inputs.shape[-1] * one.grads.shape[-1]
    entry = (CPU if sum_up else rates_of(one.grads)).entry
    product = size * one.grads.shape[1]
    multiplied = size * other.rows // groups if groups == 1 else 0
    blocks = product + multiplied + (3 + sum_up) * entry * size
    return tokens_cost(one, other, groups, entry) + (sum_cost(one) if sum_up else 0) <= blocks


def fused_is_dearer(one: Outer, groups: int) -> bool:
    """Whether token Grams, where they are small enough to be written down, cost less than the fused kernel, which
    writes nothing down: where rows are short beside a large weight."""
    size, length, rates = one.rows * one.grads.shape[-1] * one.inputs.shape[-1], one.grads.shape[1], rates_of(one.grads)
    cost = tokens_cost(one, one, groups, rates.entry) + LAUNCHES * rates.products
    return groups * length**2 <= LARGEST and cost <= FUSED * size * length


def tokens_cost(one: Outer, other: Outer, groups: int, entry: float) -> float:
    """Of two linear uses by token Grams, in multiply-adds."""
    sizes = one.inputs.shape[-1] + one.grads.shape[-1] + entry
    if one is other and by_prompt(one, groups):
        return pairs_work(one.spans) / 2 * sizes
    n = one.rows // groups
    within = one.rows * other.rows // groups
    products = within * (n + 1) / (2 * n) if one is other else within
    return products * one.grads.shape[1] * other.grads.shape[1] * sizes


def sum_cost(one: Outer) -> float:
    """Of the sum of all rows, where no block is at hand, in multiply-adds."""
    inputs, outputs, length = one.inputs.shape[-1], one.grads.shape[-1], one.grads.shape[1]
    everything = one.rows * length
    needed = fewer(one.spans, length, inputs, outputs) if by_prompt(one, len(one.spans)) else everything
    return needed * inputs * outputs + (gathering(needed, inputs, outputs) if needed < everything else 0)


def by_prompt(one: Outer, groups: int) -> bool:
    """Whether token Grams of this use's pairs take what their rows share once, and leave out padding."""
    pairs = 2 * groups == one.rows == len(one.inputs)
    return pairs and len(one.spans) == groups and one.grads.device.type == "cpu"
