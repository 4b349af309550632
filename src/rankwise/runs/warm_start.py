"""Loads the model that a run starts from: a pretrained one, or what an earlier run trained (`--from-adapter`).

Hu et al. 2021 (app. D) start RTE, MRPC and STS-B from the adapter that was trained on MNLI. Training continues with the adapter's matrices,
ranks and scaling. Its head is kept if the labels are the same; otherwise the head is new, as in any run with this seed.
"""

import math
from dataclasses import replace
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from rankwise.adapters import attach, peft_format
from rankwise.adapters.adapter import Adapter
from rankwise.adapters.load import check_task
from rankwise.config import LoraOptions, RunConfig
from rankwise.errors import RankwiseError
from rankwise.lora.inject import find_targets, train_beside, trained_beside
from rankwise.lora.scaling import scale
from rankwise.models import hub, loading
from rankwise.models.account import listed
from rankwise.models.families import body_and_heads
from rankwise.models.loading import Source
from rankwise.run_folder import RunFolder
from rankwise.runs import methods
from rankwise.tasks import objectives
from rankwise.tasks.labels import default_names
from rankwise.tasks.task import Task


def locate(config: RunConfig, task_type: str = "SEQ_CLS") -> Source:
    """Return where a run's model is: the one it names, or the base model or whole model that it starts from.

    Args:
        config: of the run.
        task_type: what the model is for, by PEFT's name.

    Raises:
        RankwiseError: there is no such model, or nothing in the folder to start from.
    """
    folder, asked, limit = config.model.from_adapter, config.model.model, config.data.max_length
    if folder is None:
        if asked in hub.SCRATCH and not _method(config).starts_from_model:
            able = " or ".join(methods.names(starts_from_model=True))
            raise RankwiseError(
                f"{asked} isn't pretrained, so a frozen base is of no use. Take `method={able}`."
            )
        return loading.locate(asked or hub.DEFAULT, limit, task_type)
    methods.check_start(folder, config.method)
    if not (folder / peft_format.CONFIG).is_file():
        run = RunFolder(folder)
        name = run.read_result()["model"] if run.finished else str(folder)
        return replace(loading.locate(str(folder), limit, task_type), name=name)
    base = asked or peft_format.read(folder).base_model
    if base is None:
        raise RankwiseError(f"The adapter in {folder} doesn't name its base model. Give it with `model=`.")
    return loading.locate(base, limit, task_type)


def load(
    config: RunConfig, source: Source, task: Task, *, dtype: torch.dtype
) -> tuple[PreTrainedModel, list[str], str]:
    """Load the model of a run, with the adapter in place if it starts from one.

    Args:
        config: of the run.
        source: from `locate`.
        task: what the head is for.
        dtype: of the frozen weights, or of all weights if the base is trained.

    Returns:
        The model, its new modules outside the head (see `models.account`), and what it started from and what of it is new, for the
        first lines of a run.

    Raises:
        RankwiseError: the model or adapter can't be loaded, or they don't fit each other.
    """
    label_names = list(task.label_names)
    objective = objectives.named(task.problem)
    model, found = loading.load(
        source, label_names, dtype=dtype, seed=config.seed, problem_type=objective.problem_type
    )
    new, heads = list(found.modules), tuple(f"{path}." for path in body_and_heads(model)[1])
    new_head = any(name.startswith(heads) for name in found.new)
    folder = config.model.from_adapter
    if source.name in hub.SCRATCH:
        return model, new, f"Every weight is new: {source.name} isn't pretrained."
    if folder is None:
        words = found.in_words()
        return (
            model,
            new,
            words or (_other_labels(_labels(source.config), label_names) if label_names else ""),
        )
    if not (folder / peft_format.CONFIG).is_file():
        if not label_names:
            return model, new, f"Started from the model in {folder}."
        same = _labels(source.config) == label_names and objectives.of_config(source.config) is objective
        kept = same and not new_head
        if not kept:
            inside = {id(m) for path in body_and_heads(model)[1] for m in model.get_submodule(path).modules()}
            loading.draw(model, sorted(n for n, m in model.named_modules() if id(m) in inside), config.seed)
        return model, new, f"Started from the model in {folder}, {_head(kept)}."
    adapter = peft_format.read(folder)
    check_task(adapter, objective.task_type)
    kept = _same_labels(adapter, task) and any(name.startswith(heads) for name in adapter.trained)
    adapter = replace(adapter if kept else _without_head(model, adapter), dropout=config.lora.lora_dropout)
    if not _method(config).frozen_base:
        attach.merge(attach.attach(model, adapter))
    else:
        _refuse_other_adapter(model, adapter, config.lora)
        attach.attach(model, adapter)
        there = trained_beside(model)
        train_beside(model, [path for path in (*body_and_heads(model)[1], *new) if path not in there])
    if not label_names:
        return model, new, f"Started from the adapter in {folder}."
    beside = [path for path in new if not any(name.startswith(f"{path}.") for name in adapter.trained)]
    also = f" Also new: {listed(beside)}, which neither has." if beside else ""
    return model, new, f"Started from the adapter in {folder}, {_head(kept, new_head)}.{also}"


def _method(config: RunConfig) -> methods.Method:
    return methods.named(methods.plain_name(config.method))


def _head(kept: bool, new: bool = True) -> str:
    if kept:
        return "its head included"
    return "with a new head for its labels" if new else "with its base's head"


def _other_labels(there: list[str], here: list[str]) -> str:
    """Say that training begins with a head that the checkpoint trained for other labels."""
    if there in (here, default_names(len(here))):
        return ""
    return f"The head begins as the checkpoint's, which is for the labels {listed(there)}."


def _labels(config: Any) -> list[str]:
    names = cast(dict[int, str], config.id2label)
    return [names[i] for i in sorted(names)]


def _same_labels(adapter: Adapter, task: Task) -> bool:
    """Return whether an adapter's head is for a task's labels. If it names none, their number decides."""
    if adapter.problem not in (None, task.problem):
        return False
    if adapter.label_names is None:
        return adapter.num_labels == len(task.label_names)
    return adapter.label_names == list(task.label_names)


def _without_head(model: PreTrainedModel, adapter: Adapter) -> Adapter:
    """Return the adapter without its head."""
    heads = tuple(f"{path}." for path in body_and_heads(model)[1])
    return adapter.with_trained({n: value for n, value in adapter.trained.items() if not n.startswith(heads)})


def _refuse_other_adapter(model: PreTrainedModel, adapter: Adapter, lora: LoraOptions) -> None:
    """Refuses options that differ from the adapter's own ranks, scaling and targets."""
    if replace(lora, lora_dropout=0.0, prefer="accuracy") == LoraOptions():
        return
    asked = dict.fromkeys(find_targets(model, lora.targets), lora.fixed_rank)
    ranks = {path: A.shape[0] for path, (A, _) in adapter.lora.items()}
    s = scale(lora.fixed_rank, lora.alpha, lora.rslora)
    # An adapter's file stores alpha with nine digits (`peft_format`).
    if asked != ranks or not all(math.isclose(other, s, rel_tol=1e-6) for other in adapter.scaling.values()):
        raise RankwiseError(
            f"The adapter in {adapter.folder} has its own rank, alpha and targets (rank {_range(ranks)} on {len(ranks)} layers), "
            "and other ones are given. Leave out `rank=`, `alpha=`, `rslora=` and `targets=`."
        )


def _range(ranks: dict[str, int]) -> str:
    low, high = min(ranks.values()), max(ranks.values())
    return str(low) if low == high else f"{low} to {high}"
