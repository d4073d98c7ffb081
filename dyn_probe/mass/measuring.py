"""One checkpoint's rows of the mass table: every probe response teacher-forced through the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dyn_probe.errors import BadInput
from dyn_probe.mass.kept_positions import Watch
from dyn_probe.mass.metrics import METRICS, summarise, token_metrics
from dyn_probe.mass.observed_model import observing, position_limit
from dyn_probe.mass.probe_tokens import TokenProbes, TokenResponse, encode_probes
from dyn_probe.mass.probes import ProbeSet
from dyn_probe.mass.readout import Readout
from dyn_probe.mass.start_kl import BatchKL, StartPolicy, response_key
from dyn_probe.vocabulary import check_vocabulary


def measure(
    model: nn.Module,
    probe_set: ProbeSet | TokenProbes,
    tokenizer: Any = None,
    *,
    step: int = 0,
    batch_size: int = 8,
    chunk: int | None = None,
    max_length: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    watch: Watch | None = None,
    start: StartPolicy | None = None,
) -> list[dict[str, Any]]:
    """Rows of the mass table, one per probe response in the order of the set, measured without gradients.

    The model is put into evaluation mode and back; parameters, gradients and random state are left as they were.
    The numbers do not depend on ``batch_size`` or ``chunk`` beyond rounding.

    Args:
        model: a causal language model on any one device.
        probe_set: prompts × kinds, as text (``tokenizer`` is then needed) or as :func:`encode_probes` gives
            them. Encode once per run: skipped responses are listed there.
        step: optimizer step that the rows are written for.
        batch_size: responses per forward.
        chunk: positions whose logits are in memory at once; default: 16 MiB of float32 on a CPU.
        max_length: see :func:`encode_probes`; used only with a probe set of text. Default: the number of
            positions that the model has.
        progress: called with (responses done, responses in all) after every forward.
        watch: keeps the next-token distributions at its positions.
        start: the policy at the start of training: adds the KL to it, per token. That of step 0 is taken for it.

    Raises:
        BadInput: tokenizer and model do not match, or a response has a token id or length beyond the model.
    """
    probes = _as_tokens(probe_set, tokenizer, model, max_length)
    readout = Readout(model, chunk)
    _check(probes.responses, readout.vocabulary, position_limit(model))
    rows: list[dict[str, Any] | None] = [None] * len(probes)
    device, done = next(model.parameters()).device, 0
    asked = None if start is None or start.model is None or step == 0 else Readout(start.model, readout.chunk)
    with observing(model):
        for group in _batches(probes.responses, batch_size):
            batch = [probes.responses[i] for i in group]
            measured = _measured(readout, batch, device, watch, _kl_of(start, batch, step == 0, asked, device))
            for i, response, columns in zip(group, batch, measured, strict=True):
                rows[i] = {"step": step, "prompt_id": response.prompt_id, "kind": response.kind, **columns}
            done += len(group)
            if progress:
                progress(done, len(probes))
    return [row for row in rows if row is not None]


def _measured(
    readout: Readout,
    batch: Sequence[TokenResponse],
    device: torch.device,
    watch: Watch | None,
    kl: BatchKL | None,
) -> Iterator[dict[str, float | int]]:
    """The metric columns of each response of one forward."""
    ids, attended, predicts = (table.to(device) for table in _tables(batch))
    following = ids.roll(-1, 1)  # the token that position t predicts stands at t + 1
    targets, at = following[predicts], 0
    sums = torch.zeros(len(batch), len(METRICS), dtype=torch.float64)
    kl_sums = torch.zeros(len(batch), dtype=torch.float64)
    vocabulary = readout.vocabulary
    for rows, logits in readout.logits(ids, attended, predicts):
        values = token_metrics(logits, targets[at : at + len(rows)])
        sums.index_add_(0, rows.cpu(), torch.stack([values[name] for name in METRICS], 1).cpu().double())
        if kl is not None:
            kl_sums.index_add_(0, rows.cpu(), kl.of(logits).cpu())
        if watch:
            watch.look(batch, rows.tolist(), at, logits)
        at, vocabulary = at + len(rows), logits.shape[1]
    for response, row, apart in zip(batch, sums.tolist(), kl_sums.tolist(), strict=True):
        tokens = len(response.ids) - response.start
        more = {} if kl is None else {kl.column: apart / tokens}
        yield summarise(tokens, dict(zip(METRICS, row, strict=True)), vocabulary) | more


def _kl_of(
    start: StartPolicy | None, batch: Sequence[TokenResponse], begins: bool, asked: Readout | None, device: torch.device
) -> BatchKL | None:
    """The KL of one forward's responses to the start, whose model ``asked`` reads; None where it is not known."""
    if start is None:
        return None
    keys = [response_key(one.ids, one.start) for one in batch]
    lengths = [len(one.ids) - one.start for one in batch]
    if begins:
        return start.begin(keys, lengths)
    tables = [table.to(device) for table in _tables(batch)]
    return start.batch(keys, lengths, lambda _: (logits for _, logits in asked.logits(*tables)) if asked else iter(()))


def _tables(batch: Sequence[TokenResponse]) -> tuple[Tensor, Tensor, Tensor]:
    """``[R, L]`` each, padded on the right: ids, attention mask, positions that predict a response token."""
    longest = max(len(response.ids) for response in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    attended, predicts = torch.zeros_like(ids), torch.zeros(len(batch), longest, dtype=torch.bool)
    for row, response in enumerate(batch):
        length = len(response.ids)
        ids[row, :length] = torch.tensor(response.ids)
        attended[row, :length] = 1
        predicts[row, response.start - 1 : length - 1] = True
    return ids, attended, predicts


def _batches(responses: Sequence[TokenResponse], size: int) -> Iterator[list[int]]:
    """Indices of the responses in groups of ``size``, the longest first: little padding, and the memory peak first."""
    if size < 1:
        raise BadInput(f"batch_size is the number of responses per forward, at least 1; got {size}")
    order = sorted(range(len(responses)), key=lambda i: -len(responses[i].ids))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _as_tokens(
    probe_set: ProbeSet | TokenProbes, tokenizer: Any, model: nn.Module, max_length: int | None
) -> TokenProbes:
    if isinstance(probe_set, TokenProbes):
        return probe_set
    if tokenizer is None:
        raise BadInput("measure needs a tokenizer for a probe set of text, or the result of encode_probes()")
    check_vocabulary(tokenizer, model)
    return encode_probes(probe_set, tokenizer, max_length=max_length or position_limit(model))


def _check(responses: Sequence[TokenResponse], vocabulary: int, limit: int | None) -> None:
    highest = max(max(response.ids) for response in responses)
    if highest >= vocabulary:
        raise BadInput(
            f"the probe set has token id {highest}, the model only ids below {vocabulary}; "
            "encode it with the tokenizer that belongs to the model"
        )
    longest = max(len(response.ids) for response in responses)
    if limit is not None and longest > limit:
        raise BadInput(
            f"the probe set has a response of {longest} tokens with its prompt, the model {limit} positions; "
            f"encode it with max_length={limit}"
        )
