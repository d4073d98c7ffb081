"""Peak memory of a measurement with a 128k vocabulary: one chunk of positions, whatever the responses' length."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

GIB = 2**30

SCRIPT = """
import json, sys, time
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from dyn_probe.mass import TokenProbes, measure
from dyn_probe.mass.probe_tokens import TokenResponse

responses, length, chunk, dtype = json.loads(sys.argv[1])

def memory(name):
    fields = dict(line.split(":") for line in open("/proc/self/status") if line.startswith("Vm"))
    return int(fields[name].split()[0]) * 1024

config = LlamaConfig(vocab_size=128256, hidden_size=256, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=2, intermediate_size=512, max_position_embeddings=2048)
model = LlamaForCausalLM(config).to(getattr(torch, dtype))
draw = torch.Generator().manual_seed(0)
ids = torch.randint(128256, (responses, length), generator=draw).tolist()
probes = TokenProbes(tuple(TokenResponse(str(i), "chosen", tuple(row), 8) for i, row in enumerate(ids)))
measure(model, TokenProbes((TokenResponse("warm", "chosen", (1, 2, 3), 1),)))
open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
before, start = memory("VmRSS"), time.perf_counter()
measure(model, probes, chunk=chunk)
print(json.dumps({"bytes": memory("VmHWM") - before, "seconds": time.perf_counter() - start}))
"""


def measured(responses, length, chunk, dtype):
    """Bytes above the model at the peak of a measurement in a process of its own, and its seconds."""
    command = [sys.executable, "-c", SCRIPT, json.dumps([responses, length, chunk, dtype])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    print(f"{responses} x {length} tokens, chunk {chunk}, {dtype}: {result}")
    return result["bytes"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak from Linux's /proc")
def test_a_128k_vocabulary_stays_within_one_gigabyte_above_the_model():
    assert measured(8, 1024, None, "float32") < GIB  # their full table alone: 3.9 GiB
    assert measured(8, 1024, None, "bfloat16") < GIB


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak from Linux's /proc")
def test_the_limit_is_the_chunk_s_doing():
    assert measured(1, 1024, 2048, "float32") > GIB


REAL = """
import json, sys, time
from dyn_probe.mass import encode_probes, measure, read_probe_set
from dyn_probe.mass.probe_tokens import TokenProbes
from dyn_probe.data.built_in import built_in_model, built_in_tokenizer

source, prompts = sys.argv[1], int(sys.argv[2])

def memory(name):
    fields = dict(line.split(":") for line in open("/proc/self/status") if line.startswith("Vm"))
    return int(fields[name].split()[0]) * 1024

probes = encode_probes(read_probe_set(source, prompts=prompts), built_in_tokenizer(), max_length=1024)
model = built_in_model()
measure(model, TokenProbes(probes.responses[:1]))
open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
before, start, told = memory("VmRSS"), time.perf_counter(), []
rows = measure(model, probes, batch_size=16, progress=lambda done, whole: told.append((done, whole)))
print(json.dumps({
    "responses": len(rows), "kinds": len({row["kind"] for row in rows}), "tokens": sum(row["tokens"] for row in rows),
    "left_out": len(probes.skipped), "told": len(told),
    "last": told[-1], "bytes": memory("VmHWM") - before, "seconds": time.perf_counter() - start,
}))
"""

PROBES = Path(__file__).resolve().parents[3] / "shared" / "data" / "hh_helpful_probe.jsonl"


def measured_file(prompts):
    """What a measurement of the first prompts of the real file gives, in a process of its own."""
    command = [sys.executable, "-c", REAL, str(PROBES), str(prompts)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    print(done.stdout)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not (PROBES.exists() and Path("/proc/self/clear_refs").exists()), reason="wants the file and Linux")
def test_twelve_kinds_of_five_hundred_prompts_take_no_more_memory_than_fifty():
    whole, part = measured_file(500), measured_file(50)
    assert whole["kinds"] == 12 and whole["responses"] > 9 * part["responses"] > 9 * 500
    assert whole["last"] == [whole["responses"]] * 2 and whole["told"] == -(-whole["responses"] // 16)
    table = 4 * 1024 * whole["tokens"]  # bytes of all logits at once
    assert whole["bytes"] < 600 * 2**20 < table / 4
    assert whole["bytes"] < part["bytes"] + 150 * 2**20
