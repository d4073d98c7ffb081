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
from dyn_probe.mass.tokens import TokenResponse

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
