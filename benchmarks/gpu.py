"""Throughput on a GPU with and without the recorder: full-parameter and LoRA training in bfloat16, random weights.

    python benchmarks/gpu.py [--shapes gpt2-small llama-1b] [--pairs 8] [--length 512] [--rounds 10] [--device cuda]

Prints pairs and tokens per second, the recorder's cost, and peak memory. ``--shapes tiny --device cpu`` checks the
script itself without a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from dyn_probe import PairBatch, Probe, sequence_logps


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


SHAPES = {"gpt2-small": gpt2_small, "llama-1b": llama_1b, "tiny": tiny}


def made(shape: str, lora: bool, device: str) -> Any:
    """A random model in bfloat16, with adapters of rank 16 on every linear layer if asked for."""
    torch.manual_seed(0)
    model = SHAPES[shape]().to(torch.bfloat16).to(device).train()
    if not lora:
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


def step(model: Any, optimizer: torch.optim.Optimizer, batch: PairBatch, probe: Probe | None, number: int) -> None:
    """One DPO step, recorded if there is a probe."""

    def losses(logps: torch.Tensor) -> torch.Tensor:
        ratio = logps - logps.detach()
        return -F.logsigmoid(0.1 * (ratio[: batch.pairs] - ratio[batch.pairs :]))

    if probe is None:
        losses(sequence_logps(model, batch)).mean().backward()
    else:
        with probe.step(number, batch.ids, learning_rate=1e-6):
            logps = sequence_logps(model, batch)
            probe.pairs(logps)
            losses(logps).mean().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def seconds(model: Any, batch: PairBatch, recorded: bool, rounds: int, device: str) -> tuple[float, float]:
    """Median seconds of a step, and peak memory in GiB (0 on a CPU)."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    probe = Probe(model, certify=False) if recorded else None
    cuda = device.startswith("cuda")
    times = []
    for number in range(rounds + 2):  # two to warm up
        if cuda and number == 2:
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        step(model, optimizer, batch, probe, number)
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:]), torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["gpt2-small", "llama-1b"])
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    print(f"{'model':<12}{'trained':<8}{'recorder':<10}{'pairs/s':>9}{'tokens/s':>11}{'cost':>8}{'memory':>10}")
    for shape in options.shapes:
        for lora in (False, True):
            model = made(shape, lora, options.device)
            batch = batch_of(options.pairs, options.length, model.config.vocab_size, options.device)
            plain = 0.0
            for recorded in (False, True):
                taken, memory = seconds(model, batch, recorded, options.rounds, options.device)
                plain = plain or taken
                print(
                    f"{shape:<12}{'LoRA' if lora else 'all':<8}{'on' if recorded else 'off':<10}"
                    f"{options.pairs / taken:>9.1f}{2 * options.pairs * options.length / taken:>11.0f}"
                    f"{taken / plain - 1:>+8.1%}{memory:>6.1f} GiB",
                    flush=True,
                )
            del model


if __name__ == "__main__":
    main()
