"""A recorded training step beside the plain one on a GPU: random weights in bfloat16; forward, backward, AdamW.

    python benchmarks/gpu.py [--cells all llama-1b:all:512:8 …] [--rounds 8] [--device cuda] [--out results.jsonl]
    python benchmarks/gpu.py --page results.jsonl

Every cell (model, what is trained, tokens of a row, pairs) alternates its kinds of step, after the recorder has held
its first one against plain autograd, and prints a line as soon as it is done; a cell that stands in the file of results
is not measured again. ``--cells tiny:all:32:2 --device cpu`` checks the script itself without a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from dyn_probe import PairBatch, Probe, sequence_logps

CELLS = [
    *(f"{model}:{trained}:{size}" for model in ("gpt2-small", "llama-1b") for trained in ("all", "lora")
      for size in ("128:4", "512:8", "1024:8")),
]  # fmt: skip
KINDS = ("recorded", "one-pass", "full", "normalised", "auto")
"""What stands beside the plain step."""
AUTO = 48
"""Steps of a run by budget; as many plain ones stand beside it."""


def gpt2_small() -> Any:
    """GPT-2 small: 124 M parameters, tied head."""
    return GPT2LMHeadModel(GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))


def llama_1b() -> Any:
    """The shape of a 1.2 B Llama: 16 layers of width 2048, grouped-query attention, tied head of 128k tokens."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
            num_key_value_heads=8, max_position_embeddings=4096, tie_word_embeddings=True,
        )
    )  # fmt: skip


def tiny() -> Any:
    """A Llama of a few thousand parameters."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2,
        )
    )  # fmt: skip


SHAPES: dict[str, Callable[[], Any]] = {"gpt2-small": gpt2_small, "llama-1b": llama_1b, "tiny": tiny}


def made(shape: str, trained: str, device: str) -> Any:
    """A random model in bfloat16 on the device, with adapters of rank 16 on every linear layer for ``lora``."""
    torch.manual_seed(0)
    was = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = SHAPES[shape]().train()
    finally:
        torch.set_default_dtype(was)
    if trained == "all":
        return model
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def batch_of(pairs: int, length: int, vocabulary: int, device: str) -> PairBatch:
    """Random pairs: half prompt, half response."""
    ids = torch.randint(0, vocabulary, (2 * pairs, length), device=device)
    ids[pairs:, : length // 2] = ids[:pairs, : length // 2]
    response = torch.zeros_like(ids)
    response[:, length // 2 :] = 1
    return PairBatch(ids, torch.ones_like(ids), response)


class Training:
    """Steps of one model on one batch."""

    def __init__(self, shape: str, trained: str, length: int, pairs: int, device: str) -> None:
        self.device = device
        self.model = made(shape, trained, device)
        self.batch = batch_of(pairs, length, self.model.config.vocab_size, device)
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-6)
        self.number = 0

    def losses(self, logps: torch.Tensor) -> torch.Tensor:
        """DPO's, the reference being the policy itself."""
        ratio = logps - logps.detach()
        return -F.logsigmoid(0.1 * (ratio[: self.batch.pairs] - ratio[self.batch.pairs :]))

    def step(self, probe: Probe | None, normalised: bool = False, one_pass: bool = False) -> float:
        """One step; its seconds."""
        self.number += 1
        began = self.now()
        if probe is None:
            self.losses(sequence_logps(self.model, self.batch)).mean().backward()
        else:
            with probe.step(self.number, self.batch.ids, learning_rate=1e-6, measure=normalised):
                logps = sequence_logps(self.model, self.batch)
                if normalised:
                    sides = probe.measure(logps)
                    probe.backward(torch.cat([-1 / sides[0], 1 / sides[1]]) * 0.05 / self.batch.pairs)
                else:
                    probe.pairs(logps)
                    loss = self.losses(logps).mean()
                    (probe.one_pass if one_pass else torch.Tensor.backward)(loss)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return self.now() - began

    def now(self) -> float:
        """Seconds, once the device is done."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()


class Calls(TorchDispatchMode):
    """Counts ATen calls."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


def counted(step: Callable[[], float], device: str) -> dict[str, int]:
    """ATen calls, kernels and stops of the device in one step."""
    with Calls() as calls:
        step()
    if not device.startswith("cuda"):
        return {"aten": calls.count}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
    events = profile.key_averages()
    kernels = sum(e.count for e in events if e.device_type == torch.autograd.DeviceType.CUDA)
    stops = sum(e.count for e in events if e.key in ("cudaStreamSynchronize", "cudaEventSynchronize"))
    return {"aten": calls.count, "kernels": kernels, "stops": stops}


@contextmanager
def peak(device: str) -> Iterator[Callable[[], float]]:
    """GiB of the device that were in use at once."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        yield lambda: torch.cuda.max_memory_allocated() / 2**30
    else:
        yield lambda: 0.0


def measured(cell: str, rounds: int, device: str, wanted: Sequence[str]) -> dict[str, Any]:
    """One cell."""
    shape, trained, length, pairs = cell.split(":")
    training = Training(shape, trained, int(length), int(pairs), device)
    checked = Probe(training.model)
    training.step(checked)
    assert checked.certificate is not None
    plain, full = Probe(training.model, certify=False), Probe(training.model, certify=False, gram_every=1)
    kinds: dict[str, Callable[[], float]] = {
        "plain": lambda: training.step(None),
        "recorded": lambda: training.step(plain),
        "one-pass": lambda: training.step(plain, one_pass=True),
        "full": lambda: training.step(full),
        "normalised": lambda: training.step(plain, normalised=True),
    }
    kinds = {kind: step for kind, step in kinds.items() if kind == "plain" or kind in wanted}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    memory: dict[str, float] = {}
    for number in range(rounds + 2):  # two to warm up
        for kind, step in kinds.items():
            with peak(device) as used:
                taken = step()
                memory[kind] = used()
            if number >= 2:
                times[kind].append(taken)
    found: dict[str, Any] = {"cell": cell, "error": checked.certificate.max_relative_error}
    for kind, seconds in times.items():
        ordered = sorted(seconds)
        found[kind] = {"ms": statistics.median(ordered) * 1e3, "from": ordered[0] * 1e3, "to": ordered[-1] * 1e3,
                       "gib": memory[kind]}  # fmt: skip
        if kind in ("plain", "recorded", "one-pass"):
            found[kind] |= counted(kinds[kind], device)
    return found | ({"auto": by_budget(training)} if "auto" in wanted else {})


def by_budget(training: Training) -> dict[str, float]:
    """Seconds of steps on end, recorded as a budget of 5 % allows, over those of as many plain ones behind them."""
    probe = Probe(training.model, certify=False, every="auto", budget=0.05, gram_every=10)
    for _ in range(12):  # to learn the times
        training.step(probe)
    recorded = sum(training.step(probe) for _ in range(AUTO))
    plain = sum(training.step(None) for _ in range(AUTO))
    probe.close()
    return {"ratio": recorded / plain, "steps": AUTO + 12, "recorded": probe.schedule.facts["recorded"]}  # type: ignore[attr-defined]


def page(found: list[dict[str, Any]], about: str) -> str:
    """The results as Markdown."""
    lines = [
        "# A recorded step beside the plain one, on a GPU", "",
        f"`python benchmarks/gpu.py`; {about}. bfloat16, random weights, half of every row is prompt; "
        "milliseconds are medians of alternating steps (smallest to largest in brackets), ratios are "
        "to the plain step. Error: the recorder's own check of its first step against plain autograd in the "
        "same arithmetic.", "",
        "| model | trained | tokens | pairs | plain ms | recorded ms | ratio | one pass | full Gram | normalised "
        "| by 5 % budget | ATen calls | kernels | stops | memory | error |", "|---" * 16 + "|",
    ]  # fmt: skip
    for one in found:
        model, trained, length, pairs = one["cell"].split(":")
        plain, recorded = one["plain"], one["recorded"]
        spans = [f"{kind['ms']:.0f} ({kind['from']:.0f}–{kind['to']:.0f})" for kind in (plain, recorded)]
        ratios = [f"{one[k]['ms'] / plain['ms']:.2f}" if k in one else "–" for k in KINDS[:4]]
        counts = [f"{plain.get(name, 0):,} → {recorded.get(name, 0):,}" for name in ("aten", "kernels", "stops")]
        memory = f"{recorded['gib'] / plain['gib']:.3f}" if plain["gib"] else "–"
        by = one.get("auto")
        auto = f"{by['ratio']:.3f} ({by['recorded']} of {by['steps']} steps)" if by else "–"
        cells = [model, trained, length, pairs, *spans, *ratios, auto, *counts, memory, f"{one['error']:.0e}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure the cells that are asked for, or print the page of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", default=["all"], metavar="MODEL:all|lora:TOKENS:PAIRS")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    if options.page is not None:
        lines = [json.loads(line) for line in options.page.read_text().splitlines()]
        print(page(lines, lines[0]["about"]))
        return
    done = options.out.read_text().splitlines() if options.out and options.out.exists() else []
    there = {json.loads(line)["cell"] for line in done}
    card = torch.cuda.get_device_name() if options.device.startswith("cuda") else "a CPU"
    for cell in CELLS if options.cells == ["all"] else options.cells:
        if cell in there:
            continue
        found = measured(cell, options.rounds, options.device, options.kinds) | {
            "about": f"{card}, torch {torch.__version__}"
        }
        print(json.dumps(found), file=sys.stderr, flush=True)
        print(page([found], found["about"]).splitlines()[-1], flush=True)
        if options.out is not None:
            with options.out.open("a") as file:
                file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
