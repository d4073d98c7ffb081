"""What a recorded step launches and reads back, counted by the dispatcher: a GPU that is launch-bound pays for both."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cost.counts import Calls
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from dyn_probe import PairBatch, Probe, sequence_logps

MOST = 1.35
"""Calls of a recorded step over those of the plain one."""
VOCABULARY, LENGTH, PAIRS = 200, 32, 4


def llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
        )
    )  # fmt: skip


def tied_gpt2() -> GPT2LMHeadModel:
    quiet = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=1)
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=4, n_head=4, n_positions=64, **quiet))


def batch() -> PairBatch:
    ids = torch.randint(5, VOCABULARY, (2 * PAIRS, LENGTH))
    ids[PAIRS:, : LENGTH // 2] = ids[:PAIRS, : LENGTH // 2]
    response = torch.zeros_like(ids)
    response[:, LENGTH // 2 :] = 1
    return PairBatch(ids, torch.ones_like(ids), response)


def loss_of(logps: torch.Tensor) -> torch.Tensor:
    chosen, rejected = logps.chunk(2)
    return -F.logsigmoid(0.1 * (chosen - rejected)).mean()


def calls_of_a_step(model, probe: Probe | None, vanishing: bool = False) -> Calls:
    """Of the second step; the first one also looks into the modules."""
    optimizer, pairs = torch.optim.AdamW(model.parameters(), lr=1e-6, foreach=True), batch()
    for step in range(2):
        with Calls() as calls:
            if probe is None:
                loss_of(sequence_logps(model, pairs)).backward()
            else:
                with probe.step(step, pairs.ids, learning_rate=1e-6):
                    logps = sequence_logps(model, pairs)
                    probe.pairs(logps, vanishing=vanishing)
                    loss_of(logps).backward()
            optimizer.step()
            optimizer.zero_grad()
    return calls


@pytest.fixture(params=[llama, tied_gpt2])
def counted(request) -> tuple[Calls, Calls]:
    """Of the plain and of the recorded step."""
    torch.manual_seed(0)
    model = request.param().bfloat16().train()
    return calls_of_a_step(model, None), calls_of_a_step(model, Probe(model, certify=False))


def test_a_recorded_step_launches_little_more_than_the_plain_one(counted):
    plain, recorded = (calls.counted.total() for calls in counted)
    assert plain > 300
    assert recorded <= MOST * plain, (counted[1].counted - counted[0].counted).most_common(12)


def reads_beyond(plain: Calls, recorded: Calls) -> int:
    """Answers that the host waits for; random states are the host's own, and compared there."""
    random_state = recorded.counted["equal.default"] - plain.counted["equal.default"]
    assert random_state == 1
    return recorded.reads - plain.reads - random_state


def test_a_recorded_step_reads_nothing_before_its_end(counted):
    assert reads_beyond(*counted) == 0, counted[1].counted


def test_one_answer_is_read_where_the_loss_may_have_a_pull_that_vanishes(counted):
    """Whether any pull is too small to divide by."""
    model = llama().bfloat16().train()
    assert reads_beyond(calls_of_a_step(model, None), calls_of_a_step(model, Probe(model, certify=False), True)) == 1
