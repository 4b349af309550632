"""Where a run begins: at a pretrained model, or at what an earlier run trained (`--from-adapter`).

Hu et al. 2021 (app. D) start RTE, MRPC and STS-B from the adapter that was trained on MNLI. The adapter's matrices, ranks and scaling go
on as they are. Its head goes on where the labels are the same; new labels get the head that any run with this seed begins with.
"""

import math
from dataclasses import replace
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from rankwise.adapters import attach, peft_format
from rankwise.adapters.adapter import Adapter
from rankwise.config import LoraOptions, RunConfig
from rankwise.errors import RankwiseError
from rankwise.lora.inject import find_targets, train_beside, trained_beside
from rankwise.lora.scaling import scale
from rankwise.models import hub, loading
from rankwise.models.families import body_and_heads
from rankwise.models.loading import Source
from rankwise.run_folder import RunFolder
from rankwise.tasks.problems import of_config
from rankwise.tasks.task import Task


def locate(config: RunConfig) -> Source:
    """The model that a run loads: the one it names, the base of the adapter it starts from, or the whole model it starts from.

    Raises:
        RankwiseError: there is no such model, or nothing was trained in the folder to start from.
    """
    folder, asked, limit = config.model.from_adapter, config.model.model, config.data.max_length
    if folder is None:
        if asked in hub.SCRATCH and _method(config) != "full":
            raise RankwiseError(f"{asked} has nothing pretrained to keep; it takes --method full.")
        return loading.locate(asked or hub.EMBEDDED, limit)
    hub.check_start(folder, _method(config))
    if not (folder / peft_format.CONFIG).is_file():
        run = RunFolder(folder)
        name = run.read_result()["model"] if run.finished else str(folder)
        return replace(loading.locate(str(folder), limit), name=name)
    base = asked or peft_format.read(folder).base_model
    if base is None:
        raise RankwiseError(f"The adapter in {folder} doesn't name its base model. Say which with --model.")
    return loading.locate(base, limit)


def load(
    config: RunConfig, source: Source, task: Task, *, dtype: torch.dtype
) -> tuple[PreTrainedModel, list[str], str]:
    """Loads the model of a run, with an adapter in place where it starts from one.

    Args:
        config: of the run.
        source: from `locate`.
        task: whose labels the head is for.
        dtype: of the frozen weights, or of all where every weight is trained.

    Returns:
        The model, its new modules outside the head (see `models.load`), and what it started from, for the first lines of a run.
    """
    label_names = list(task.label_names)
    model, new = loading.load(source, label_names, dtype=dtype, seed=config.seed, problem=task.problem)
    folder = config.model.from_adapter
    if folder is None:
        return model, new, ""
    if not (folder / peft_format.CONFIG).is_file():
        kept = _labels(source.config) == label_names and of_config(source.config).name == task.problem
        if not kept:
            heads = [model.get_submodule(path) for path in body_and_heads(model)[1]]
            inside = {id(module) for head in heads for module in head.modules()}
            loading.draw(model, sorted(n for n, m in model.named_modules() if id(m) in inside), config.seed)
        return model, new, f"Started from the model in {folder}, {_head(kept)}."
    adapter = peft_format.read(folder)
    kept = _same_labels(adapter, task)
    adapter = replace(adapter if kept else _without_head(model, adapter), dropout=config.lora.lora_dropout)
    if _method(config) == "full":
        attach.merge(attach.attach(model, adapter))
    else:
        _refuse_other_adapter(model, adapter, config.lora)
        attach.attach(model, adapter)
        there = trained_beside(model)
        train_beside(model, [path for path in (*body_and_heads(model)[1], *new) if path not in there])
    return model, new, f"Started from the adapter in {folder}, {_head(kept)}."


def _method(config: RunConfig) -> str:
    return config.method.partition(":")[0]


def _head(kept: bool) -> str:
    return "its head included" if kept else "with a new head for its labels"


def _labels(config: Any) -> list[str]:
    names = cast(dict[int, str], config.id2label)
    return [names[i] for i in sorted(names)]


def _same_labels(adapter: Adapter, task: Task) -> bool:
    """Whether an adapter's head speaks of these labels; one that names none is taken at their number."""
    if adapter.problem not in (None, task.problem):
        return False
    if adapter.label_names is None:
        return adapter.num_labels == len(task.label_names)
    return adapter.label_names == list(task.label_names)


def _without_head(model: PreTrainedModel, adapter: Adapter) -> Adapter:
    """The adapter without its head, which is for other labels."""
    heads = tuple(f"{path}." for path in body_and_heads(model)[1])
    trained = {name: value for name, value in adapter.trained.items() if not name.startswith(heads)}
    return replace(adapter, trained=trained)


def _refuse_other_adapter(model: PreTrainedModel, adapter: Adapter, lora: LoraOptions) -> None:
    """An adapter brings its ranks, scaling and targets along; other ones can't be asked for."""
    if replace(lora, lora_dropout=0.0) == LoraOptions():
        return
    asked = dict.fromkeys(find_targets(model, lora.targets), lora.fixed_rank)
    ranks = {path: A.shape[0] for path, (A, _) in adapter.lora.items()}
    s = scale(lora.fixed_rank, lora.alpha, lora.rslora)
    # an adapter's file gives alpha with nine digits (`adapter_io.whole`)
    if asked != ranks or not all(math.isclose(other, s, rel_tol=1e-6) for other in adapter.scaling.values()):
        raise RankwiseError(
            f"The adapter in {adapter.folder} brings its own rank, alpha and targets (rank {_range(ranks)} on {len(ranks)} layers), "
            "and other ones are asked for. Leave --rank, --alpha, --rslora and --targets out."
        )


def _range(ranks: dict[str, int]) -> str:
    low, high = min(ranks.values()), max(ranks.values())
    return str(low) if low == high else f"{low} to {high}"
