"""What a user can change, in the words of the trainers: one row per knob. Verdicts refer to them by key."""

from __future__ import annotations

KNOBS: dict[str, str] = {
    "lr": "lower the learning rate: predicted changes are proportional to it",
    "beta": ("raise beta: the loss is content at a margin of about 1/beta, so both responses stop moving earlier"),
    "sft": "add an SFT (NLL) term on chosen: it raises d_w and leaves d_l alone",
    "rejected": ("weaken the rejected side where it is improbable already: a gate (Gate-DPO) or DPO-Shift lowers d_l"),
    "chosen": "strengthen the chosen side: AdaDPO, DPOP and Cal-DPO raise d_w where chosen falls",
    "normalise": "normalise pairwise: d_w/d_l = ‖g_l‖/‖g_w‖ meets both conditions for every pair",
    "length": "take out the length: a length penalty (R-DPO) or per-token rewards (SimPO, averaged IPO)",
    "data": "look at these pairs: near-duplicates, swapped labels, responses that differ in a few tokens",
    "early": "stop earlier, or keep the checkpoint from before this",
    "clip": "relax clipping or lower the learning rate: at present the norm is set by clipping",
    "objective": "another objective changes d_w and d_l, the only way in which a loss acts on a pair",
    "others": "look at what is in a batch: balancing the pulls of the pair itself would not stop this fall",
    "record": "record more in the next run",
}
