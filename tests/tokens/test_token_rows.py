"""Token rows of a run: the right numbers, the same pairs throughout, and training bitwise as without them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_runs import uneven

from dyn_probe import load_trace, token_gram
from dyn_probe.data.built_in import built_in_tokenizer
from dyn_probe.data.collating import collate
from dyn_probe.pairs import PairBatch
from dyn_probe.studies.theory import assumption, logit_change
from dyn_probe.token_analysis import align, recorded_heats
from dyn_probe.train import loop
from dyn_probe.train.options.config import RunConfig
from dyn_probe.train.setup import prepare
from dyn_probe.train.token_rows import followed_pairs, follows, theorem_3, token_strings


def tiny(out, **options):
    """A run of a few steps on a dozen pairs, without warm-up."""
    base = dict(max_pairs=12, pretrain_steps=0, sft_steps=0, steps=4, batch_size=3, eval_fraction=0.0, lr=1e-3)
    return RunConfig(**{**base, "out": str(out), **options})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run with and without token rows: (trace, weights, random state, train mode)."""
    folder = tmp_path_factory.mktemp("runs")
    real, kept, found = loop.train, {}, {}

    def train(run):
        real(run)
        kept["end"] = ([p.detach().clone() for p in run.setup.model.parameters()], run.setup.model.training)

    for name, options in {"with": dict(tokens_every=2, token_pairs=3), "without": {}}.items():
        loop.train = train
        try:
            made = loop.record(tiny(folder / name, steps=4, realised=False, gram_every=0, **options), progress=False)
        finally:
            loop.train = real
        found[name] = (load_trace(made), *kept["end"], torch.random.get_rng_state())
    return found


def test_training_is_bitwise_the_same(runs):
    (_, weights, mode, rng), (_, plain, plain_mode, plain_rng) = runs["with"], runs["without"]
    assert all(torch.equal(a, b) for a, b in zip(weights, plain, strict=True))
    assert mode is plain_mode is True and torch.equal(rng, plain_rng)
    for column in ("loss", "logp_chosen", "grad_inner"):
        assert list(runs["with"][0].pairs[column]) == list(runs["without"][0].pairs[column])


def test_the_same_pairs_are_followed_to_the_last_step(runs):
    tokens = runs["with"][0].tokens
    assert runs["without"][0].tokens.empty
    assert sorted(tokens["step"].unique()) == [0, 2, 3]
    by_step = tokens.groupby("step")["pair_id"].agg(set)
    assert len(by_step[0]) == 3 and all(ids == by_step[0] for ids in by_step)
    assert set(tokens["side"]) == {"chosen_rejected", "chosen", "rejected"}
    assert by_step[0] <= set(runs["with"][0].examples["pair_id"])


def test_rows_are_the_token_gram_before_the_first_update(runs, tmp_path):
    setup = prepare(tiny(tmp_path / "x", tokens_every=2, token_pairs=3))
    pair = followed_pairs(setup)[1]
    gram = token_gram(setup.model, collate([pair]))
    heat = recorded_heats(runs["with"][0].tokens, pair.pair_id)[0]
    np.testing.assert_allclose(heat.inner, gram.chosen_rejected.numpy(), rtol=1e-6)
    np.testing.assert_allclose(heat.cosine, gram.cosine.numpy(), rtol=1e-6)
    assert heat.tokens_chosen[-1] == "</s>" and "".join(heat.tokens_chosen[:-1]).lstrip() == pair.text.chosen
    rows = runs["with"][0].tokens
    own = rows[(rows["pair_id"] == pair.pair_id) & (rows["side"] == "rejected") & (rows["step"] == 0)].iloc[0]
    np.testing.assert_allclose(own["inner"], gram.rejected.flatten().numpy(), rtol=1e-6)
    assert list(own["tokens_columns"]) == list(heat.tokens_rejected)


def test_the_schedule(tmp_path):
    setup = prepare(tiny(tmp_path / "x", steps=6, tokens_every=4, token_pairs=99))
    assert [step for step in range(6) if follows(setup, step)] == [0, 4, 5]
    assert len(followed_pairs(setup)) == len(setup.pairs)
    other = prepare(tiny(tmp_path / "y", steps=6, tokens_every=4, token_pairs=3, seed=1))
    first = prepare(tiny(tmp_path / "z", steps=6, tokens_every=4, token_pairs=3, seed=0))
    assert [p.pair_id for p in followed_pairs(other)] != [p.pair_id for p in followed_pairs(first)]


def test_token_strings_keep_their_spaces():
    tokenizer = built_in_tokenizer()
    ids = tokenizer("It has a positive\nsentiment. é")["input_ids"]
    strings = token_strings(tokenizer, ids)
    assert strings[0] == "<s>" and " has" in strings and "\n" in strings

    class Sentencepiece:
        def convert_ids_to_tokens(self, ids):
            return ["▁good", "<0x0A>"]

        def decode(self, ids, **_):
            return {0: "good", 1: "\n"}[ids[0]]

    assert token_strings(Sentencepiece(), [0, 1]) == [" good", "\n"]


def test_theorem_3_is_that_of_autograd_on_the_logits(tmp_path):
    setup = prepare(tiny(tmp_path / "run", data=uneven(tmp_path), max_pairs=8, token_pairs=8, tokens_every=1))
    found = 0
    for pair in followed_pairs(setup):
        batch = collate([pair], setup.pad_id)
        columns = theorem_3(setup.model.eval(), batch, token_gram(setup.model, batch))
        rows = (pair.chosen, pair.rejected)
        said = [list(row.ids[row.start :]) for row in rows]
        logits = [setup.model(torch.tensor([row.ids])).logits[0, row.start - 1 :].double().detach() for row in rows]
        first = next(k for k, (a, b) in enumerate(zip(*said, strict=False)) if a != b)
        wanted = []
        for i, j in align(*said):
            if i is not None and j is not None and max(i, j) > first and said[0][i] == said[1][j]:
                at = logits[0][i], logits[1][j]
                holds = assumption(at[0].softmax(0), at[1].softmax(0), said[0][i])
                wanted.append((float(holds), logit_change(*at, said[0][i], said[0][i])[0]))
        assert columns["theorem_3_holds"] == [holds for holds, _ in wanted]
        np.testing.assert_allclose(columns["theorem_3_change"], [moved for _, moved in wanted], atol=1e-6)
        found += len(wanted)
    assert found > 10


class ByPast(torch.nn.Module):
    """Next-token logits that depend on the first token of the response: after 5, token 7 is the more probable."""

    def forward(self, input_ids, attention_mask):
        logits = torch.linspace(-1, 1, 10).expand(*input_ids.shape, 10).clone()
        logits[..., 7] += 1.5 * (input_ids[:, 1] == 5).float()[:, None]
        return logits


@pytest.mark.parametrize(("chosen", "holds"), [([5, 7, 8], [1.0, 0.0]), ([4, 7, 8], [0.0, 0.0])])
def test_the_assumption_holds_where_the_chosen_beginning_makes_the_shared_token_alone_more_probable(chosen, holds):
    rejected = [4 + 5 - chosen[0], *chosen[1:]]
    ids = torch.tensor([[1, *chosen], [1, *rejected]])
    said = (torch.arange(4) > 0).long().expand(2, 4)
    tokens = SimpleNamespace(tokens_chosen=ids[0, 1:], tokens_rejected=ids[1, 1:])
    found = theorem_3(ByPast(), PairBatch(ids, torch.ones_like(ids), said), tokens)
    assert found["theorem_3_holds"] == holds
    assert found["theorem_3_change"][0] * (1 if chosen[0] == 5 else -1) < 0


def test_a_run_records_theorem_3_for_its_followed_pairs(runs):
    tokens = runs["with"][0].tokens
    both = tokens[tokens["side"] == "chosen_rejected"]
    assert both["theorem_3_holds"].map(len).gt(0).all()  # the shared end of the long suffix
    assert [len(a) for a in both["theorem_3_holds"]] == [len(a) for a in both["theorem_3_change"]]
    assert set(np.concatenate(both["theorem_3_holds"].to_list())) <= {0.0, 1.0}
    assert tokens.loc[tokens["side"] != "chosen_rejected", "theorem_3_holds"].isna().all()
