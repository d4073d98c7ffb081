"""Rows of the mass table against plain forwards, one response at a time, and the laws they must satisfy."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, VOCAB, double_throughout, make_model
from mass_samples import WORDS, disagreements, records, row_twin, token_probes, word_tokenizer

from dyn_probe.errors import BadInput
from dyn_probe.mass import TokenProbes, build_probe_set, encode_probes, measure
from dyn_probe.mass.probe_tokens import TokenResponse
from dyn_probe.mass.start_kl import EXACT, SAMPLED, StartPolicy
from dyn_probe.pairs import PairBatch, sequence_logps
from dyn_probe.trace.schema import TABLES

KEYS = ("step", "prompt_id", "kind")


def numbers(row):
    """A row without its keys."""
    return {name: value for name, value in row.items() if name not in KEYS}


def disagreeing(rows, wanted, tolerance):
    """Per row, the columns that differ from the wanted numbers."""
    return [disagreements(numbers(r), w, tolerance) for r, w in zip(rows, wanted, strict=True)]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_equal_plain_forwards(family):
    probes = token_probes()
    with double_throughout():
        model = make_model(family)
        rows = measure(model, probes, step=3, batch_size=3, chunk=4)
        wanted = [row_twin(model, response) for response in probes.responses]
    assert [(r["step"], r["prompt_id"], r["kind"]) for r in rows] == [
        (3, p.prompt_id, p.kind) for p in probes.responses
    ]
    assert disagreeing(rows, wanted, 1e-9) == [[]] * len(rows)


@pytest.mark.parametrize("wrong", ["a response of another start", "its neighbour's row", "another model"])
def test_the_comparison_sees_wrong_rows(wrong):
    probes = token_probes()
    model = make_model("gpt2")
    wanted = [row_twin(model, response) for response in probes.responses]
    if wrong == "a response of another start":
        moved = [type(r)(r.prompt_id, r.kind, (0, *r.ids), r.start + 1) for r in probes.responses]
        rows = measure(model, TokenProbes(tuple(moved)))
    elif wrong == "another model":
        rows = measure(make_model("gpt2", seed=1), probes)
    else:
        rows = measure(model, probes)[::-1]
    assert sum(bool(names) for names in disagreeing(rows, wanted, 1e-9)) >= len(rows) - 1


@pytest.mark.parametrize("batch_size", [1, 2, 7, 50])
@pytest.mark.parametrize("chunk", [1, 5, None])
def test_rows_do_not_depend_on_batches_chunks_or_padding(batch_size, chunk):
    probes = token_probes()
    with double_throughout():
        model = make_model("llama")
        one = [numbers(row) for row in measure(model, probes, batch_size=1, chunk=1000)]
        rows = measure(model, probes, batch_size=batch_size, chunk=chunk)
    assert disagreeing(rows, one, 1e-11) == [[]] * len(rows)


def test_rows_do_not_depend_on_the_company_they_are_measured_in():
    probes = token_probes()
    with double_throughout():
        model = make_model("qwen2")
        together = measure(model, probes)
        alone = [numbers(measure(model, TokenProbes((r,)))[0]) for r in probes.responses]
    assert disagreeing(together, alone, 1e-11) == [[]] * len(alone)


def test_bfloat16_models_are_measured_from_their_logits_in_float32():
    probes = token_probes()
    model = make_model("gpt2", torch.bfloat16)
    rows = measure(model, probes, batch_size=1)
    wanted = [row_twin(model, response) for response in probes.responses]
    for row, twin in zip(rows, wanted, strict=True):
        assert row["logp_token"] == pytest.approx(twin["logp_token"], abs=0.03)
        assert row["entropy"] == pytest.approx(twin["entropy"], abs=0.03)
    single = measure(model.float(), probes, batch_size=1)
    assert any(a["logp"] != b["logp"] for a, b in zip(rows, single, strict=True))


def test_the_log_probability_is_the_one_that_training_sees():
    model = make_model("gpt2", torch.float64).eval()
    chosen, rejected = (4, 9, 8, 7, 3), (4, 9, 2, 5, 6)
    probes = token_probes(count=2)
    pair = [
        type(p)("p", k, ids, 2)
        for p, k, ids in zip(probes.responses, ("chosen", "rejected"), (chosen, rejected), strict=True)
    ]
    batch = PairBatch(torch.tensor([chosen, rejected]), torch.ones(2, 5).long(), torch.tensor([[0, 0, 1, 1, 1]] * 2))
    with torch.no_grad():
        expected = sequence_logps(model, batch).tolist()
    assert [row["logp"] for row in measure(model, TokenProbes(tuple(pair)))] == pytest.approx(expected, rel=1e-12)


def test_columns_are_those_of_the_mass_table():
    row = measure(make_model("gpt2"), token_probes(count=1))[0]
    assert (*row, EXACT, SAMPLED) == TABLES["mass"].names
    row = measure(make_model("gpt2"), token_probes(count=1), start=StartPolicy(100))[0]
    assert (*row, SAMPLED) == TABLES["mass"].names and row[EXACT] == 0
    assert all(type(row[c.name]).__name__ == _PYTHON[c.type] for c in TABLES["mass"].columns if c.name != SAMPLED)


_PYTHON = {"int64": "int", "int32": "int", "string": "str", "float64": "float"}


def test_measuring_changes_nothing():
    model = make_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5)
    loss = model(input_ids=torch.arange(8)[None]).logits.square().mean()
    loss.backward()
    grads = [p.grad.clone() for p in model.parameters()]
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = measure(model, token_probes())
    assert torch.equal(torch.rand(3), expected)
    assert model.training
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert measure(model, token_probes()) == first  # without dropout


def test_progress_is_told():
    told = []
    measure(make_model("gpt2"), token_probes(count=7), batch_size=3, progress=lambda *seen: told.append(seen))
    assert told == [(3, 7), (6, 7), (7, 7)]


def _resized(rows):
    """A model of so many token ids."""
    model = make_model("gpt2", torch.float32)
    model.resize_token_embeddings(rows)
    return model


def test_a_probe_set_of_text_is_encoded_and_measured():
    probes, tokenizer, model = build_probe_set(records()), word_tokenizer(), _resized(len(WORDS) + 3)
    rows = measure(model, probes, tokenizer, max_length=16)
    encoded = encode_probes(probes, tokenizer, max_length=16)
    assert rows == measure(model, encoded)
    assert [row["prompt_id"] for row in rows] == [r.prompt_id for r in encoded.responses]


def test_a_probe_set_of_text_needs_a_tokenizer():
    with pytest.raises(BadInput, match="needs a tokenizer"):
        measure(make_model("gpt2"), build_probe_set(records()))


def test_a_tokenizer_that_knows_more_than_the_model_is_caught():
    with pytest.raises(BadInput, match=r"highest token id is 24, the model has an input embedding with 20 rows"):
        measure(_resized(20), build_probe_set(records()), word_tokenizer())


def test_token_ids_beyond_the_model_are_caught():
    with pytest.raises(BadInput, match=f"only ids below {VOCAB}"):
        measure(make_model("gpt2"), token_probes(vocabulary=500))


def test_responses_longer_than_the_model_are_caught_or_skipped():
    long = TokenProbes((TokenResponse("p", "chosen", (3,) * 65, 1),))
    with pytest.raises(BadInput, match=r"response of 65 tokens .* the model 64 positions; .* max_length=64"):
        measure(make_model("gpt2"), long)
    given = [*records(3), {"prompt": "the cat ?", "chosen": " yes no" * 40, "rejected": " no"}]
    rows = measure(_resized(len(WORDS) + 3), build_probe_set(given), word_tokenizer())
    last = [row["kind"] for row in rows if row["prompt_id"] == rows[-1]["prompt_id"]]
    assert last == ["rejected", "irr_train", "random_nonhum"]
    assert max(row["tokens"] for row in rows) < 60


def test_batch_size_is_checked():
    with pytest.raises(BadInput, match="at least 1; got 0"):
        measure(make_model("gpt2"), token_probes(), batch_size=0)
