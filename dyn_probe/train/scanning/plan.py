"""What a scan measures: checkpoints, data and settings that fit together, and what of it the folder holds already."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dyn_probe.data.encoding import EncodedPair
from dyn_probe.data.inspect import fitting_limit
from dyn_probe.data.models import load_tokenizer
from dyn_probe.data.prepared import PreparedPairs, Reading, prepare_pairs
from dyn_probe.errors import BadInput, TraceError
from dyn_probe.objectives import OBJECTIVES, STAGES, resolve_hyper
from dyn_probe.trace.manifest import read_manifest, typed
from dyn_probe.trace.run_fields import ScanInfo
from dyn_probe.train.objective import Method
from dyn_probe.train.options.config import RunConfig
from dyn_probe.train.scanning.saved_steps import OF_SCAN, Checkpoint, find_checkpoints, refuse_mixed, weights_digest
from dyn_probe.train.setup import check_folder

OF_PAIR = ("r_w", "r_l")
"""Terms beside log-probabilities and lengths that a pair has without a training around it."""


@dataclass(frozen=True, eq=False)
class Plan:
    """A scan whose checkpoints, data and settings fit together; nothing has been measured yet.

    Args:
        wanted: all checkpoints of the trace, in order of step.
        reference: the reference policy; None where the objective has none.
        settings: what a scan and its continuation share.
        begun: whether the folder holds a part of it.
    """

    config: RunConfig
    method: Method
    tokenizer: Any
    data: PreparedPairs
    wanted: list[Checkpoint]
    reference: str | None
    settings: dict[str, Any]
    begun: bool

    @property
    def missing(self) -> list[Checkpoint]:
        """The checkpoints from the first on that is not done: rows of later steps are not read again after it."""
        begin = next((place for place, one in enumerate(self.wanted) if not one.done), len(self.wanted))
        return self.wanted[begin:]

    def manifest(self, done: Sequence[Checkpoint]) -> dict[str, Any]:
        """The field ``scan`` of run.json, with these measured and those before the missing ones."""
        marked = [replace(one, done=one in done or one not in self.missing) for one in self.wanted]
        checkpoints = [asdict(one) for one in marked]
        return {"checkpoints": checkpoints, "reference": self.reference, "settings": self.settings}


def plan_scan(named: list[Checkpoint], config: RunConfig, reference: str) -> Plan:
    """What is to be measured, and what has been.

    Raises:
        BadInput, TraceError: as for ``scan``.
    """
    config, method = scan_config(config), scan_method(config)
    old = None if config.force else earlier(config.folder)
    check_folder(replace(config, resume=old is not None))
    wanted = together(named, old, config.folder)
    reference = reference or (old.reference if old else None) or wanted[0].model
    if reference not in [one.model for one in named]:
        reference = find_checkpoints([reference])[-1].model
    tokenizer, data = shared_pairs([*(one.model for one in named), reference], config)
    settings = settings_of(method, config, reference, data.pairs)
    check_same(settings, old, config.folder)
    known = reference if method.objective.needs_reference else None
    return Plan(config, method, tokenizer, data, wanted, known, settings, old is not None)


def scan_words(plan: Plan) -> str:
    """What will be measured, in a sentence."""
    places = [one.model for one in plan.wanted if one.step_from == "position"]
    steps = ", ".join(str(one.step) for one in plan.wanted)
    words = f"checkpoints at the steps {steps}; reference: {plan.reference or 'none'}"
    words += f"; no step is known of {', '.join(places)}, whose place in the list stands for it" if places else ""
    if not plan.missing:
        return f"{words}; nothing is missing in {plan.config.folder}"
    done = len(plan.wanted) - len(plan.missing)
    return words + (f"; {done} of {len(plan.wanted)} are in {plan.config.folder} already" if plan.begun else "")


def scan_config(config: RunConfig) -> RunConfig:
    """The same with the folder of a scan, where none is named, and without options that no scan has."""
    plain = RunConfig(**{name: getattr(config, name) for name in OF_SCAN})
    name = plain.folder.name.removeprefix(plain.objective.partition(":")[0])
    return plain if plain.out else replace(plain, out=str(Path("runs") / f"scan{name}"))


def scan_method(config: RunConfig) -> Method:
    """The objective whose pulls are recorded.

    Raises:
        BadInput: it reads more of a training than a pair has.
    """
    method = Method.of(config)
    more = [name for name in method.terms if name not in OF_PAIR]
    if more:
        rows = {name: row for name, row in OBJECTIVES.items() if name not in STAGES}
        fit = [name for name, row in rows.items() if set(row.reads(resolve_hyper(row))) <= set(OF_PAIR)]
        raise BadInput(
            f"{method.name} with these options reads {', '.join(more)}, which belong to a training and its batches; "
            f"a scan takes {', '.join(fit)}"
        )
    return method


def earlier(folder: Path) -> ScanInfo | None:
    """The scan in a folder, to be gone on with; None where there is nothing.

    Raises:
        TraceError: it holds a trace of something else.
    """
    if not (folder / "run.json").is_file():
        return None
    found = typed(read_manifest(folder)).scan
    if found is None:
        raise TraceError(
            f"{folder} holds a trace that is not of a scan; write --force to replace it, or another folder as --out"
        )
    return found


def together(named: list[Checkpoint], old: ScanInfo | None, folder: Path) -> list[Checkpoint]:
    """The checkpoints that are named and those that were measured before, in order of step.

    Raises:
        BadInput: a checkpoint has other weights than it was measured with.
    """
    known = {one.step: one for one in old.checkpoints} if old else {}
    found = {
        step: Checkpoint(one.model or "", step, one.step_from or "", one.weights or "", True)
        for step, one in known.items()
        if one.done
    }
    for one in named:
        before = found.get(one.step)
        if before and before.weights != one.weights:
            raise BadInput(
                f"{folder} has step {one.step} measured with other weights ({before.model}) than {one.model} holds; "
                "write --force to measure anew, or name another folder with --out"
            )
        found[one.step] = replace(one, done=before is not None)
    refuse_mixed(found.values())
    return sorted(found.values(), key=lambda one: one.step)


def shared_pairs(models: Sequence[str], config: RunConfig) -> tuple[Any, PreparedPairs]:
    """The tokenizer of all checkpoints, and the pairs in its tokens.

    Raises:
        BadInput: their tokenizers differ, or the data cannot be used.
    """
    tokenizer, positions = load_tokenizer(models[0], config.trust_remote_code)
    vocabulary = tokenizer.get_vocab()
    for model in dict.fromkeys(models):
        other, more = load_tokenizer(model, config.trust_remote_code)
        if other.get_vocab() != vocabulary:
            raise BadInput(
                f"{model} has another tokenizer than {models[0]}, so that a pair would be other tokens at each; scan "
                "checkpoints of one model"
            )
        positions = min((one for one in (positions, more) if one is not None), default=None)
    limit = fitting_limit(config.max_length, config.truncation, positions)
    how = Reading(config.columns, config.max_pairs, config.strict_data)
    return tokenizer, prepare_pairs(config.data, tokenizer, limit, how)


def settings_of(method: Method, config: RunConfig, reference: str, pairs: Sequence[EncodedPair]) -> dict[str, Any]:
    """What a scan and its continuation must share."""
    tokens = hashlib.sha256("".join(pair.pair_id for pair in pairs).encode()).hexdigest()[:16]
    settings: dict[str, Any] = {"objective": method.name, **method.hyper, "dtype": config.dtype}
    if method.objective.needs_reference:
        settings |= {"reference": weights_digest(reference) or reference}
    return settings | {"pairs": f"{len(pairs)}, digest {tokens}"}


def check_same(settings: dict[str, Any], old: ScanInfo | None, folder: Path) -> None:
    """BadInput if the scan in the folder was made with other settings."""
    before = settings if old is None else old.settings
    changed = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
    if changed:
        said = "; ".join(f"{name} was {before.get(name)!r}, now {settings.get(name)!r}" for name in changed)
        raise BadInput(
            f"{folder} holds a scan with other settings, and cannot continue with these: {said}; write --force to "
            "replace it, or name another folder with --out"
        )
