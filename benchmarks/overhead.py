"""What recording costs: a plain DPO step, the recorded step, and two backward passes per pair, in one run.

    python benchmarks/overhead.py [--lengths 64 128 256] [--pairs 4] [--rounds 5] [--device cpu] [--no-memory]

The model has GPT-2 small's shape (124 M parameters, tied head, random weights); a step is forward, backward and AdamW.
The variants take turns within each round, so that a drift of the machine's speed affects all of them; the table shows
medians, their ratio to the plain step, and the smallest and largest ratio of a round. Peak memory is that of a fresh
process per variant, relative to the plain step's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from typing import Any

import torch
import torch.nn.functional as F
from common import peak_mib, timed
from transformers import GPT2Config, GPT2LMHeadModel

from dyn_probe import PairBatch, Probe, sequence_logps

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "recorded": {},
    "recorded, one pass": {},
    "recorded with batch Gram": {"gram_every": 1},
    "recorded with update": {"update": True},
    "recorded with pushes": {"metric_every": 1},
    "two backwards per pair": {},
}
"""Variant → options of ``Probe``, where it has one. ``update``: the total along the optimizer's step; pushes: all its
parts (AdamW without decay; decay is one direction more)."""


def gpt2_small(device: str) -> GPT2LMHeadModel:
    """GPT-2 small's shape with random weights and no dropout."""
    torch.manual_seed(0)
    config = GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    return GPT2LMHeadModel(config).to(device).train()


def batch_of(pairs: int, length: int, device: str) -> PairBatch:
    """Random pairs: the first half of each row is prompt, the second half response."""
    ids = torch.randint(0, 50257, (2 * pairs, length), device=device)
    ids[pairs:, : length // 2] = ids[:pairs, : length // 2]
    response = torch.zeros_like(ids)
    response[:, length // 2 :] = 1
    return PairBatch(ids, torch.ones_like(ids), response)


def dpo_loss(logps: torch.Tensor) -> torch.Tensor:
    """DPO with a reference log-ratio of 0 at the start."""
    half = len(logps) // 2
    ratio = logps - logps.detach()
    return -F.logsigmoid(0.1 * (ratio[:half] - ratio[half:])).mean()


def train_step(model, optimizer, batch, probe=None, one_pass: bool = False) -> None:
    """One step, recorded if there is a probe, which may also give the weights' gradients."""
    if probe is None:
        dpo_loss(sequence_logps(model, batch)).backward()
    else:
        with probe.step(1, batch.ids, learning_rate=1e-6):
            logps = sequence_logps(model, batch)
            probe.pairs(logps)
            probe.one_pass(dpo_loss(logps)) if one_pass else dpo_loss(logps).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def two_backwards_per_pair(model, optimizer, batch) -> None:
    """The step, and before it every response's gradient in a separate backward pass, compared in float32."""
    parameters = list(model.parameters())
    logps = sequence_logps(model, batch)
    for pair in range(batch.pairs):
        chosen, rejected = (
            torch.cat([g.flatten() for g in torch.autograd.grad(logps[i], parameters, retain_graph=True)])
            for i in (pair, pair + batch.pairs)
        )
        _ = chosen.norm(), rejected.norm(), chosen @ rejected
    dpo_loss(logps).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def runner(variant: str, model, optimizer, batch):
    """A function that does one step of the variant."""
    if variant == "two backwards per pair":
        return lambda: two_backwards_per_pair(model, optimizer, batch)
    if variant == "plain":
        return lambda: train_step(model, optimizer, batch)
    followed = {"optimizer": optimizer} if {"update", "metric_every"} & VARIANTS[variant].keys() else {}
    probe = Probe(model, certify=False, keep_rows=False, **followed, **VARIANTS[variant])

    def step() -> None:
        train_step(model, optimizer, batch, probe, variant == "recorded, one pass")
        probe.flush()

    return step


def time_all(length: int, pairs: int, rounds: int, device: str, variants: list[str]) -> dict[str, list[float]]:
    """Seconds per step of each variant, taking turns."""
    model = gpt2_small(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.0)
    batch = batch_of(pairs, length, device)
    steps = {v: runner(v, model, optimizer, batch) for v in variants}
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {v: [] for v in variants}
    for _ in range(rounds):
        for variant, step in steps.items():
            seconds[variant].append(timed(step, device)[0])
    return seconds


def peak(variant: str, length: int, pairs: int, device: str) -> float:
    """Peak memory in MiB of a fresh process that does three steps of the variant."""
    arguments = ["--peak", variant, "--lengths", str(length), "--pairs", str(pairs), "--device", device]
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True)
    return float(done.stdout.strip().splitlines()[-1])


def print_peak(variant: str, length: int, pairs: int, device: str) -> None:
    model = gpt2_small(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.0)
    step = runner(variant, model, optimizer, batch_of(pairs, length, device))
    for _ in range(3):
        step()
    print(peak_mib(device))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--json", help="also write the numbers to this file")
    parser.add_argument("--peak", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print_peak(options.peak, options.lengths[0], options.pairs, options.device)
        return
    print(
        f"GPT-2 small shape, {options.pairs} pairs, {options.device}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}"
    )
    print(f"{'L':>4}  {'variant':<26}{'seconds':>9}{'ratio':>8}{'min':>7}{'max':>7}{'memory':>9}")
    results = {}
    for length in options.lengths:
        seconds = time_all(length, options.pairs, options.rounds, options.device, options.variants)
        base = None if options.no_memory else peak("plain", length, options.pairs, options.device)
        for variant, values in seconds.items():
            ratios = [v / p for v, p in zip(values, seconds["plain"], strict=True)]
            memory = "" if base is None else f"{peak(variant, length, options.pairs, options.device) / base:8.2f}x"
            print(
                f"{length:>4}  {variant:<26}{statistics.median(values):>9.3f}{statistics.median(ratios):>8.3f}"
                f"{min(ratios):>7.2f}{max(ratios):>7.2f}{memory:>9}",
                flush=True,
            )
        results[length] = seconds
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file)


if __name__ == "__main__":
    main()
