"""The pairwise-normalised update by full gradients: one backward per response, then plain vector arithmetic."""

from __future__ import annotations

import torch


def normalised_gradient(gradients, d_w, d_l):
    """``{name: [n]}``: the gradient of the mean loss, −C·(g_w/‖g_w‖ − g_l/‖g_l‖) per pair with C = √(d_w d_l).

    ``gradients`` holds ``{name: [2B, n]}``, chosen rows first; ``d_w``, ``d_l`` are lists of positive numbers.
    """
    norms = torch.stack([(values**2).sum(1) for values in gradients.values()]).sum(0).sqrt()
    pairs = len(d_w)
    update = {name: torch.zeros_like(values[0]) for name, values in gradients.items()}
    for pair in range(pairs):
        scalar = (d_w[pair] * d_l[pair]) ** 0.5
        for name, values in gradients.items():
            chosen, rejected = values[pair] / norms[pair], values[pair + pairs] / norms[pair + pairs]
            update[name] = update[name] - scalar * (chosen - rejected) / pairs
    return update
