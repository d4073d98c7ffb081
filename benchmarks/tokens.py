"""Token heat maps: ``token_gram`` against one full backward per token with every gradient kept, in one run.

    python benchmarks/tokens.py [--tokens 16] [--prompt 32] [--rounds 3] [--device cpu] [--tiny] [--no-memory]

The model has GPT-2 small's shape (124 M parameters, tied head, random weights); both responses have ``--tokens``
tokens, so the plain way holds twice as many gradients of the model's size (16 GB at 16). The variants take turns; the
table shows median seconds, the ratio to ``token_gram``, and the peak memory of a fresh process per variant beyond that
of the loaded model, with that of two training steps for comparison. It also prints by how much the two answers differ.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable

import torch
from common import peak_mib, timed
from overhead import dpo_loss
from transformers import GPT2Config, GPT2LMHeadModel

from dyn_probe import PairBatch, sequence_logps, token_gram, token_logps
from dyn_probe.pairs import batch_logits

VARIANTS = ("token_gram", "a backward per token")
STEP = "two training steps"
"""Two steps of DPO with AdamW on the same pair: for comparison of the memory only."""
TINY = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 1000, "bos_token_id": 0, "eos_token_id": 0}


def model_of(device: str, tiny: bool) -> GPT2LMHeadModel:
    """GPT-2 small's shape, or a tiny one, with random weights and no dropout."""
    torch.manual_seed(0)
    config = GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **(TINY if tiny else {}))
    return GPT2LMHeadModel(config).to(device).eval()


def pair_of(model: GPT2LMHeadModel, prompt: int, tokens: int, device: str) -> PairBatch:
    """One pair of random tokens with a shared prompt."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(0, model.config.vocab_size, (2, prompt + tokens), generator=draw)
    ids[1, :prompt] = ids[0, :prompt]
    response = torch.zeros_like(ids)
    response[:, prompt:] = 1
    return PairBatch(ids, torch.ones_like(ids), response).to(device)


def backward_per_token(model: GPT2LMHeadModel, batch: PairBatch) -> torch.Tensor:
    """``[n_w, n_l]`` the plain way: one forward, a backward per response token, all gradients kept."""
    logps = token_logps(batch_logits(model, batch), batch)
    rows, columns = batch.response_mask.nonzero(as_tuple=True)
    parameters = list(model.parameters())
    grads = [
        torch.cat([g.flatten() for g in torch.autograd.grad(logps[row, column], parameters, retain_graph=True)])
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
    ]
    half = int(batch.lengths[0])
    return torch.stack([torch.stack([a @ b for b in grads[half:]]) for a in grads[:half]])


def training_steps(model: GPT2LMHeadModel, batch: PairBatch) -> torch.Tensor:
    """Two steps, so that AdamW's moments stand beside the second one's gradients."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    for _ in range(2):
        loss = dpo_loss(sequence_logps(model, batch))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def runner(variant: str, model: GPT2LMHeadModel, batch: PairBatch) -> Callable[[], torch.Tensor]:
    """A function that computes the chosen-against-rejected Gram by the variant."""
    if variant == "token_gram":
        return lambda: token_gram(model, batch).chosen_rejected
    if variant == STEP:
        return lambda: training_steps(model.train(), batch)
    return lambda: backward_per_token(model, batch)


def peak(variant: str, options: argparse.Namespace) -> float:
    """MiB beyond the loaded model at the peak of a fresh process that runs the variant once."""
    arguments = ["--peak", variant, "--tokens", str(options.tokens), "--prompt", str(options.prompt)]
    arguments += ["--device", options.device, *(["--tiny"] if options.tiny else [])]
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True)
    return float(done.stdout.strip().splitlines()[-1])


def print_peak(options: argparse.Namespace) -> None:
    """Run one variant once and print the memory it took beyond the loaded model."""
    model = model_of(options.device, options.tiny)
    batch = pair_of(model, options.prompt, options.tokens, options.device)
    call, before = runner(options.peak, model, batch), peak_mib(options.device)
    call()
    print(peak_mib(options.device) - before)


def measure(options: argparse.Namespace) -> tuple[dict[str, list[float]], float]:
    """(seconds of each variant, largest difference of the answers over the largest entry)."""
    model = model_of(options.device, options.tiny)
    batch = pair_of(model, options.prompt, options.tokens, options.device)
    calls = {variant: runner(variant, model, batch) for variant in VARIANTS}
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    answers = {}
    for _ in range(options.rounds):
        for variant, call in calls.items():
            took, answers[variant] = timed(call, options.device)
            seconds[variant].append(took)
    a, b = (answers[variant].double() for variant in VARIANTS)
    return seconds, float((a - b).abs().max() / b.abs().max())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="a model of two small layers, to try the script")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--json", help="also write the numbers to this file")
    parser.add_argument("--peak", choices=(*VARIANTS, STEP), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print_peak(options)
        return
    shape = "tiny" if options.tiny else "GPT-2 small shape"
    print(
        f"{shape}, {options.tokens}+{options.tokens} response tokens after {options.prompt}, {options.device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    seconds, apart = measure(options)
    print(f"{'variant':<24}{'seconds':>9}{'ratio':>8}{'peak MiB':>10}")
    base = statistics.median(seconds["token_gram"])
    results: dict[str, dict[str, float | None]] = {}
    for variant, values in seconds.items():
        found = None if options.no_memory else peak(variant, options)
        middle = statistics.median(values)
        shown = "" if found is None else f"{found:10.0f}"
        print(f"{variant:<24}{middle:>9.3f}{middle / base:>8.2f}{shown}", flush=True)
        results[variant] = {"seconds": middle, "peak_mib": found}
    if not options.no_memory:
        results[STEP] = {"seconds": None, "peak_mib": peak(STEP, options)}
        print(f"{STEP:<24}{'':>17}{results[STEP]['peak_mib']:10.0f}")
    print(f"largest difference of the answers, relative to the largest entry: {apart:.1e}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({**results, "difference": apart}, file)


if __name__ == "__main__":
    main()
