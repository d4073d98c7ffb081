"""``KTOTrainer`` of TRL on responses whose partner is in their batch: pairs, recorded exactly; others are counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("trl", reason="needs trl")
import attach_runs as runs

from dyn_probe import load_trace
from dyn_probe.attach.paired_rows import labelled_rows, pairs_among
from dyn_probe.attach.trl import ProbeCallback

SETTINGS: dict[str, dict[str, Any]] = {
    "kto": dict(),
    "tied, checkpointed": dict(model="gpt2", gradient_checkpointing=True),
    "reentrant": dict(
        gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True}, undesirable_weight=0.5
    ),
    "apo_zero_unpaired": dict(loss_type="apo_zero_unpaired", train_sampling_strategy="sequential"),
    "weights": dict(desirable_weight=1.5, undesirable_weight=0.75),
    "precomputed": dict(precompute_ref_log_probs=True),
    "accumulation": dict(gradient_accumulation_steps=2),
}
OPTIONS = dict(gram_every=1, metric_every=1, realised_every=1, update=True)


def recorded(folder: Any, **options: Any) -> Any:
    """A trainer after its training with the recorder on."""
    trainer = runs.kto(folder, [ProbeCallback(folder / "run", **OPTIONS)], **options)
    trainer.train()
    return trainer


def shuffled() -> Any:
    """Rows of pairs in an order that is none of the collator's; in each batch of six two rows have no partner, and one
    prompt has two rejected responses."""
    first = [(2, 0), (0, 1), (1, 1), (0, 0), (3, 1), (2, 1)]
    data = runs.pairs()
    rows = [
        {"prompt": data[i]["prompt"], "completion": data[i][("chosen", "rejected")[side]], "label": side == 0}
        for i, side in [*first, (4, 0), (5, 0), (4, 1), (5, 1), (4, 1), (6, 1)]
    ]
    rows[10]["completion"] = " I would"
    return runs.Dataset.from_list(rows)


def rows_by_autograd(trainer: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the first batch, with the weights before training: log-probabilities and gradients of all rows, the labels,
    the gradient of the trainer's loss."""
    policy = trainer.model.train()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trained = [p for p in policy.parameters() if p.requires_grad]
    ids, said = batch["input_ids"], batch["completion_mask"][:, 1:]
    logits = policy(input_ids=ids, attention_mask=batch["attention_mask"]).logits[:, :-1]
    tokens = torch.log_softmax(logits.double(), -1).gather(2, ids[:, 1:, None])[..., 0]
    logps = (tokens * said).sum(1)
    flat = []
    for row in logps:
        parts = torch.autograd.grad(row, trained, retain_graph=True)
        flat.append(torch.cat([g.flatten().double() for g in parts]))
    whole = torch.autograd.grad(trainer.compute_loss(policy, batch), trained)
    return logps.detach(), torch.stack(flat), batch["label"], torch.cat([g.flatten().double() for g in whole])


def losses_of(rows: Any, kl: float, loss_type: str = "kto", weights: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
    """The loss of each pair by the paper's formula: the mean of its two responses'."""
    h_w, h_l = (rows[f"logp_{side}"] - rows[f"ref_logp_{side}"] for side in ("chosen", "rejected"))
    z = kl if loss_type == "kto" else 0.0
    chosen, rejected = 1 - 1 / (1 + np.exp(0.2 * (z - h_w))), 1 - 1 / (1 + np.exp(0.2 * (h_l - z)))
    return (weights[0] * chosen + weights[1] * rejected) / 2


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_rows_average_to_the_log_and_the_training_is_the_same(tmp_path, capfd, setting):
    options = SETTINGS[setting]
    trainer = recorded(tmp_path, **options)
    said = capfd.readouterr().err
    assert "by the recorded rows" not in said and "no partner" not in said
    trace = load_trace(tmp_path / "run")
    assert trace.manifest["status"] == "closed" and "batch_delta" not in trace.manifest
    assert trace.pairs["batch_delta_chosen"].notna().all()
    assert trace.about.objective.name == f"{options.get('loss_type', 'kto')}, a mean over responses"
    for entry in runs.logged(trainer):
        rows = trace.pairs[trace.pairs["step"] == entry["step"] - 1]
        assert len(rows) == 2 * options.get("gradient_accumulation_steps", 1)
        for side in ("chosen", "rejected"):
            assert np.isclose(rows[f"logp_{side}"].mean(), entry[f"logps/{side}"], rtol=1e-4, atol=1e-4)
            rewards = 0.2 * (rows[f"logp_{side}"] - rows[f"ref_logp_{side}"]).mean()
            assert np.isclose(rewards, entry[f"rewards/{side}"], rtol=1e-4, atol=1e-4)
        assert np.isclose(rows["loss"].mean(), entry["loss"], rtol=1e-4, atol=1e-5)
    assert (trace.steps["other_terms"] < 1e-6).all() and (trace.steps["law7_error"] < 1e-4).all()
    plain = runs.kto(tmp_path, **options)
    plain.train()
    assert runs.same_weights(trainer, plain)


@pytest.mark.parametrize("setting", ["kto", "tied, checkpointed", "weights"])
def test_rows_and_pulls_are_those_of_plain_autograd(tmp_path, setting):
    """No other term moves the model: the KL baseline is a number, and ``Σ_i c_i g_i`` is the loss's whole gradient."""
    options = SETTINGS[setting]
    trainer = recorded(tmp_path, **options, max_steps=1)
    logps, rows, labels, whole = rows_by_autograd(runs.kto(tmp_path, **options))
    found = load_trace(tmp_path / "run").pairs
    order = torch.cat([labels.nonzero().flatten(), (~labels).nonzero().flatten()])
    rows, gram = rows[order], rows[order] @ rows[order].T
    both = np.concatenate([found["logp_chosen"], found["logp_rejected"]])
    assert np.allclose(both, logps[order].numpy(), rtol=1e-4)
    norms = np.concatenate([found["grad_norm_chosen"], found["grad_norm_rejected"]])
    assert np.allclose(norms, gram.diagonal().sqrt().numpy(), rtol=1e-4)
    inner = gram[[0, 1], [2, 3]].numpy()
    assert np.allclose(found["grad_inner"], inner, rtol=1e-3, atol=1e-4 * float(gram.diagonal().max()))
    pulls = np.concatenate([-found["pull_chosen"], found["pull_rejected"]]) / 2
    assert float((torch.as_tensor(pulls) @ rows - whole).norm() / whole.norm()) < 1e-3
    weights = (options.get("desirable_weight", 1.0), options.get("undesirable_weight", 1.0))
    losses = losses_of(found, runs.logged(trainer)[0]["kl"], weights=weights)
    assert np.allclose(found["loss"], losses, rtol=1e-4) and abs(losses[0] - losses[1]) > 5e-4


@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
def test_responses_without_a_partner_are_counted_and_their_gradient_is_named(tmp_path, capfd, loss_type):
    options = dict(
        data=shuffled(), per_device_train_batch_size=6, loss_type=loss_type, train_sampling_strategy="sequential"
    )
    trainer = recorded(tmp_path, **options)
    said = capfd.readouterr().err
    assert "4 of 12 responses had no partner in their batch" in said and "by the recorded rows" not in said
    trace = load_trace(tmp_path / "run")
    assert trace.manifest["unpaired"] == {"responses": 12, "without_partner": 4}
    assert trace.pairs["batch_delta_chosen"].isna().all() and trace.pairs["predicted_delta_chosen"].notna().all()
    assert "responses without a partner" in trace.manifest["batch_delta"]
    logps, rows, labels, whole = rows_by_autograd(runs.kto(tmp_path, **options))
    found = trace.pairs[trace.pairs["step"] == 0]
    order = [0, 3, 5, 1]  # by the list above: prompts 2 and 0, chosen and then rejected
    assert labels[order].tolist() == [True, True, False, False]
    both = np.concatenate([found["logp_chosen"], found["logp_rejected"]])
    assert np.allclose(both, logps[order].numpy(), rtol=1e-4)
    losses = losses_of(found, runs.logged(trainer)[0]["kl"], loss_type)
    assert np.allclose(found["loss"], losses, rtol=1e-4) and abs(losses[0] - losses[1]) > 5e-4
    gram = rows[order] @ rows[order].T
    norms = np.concatenate([found["grad_norm_chosen"], found["grad_norm_rejected"]])
    assert np.allclose(norms, gram.diagonal().sqrt().numpy(), rtol=1e-4)
    assert np.allclose(found["grad_inner"], gram[[0, 1], [2, 3]].numpy(), rtol=1e-3, atol=1e-4 * float(gram.max()))
    pulls = np.concatenate([-found["pull_chosen"], found["pull_rejected"]]) / 2
    share = 4 / 6  # of the mean over the batch's rows
    explained = share * (torch.as_tensor(pulls) @ rows[order])
    left = [i for i in range(6) if i not in order]
    rest = torch.linalg.lstsq(rows[left].T, whole - explained).solution @ rows[left]
    assert float((explained + rest - whole).norm() / whole.norm()) < 1e-3
    other = 1 - float((explained @ whole) ** 2 / ((explained @ explained) * (whole @ whole)))
    step = trace.steps.iloc[0]
    assert other > 0.1 and np.isclose(step["other_terms"], other, atol=1e-4) and trace.steps["law1_error"].isna().all()
    parts = ["own_chosen", "own_rejected", "others", "past", "decay"]
    first = trace.pushes[trace.pushes["step"] == 0]
    assert len(first) == 4 and np.allclose(first[parts].sum(axis=1), first["total"], rtol=1e-3, atol=1e-6)
    plain = runs.kto(tmp_path, **options)
    plain.train()
    assert runs.same_weights(trainer, plain)


def test_with_an_adapter_the_reference_is_that_of_the_batch_and_not_of_the_kl_rows(tmp_path, capfd):
    from peft import LoraConfig

    options = dict(peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    trainer = recorded(tmp_path, **options)
    assert "by the recorded rows" not in capfd.readouterr().err
    rows = load_trace(tmp_path / "run").pairs
    assert np.allclose(rows["logp_chosen"].iloc[:2], rows["ref_logp_chosen"].iloc[:2], rtol=1e-5)
    last = rows.iloc[2:]
    rewards = 0.2 * (last["logp_rejected"] - last["ref_logp_rejected"]).mean()
    assert np.isclose(rewards, runs.logged(trainer)[-1]["rewards/rejected"], atol=1e-6)


@pytest.mark.parametrize("data", ["unpaired", "as the trainer takes pairs apart"])
def test_rows_that_are_no_pairs_are_refused(tmp_path, capfd, data):
    rows = [{"prompt": f"Review {i}:", "completion": " the film", "label": i % 2 == 0} for i in range(8)]
    given = runs.Dataset.from_list(rows) if data == "unpaired" else runs.pairs()
    trainer = recorded(tmp_path, data=given, max_steps=1)
    said = capfd.readouterr().err
    assert "not recorded, the training continues: KTOTrainer: its rows are no pairs" in said
    assert "unpair_preference_dataset(pairs, batch_size=per_device_train_batch_size // 2)" in said
    assert "dyn-probe scan" in said and not (tmp_path / "run").exists() and trainer.state.global_step == 1


def test_data_that_cannot_be_looked_at_are_said_to_hold_no_pairs_at_the_end(tmp_path, capfd):
    rows = [{"prompt": f"Review {i}:", "completion": " the film", "label": i % 2 == 0} for i in range(8)]
    recorded(tmp_path, data=runs.Dataset.from_list(rows).to_iterable_dataset())
    assert "8 of 8 responses had no partner" in capfd.readouterr().err
    assert load_trace(tmp_path / "run").pairs.empty


def test_a_split_momentum_wants_every_partner(tmp_path, capfd):
    callback = ProbeCallback(tmp_path / "run", split_momentum=True)
    runs.kto(tmp_path, [callback], data=shuffled(), per_device_train_batch_size=6).train()
    assert "2 of 6 responses of this batch have no partner" in capfd.readouterr().err


def test_pairs_are_found_by_prompt_and_place():
    prompts = [(1,), (2,), (1,), (1,), (2,), (3,), (1,)]
    labels = [False, True, True, True, False, True, False]
    assert pairs_among(prompts, labels) == [(1, 4), (2, 0), (3, 6)]
    assert pairs_among([(1,), (1, 2)], [True, False]) == [] == pairs_among([(1,), (1,)], [True, True])


def test_a_response_that_was_cut_off_has_no_partner():
    batch = dict(
        input_ids=torch.tensor([[1, 2, 3], [1, 2, 4]]), attention_mask=torch.ones(2, 3, dtype=torch.long),
        completion_mask=torch.tensor([[0, 0, 1], [0, 0, 0]]), label=torch.tensor([True, False]),
    )  # fmt: skip
    found = labelled_rows(batch)
    assert found.pairs is None and found.unpaired == 2
