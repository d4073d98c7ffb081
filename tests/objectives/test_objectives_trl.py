"""Values (and gradients) equal those of TRL's own code, for every objective that TRL also has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dyn_probe.objectives import Terms, kl_estimate, objective, pair_loss, pulls, resolve_hyper
from dyn_probe.pairs import PairBatch, token_logps

trl_losses = pytest.importorskip("trl_losses", reason="needs trl", exc_type=ImportError)
SEEDS = range(4)
PAIRS, WIDTH, VOCABULARY = 3, 7, 11


def random_rows(seed: int, rows: int = 2 * PAIRS, equal: bool = False) -> Any:
    """Rows of random length (the first half all alike where ``equal``) with random log-probabilities."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, WIDTH + 1, (rows,), generator=generator)
    if equal:
        lengths[: rows // 2] = lengths[0]
    said = torch.arange(WIDTH) < lengths[:, None]
    draw = torch.rand(2, rows, WIDTH, dtype=torch.float64, generator=generator)
    logps, reference = torch.where(said, -4 * draw, 0.0)
    return trl_losses.Rows(logps.requires_grad_(), reference, said)


def terms_of(rows: Any, **more: Any) -> Terms:
    return Terms.from_rows(rows.logps.sum(1), rows.said.sum(1), rows.reference.sum(1), **more)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, rtol: float = 1e-12) -> None:
    """The two scalars are equal to ``rtol``."""
    torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=rtol, atol=1e-12)


def assert_same_pulls(name: str, terms: Terms, hyper: dict[str, Any], rows: Any, theirs: torch.Tensor) -> None:
    """The gradient of TRL's batch loss with respect to each row's log-probability is −d_w/B or d_l/B."""
    (gradient,) = torch.autograd.grad(theirs, rows.logps)
    d_w, d_l = pulls(name, terms, hyper)
    expected = torch.cat([-d_w, d_l])[:, None] / len(d_w)
    torch.testing.assert_close(gradient[rows.said], expected.expand_as(gradient)[rows.said])


@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("name", "loss_type", "hyper"),
    [
        ("dpo", "sigmoid", {}),
        ("ipo", "ipo", {}),
        ("sppo", "sppo_hard", {}),
    ],
)
def test_objectives_of_the_dpo_trainer(
    name: str, loss_type: str, hyper: dict[str, Any], seed: int, beta: float
) -> None:
    rows = random_rows(seed)
    terms, hyper = terms_of(rows), hyper | {"beta": beta}
    theirs = trl_losses.dpo_loss(loss_type, rows, beta)
    assert_same(pair_loss(name, terms, hyper)[0].mean(), theirs)
    assert_same_pulls(name, terms, hyper, rows, theirs)


@pytest.mark.parametrize("seed", SEEDS)
def test_label_smoothing(seed: int) -> None:
    """TRL 1.16 keeps cDPO's mixture in ``aot``, whose sorting does nothing to a single pair."""
    rows = random_rows(seed, rows=2)
    hyper = {"beta": 0.4, "label_smoothing": 0.2}
    theirs = trl_losses.dpo_loss("aot", rows, 0.4, label_smoothing=0.2)
    assert_same(pair_loss("dpo", terms_of(rows), hyper)[0].mean(), theirs)
    assert_same_pulls("dpo", terms_of(rows), hyper, rows, theirs)


@pytest.mark.parametrize("seed", SEEDS)
def test_sft(seed: int) -> None:
    """TRL averages over the batch's tokens: the mean over pairs if chosen responses have one length."""
    rows = random_rows(seed, equal=True)
    theirs = trl_losses.dpo_loss("sft", rows, 0.1)
    assert_same(pair_loss("sft", terms_of(rows))[0].mean(), theirs)
    assert_same_pulls("sft", terms_of(rows), {}, rows, theirs)


@pytest.mark.parametrize("seed", SEEDS)
def test_kto_with_its_kl_estimate(seed: int) -> None:
    """TRL averages over rows, we add up the two rows of a pair: a factor 2."""
    rows, mismatched = random_rows(seed), random_rows(seed + 100)
    kl = kl_estimate(mismatched.logps.sum(1), mismatched.reference.sum(1))
    terms, hyper = terms_of(rows, kl=kl), {"beta": 0.3, "lambda_w": 0.8, "lambda_l": 1.3}
    theirs = trl_losses.kto_loss(rows, mismatched, 0.3, (0.8, 1.3))
    assert_same(pair_loss("kto", terms, hyper)[0].mean(), 2 * theirs)
    assert_same_pulls("kto", terms, hyper, rows, 2 * theirs)


def test_some_kl_estimates_are_clamped_and_some_are_not() -> None:
    rows = [random_rows(seed + 100) for seed in SEEDS]
    clamped = [kl_estimate(r.logps.sum(1), r.reference.sum(1)).item() == 0 for r in rows]
    assert any(clamped) and not all(clamped)


def random_batch(seed: int, prompt: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Terms]:
    """Ids, response mask, logits, and the terms our own ``token_logps`` reads; chosen all of one length."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, WIDTH + 1, (2 * PAIRS,), generator=generator)
    lengths[:PAIRS] = lengths[0]
    width = prompt + WIDTH
    ids = torch.randint(1, VOCABULARY, (2 * PAIRS, width), generator=generator)
    ids = ids.masked_fill(torch.arange(width) >= prompt + lengths[:, None], 0)
    said = (torch.arange(width) >= prompt) & (ids != 0)
    logits = 2 * torch.randn(2 * PAIRS, width, VOCABULARY, dtype=torch.float64, generator=generator)
    batch = PairBatch(ids, (ids != 0).long(), said.long())
    return ids, said, logits, Terms.from_rows(token_logps(logits, batch).sum(1), batch.lengths)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("prompt", [1, 3])
def test_objectives_of_the_cpo_trainer(seed: int, prompt: int) -> None:
    ids, said, logits, terms = random_batch(seed, prompt)
    n = terms.n_w[0].item()

    def theirs(loss_type: str, **options: float) -> torch.Tensor:
        return trl_losses.cpo_loss(loss_type, ids, said, logits, **options)

    def ours(name: str, **hyper: Any) -> torch.Tensor:
        return pair_loss(name, terms, hyper)[0].mean()

    assert_same(ours("simpo", beta=2.0, gamma=0.7), theirs("simpo", beta=2.0, simpo_gamma=0.7))
    assert_same(ours("cpo", beta=0.2, mean_nll=True, **{"lambda": 0.6}), theirs("sigmoid", beta=0.2, cpo_alpha=0.6))
    # the sequence form of the likelihood term is n times the token mean
    assert_same(ours("cpo", beta=0.2, **{"lambda": 0.6}), theirs("sigmoid", beta=0.2, cpo_alpha=0.6 * n))
    assert_same(ours("slic_hf", delta=1.0, **{"lambda": 0.6}), theirs("hinge", beta=1.0, cpo_alpha=0.6 * n))


@pytest.mark.parametrize("seed", SEEDS)
def test_orpo(seed: int) -> None:
    """TRL takes the odds ratio in float32, and its likelihood term over the prompt too: one token here."""
    ids, said, logits, terms = random_batch(seed, prompt=1)
    theirs = trl_losses.orpo_loss(ids, said, logits, beta=0.4)
    assert_same(pair_loss("orpo", terms, {"lambda": 0.4})[0].mean(), theirs, rtol=1e-6)


def assert_same_rewards(name: str, terms: Terms, hyper: dict[str, Any], scale: float, logged: dict[str, float]) -> None:
    """``scale`` times the scores are the rewards that TRL logs; the order of the pairs is the same."""
    score = objective(name).score_of(resolve_hyper(name, hyper))
    chosen, rejected = score.of(terms.a, terms.n_w, terms.r_w), score.of(terms.b, terms.n_l, terms.r_l)
    ours = {"rewards/chosen": chosen, "rewards/rejected": rejected, "rewards/margins": chosen - rejected}
    for key, values in ours.items():
        assert (scale * values).mean().item() == pytest.approx(logged[key], rel=1e-9, abs=1e-12)
    if "rewards/accuracies" in logged:  # KTO's trainer logs none
        assert (chosen > rejected).double().mean().item() == pytest.approx(logged["rewards/accuracies"])


@pytest.mark.parametrize("seed", SEEDS)
def test_beta_times_the_score_is_the_reward_that_trl_logs(seed: int) -> None:
    rows, mismatched = random_rows(seed), random_rows(seed + 100)
    terms, kl = terms_of(rows), kl_estimate(mismatched.logps.sum(1), mismatched.reference.sum(1))
    for name, loss_type in (("dpo", "sigmoid"), ("sppo", "sppo_hard")):
        _, logged = trl_losses.dpo_step({loss_type: 1.0}, rows, 0.3)
        assert_same_rewards(name, terms, {"beta": 0.3}, 0.3, logged)
    _, logged = trl_losses.dpo_step({"ipo": 1.0}, rows, 0.3)
    assert_same_rewards("ipo", terms, {"beta": 0.3, "average": False}, 0.3, logged)
    _, logged = trl_losses.kto_step(rows, mismatched, 0.3, (0.8, 1.3))
    assert_same_rewards("kto", terms_of(rows, kl=kl), {"beta": 0.3}, 0.3, logged)


@pytest.mark.parametrize("seed", SEEDS)
def test_beta_times_the_score_is_the_reward_of_trls_trainers_without_a_reference(seed: int) -> None:
    ids, said, logits, terms = random_batch(seed, 3)
    for name, loss_type in (("simpo", "simpo"), ("cpo", "sigmoid"), ("slic_hf", "hinge")):
        _, logged = trl_losses.cpo_step(loss_type, ids, said, logits, beta=0.7)
        assert_same_rewards(name, terms, {}, 0.7, logged)


@pytest.mark.parametrize("seed", SEEDS)
def test_where_trl_logs_what_its_loss_does_not_compare(seed: int) -> None:
    """Averaged IPO: TRL's reward is β times the summed log-ratio, n times the score. ORPO: β times the mean
    log-probability, of which the score is the log-odds. The order of ORPO's pairs is the same, that of IPO's need not
    be."""
    rows = random_rows(seed)
    terms = terms_of(rows)
    _, logged = trl_losses.dpo_step({"ipo": 1.0}, rows, 0.3)
    score = objective("ipo").score_of(resolve_hyper("ipo"))
    assert (0.3 * terms.n_w * score.of(terms.a, terms.n_w, terms.r_w)).mean().item() == pytest.approx(
        logged["rewards/chosen"]
    )
    ids, said, logits, terms = random_batch(seed, prompt=1)
    _, logged = trl_losses.orpo_step(ids, said, logits, beta=0.4)
    score = objective("orpo").score_of(resolve_hyper("orpo"))
    chosen, rejected = score.of(terms.a, terms.n_w), score.of(terms.b, terms.n_l)
    assert (0.4 * -F.softplus(-chosen)).mean().item() == pytest.approx(logged["rewards/chosen"], rel=1e-6)
    assert (chosen > rejected).double().mean().item() == pytest.approx(logged["rewards/accuracies"])


@pytest.mark.parametrize("wrong", ["loss", "pull", "reward"])
def test_the_comparison_can_fail(wrong: str) -> None:
    rows = random_rows(0)
    theirs = trl_losses.dpo_loss("sigmoid", rows, 0.1)
    with pytest.raises(AssertionError):
        if wrong == "loss":
            assert_same(pair_loss("dpo", terms_of(rows), {"beta": 0.1001})[0].mean(), theirs)
        elif wrong == "reward":
            assert_same_rewards("dpo", terms_of(rows), {}, 0.1001, trl_losses.dpo_step({"sigmoid": 1.0}, rows, 0.1)[1])
        else:
            assert_same_pulls("dpo", terms_of(rows), {"beta": 0.1001}, rows, theirs)
