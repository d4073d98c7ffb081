"""What a pairwise-normalised step costs: a plain DPO step, the normalised step, and the naive way (two backward passes
per pair, gradients kept and added), in one run.

    python benchmarks/normalised.py [--small] [--length 128] [--pairs 4] [--rounds 5] [--device cpu]

The model has GPT-2 small's shape (124 M parameters, tied head, random weights); a step is forward, backward and AdamW.
The variants take turns within each round; the table shows medians and their ratio to the DPO step (at most 1.25 is the
goal). First it says by how much the normalised gradient differs from the naive one. ``--small`` is a quick check of the
script itself.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from overhead import batch_of, dpo_loss, gpt2_small
from transformers import GPT2Config, GPT2LMHeadModel

from dyn_probe import PairBatch, Probe, sequence_logps
from dyn_probe.objectives import normalised_pulls

GOAL = 1.25
PULL = 0.05
"""DPO's pulls at a log-ratio of 0: β/2."""


def tiny(device: str) -> GPT2LMHeadModel:
    """The same kind of model, small enough for a quick check."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=128, n_layer=2, n_head=4, vocab_size=50257, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    return GPT2LMHeadModel(config).to(device).train()


def dpo(model: Any, batch: PairBatch, _: Probe) -> None:
    """Gradients of the plain DPO loss."""
    dpo_loss(sequence_logps(model, batch)).backward()


def normalised(model: Any, batch: PairBatch, probe: Probe) -> None:
    """Gradients of the pairwise-normalised update, from one backward."""
    with probe.step(1, batch.ids, learning_rate=1e-6, measure=True):
        logps = sequence_logps(model, batch)
        pull = torch.full((batch.pairs,), PULL, device=logps.device)
        new = normalised_pulls(pull, pull, *(norm.to(pull) for norm in probe.measure(logps)))
        probe.backward(torch.cat([-new.chosen, new.rejected]) / batch.pairs)


def naive(model: Any, batch: PairBatch, _: Probe) -> None:
    """The same gradients from two backward passes per pair."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    logps = sequence_logps(model, batch)
    total = [torch.zeros_like(p) for p in parameters]
    for row, logp in enumerate(logps):
        grads = torch.autograd.grad(logp, parameters, retain_graph=True)
        norm = torch.stack([g.norm() for g in grads]).norm()
        sign = -1.0 if row < batch.pairs else 1.0
        torch._foreach_add_(total, grads, alpha=float(sign * PULL / norm / batch.pairs))
    for p, grad in zip(parameters, total, strict=True):
        p.grad = grad


VARIANTS: dict[str, Callable[[Any, PairBatch, Probe], None]] = {
    "DPO": dpo,
    "pairwise-normalised": normalised,
    "two backwards per pair": naive,
}


def difference(model: Any, batch: PairBatch, probe: Probe) -> float:
    """‖normalised − naive‖ / ‖naive‖ over all parameters."""
    found = []
    for variant in (normalised, naive):
        model.zero_grad(set_to_none=True)
        variant(model, batch, probe)
        found.append([p.grad.clone() for p in model.parameters()])
    model.zero_grad(set_to_none=True)
    gap = torch.stack([(a - b).norm() for a, b in zip(*found, strict=True)]).norm()
    return float(gap / torch.stack([b.norm() for b in found[1]]).norm())


def seconds(variant: Callable[..., None], model: Any, optimizer: torch.optim.Optimizer, *more: Any) -> float:
    """One whole step."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    variant(model, *more)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a small model, short rows, two rounds")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    length, rounds = (32, 2) if options.small else (options.length, options.rounds)
    model = (tiny if options.small else gpt2_small)(options.device)
    batch = batch_of(options.pairs, length, options.device)
    optimizer, probe = torch.optim.AdamW(model.parameters(), lr=1e-6), Probe(model, certify=False, every=10**9)
    print(f"{options.pairs} pairs of {length} tokens, {options.device}, {torch.get_num_threads()} threads")
    print(f"normalised against naive gradient: relative difference {difference(model, batch, probe):.1e}")
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for number in range(rounds + 1):  # the first round warms up
        for name, variant in VARIANTS.items():
            taken = seconds(variant, model, optimizer, batch, probe)
            times[name] += [taken] if number else []
    for name, values in times.items():
        ratio = statistics.median(v / p for v, p in zip(values, times["DPO"], strict=True))
        verdict = "" if name != "pairwise-normalised" else f"  goal {GOAL}: {'met' if ratio <= GOAL else 'missed'}"
        print(f"{name:<24}{statistics.median(values):>9.3f} s{ratio:>8.2f}{verdict}")


if __name__ == "__main__":
    main()
