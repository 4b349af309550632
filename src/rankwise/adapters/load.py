"""Loads what was trained: an adapter on its base model, or a fully fine-tuned model; and merges an adapter into its base."""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from rankwise.adapters import attach, checks, peft_format
from rankwise.adapters.adapter import Adapter
from rankwise.errors import RankwiseError
from rankwise.files import check_folder, make_folder
from rankwise.models import account, hub, loading
from rankwise.models.account import Account, check_whole
from rankwise.models.families import body_and_heads
from rankwise.run_folder import RunFolder, run_folders
from rankwise.tasks import objectives
from rankwise.tasks.labels import default_names


def load(
    folder: str | Path, *, base: str | None = None, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Load what `save`, `rankwise train` or PEFT wrote: an adapter on its base model, or a fully fine-tuned model.

    Args:
        folder: holds `adapter_config.json`, or a Transformers model.
        base: the base model's name or folder, where it isn't the one the adapter names.
        dtype: of the base's weights.

    Raises:
        RankwiseError: nothing to load there, or the adapter doesn't fit the base.
    """
    model, note = load_any(Path(folder), base=base, dtype=dtype)
    if note:
        warnings.warn(f"{folder}: {note}", stacklevel=2)
    if not isinstance(model, PreTrainedModel):
        raise RankwiseError(
            f"The adapter in {folder} adds virtual tokens to each row; load it with peft.PeftModel.from_pretrained."
        )
    return model


def load_any(
    folder: Path, *, base: str | None, dtype: torch.dtype, labels: Sequence[str] = ()
) -> tuple[nn.Module, str]:
    """Load any kind of adapter, or a whole model. PEFT's wrapper is returned where the adapter adds virtual tokens.

    Args:
        folder: holds it.
        base: the base model's name or folder, where it isn't the one the adapter names.
        dtype: of the base's weights.
        labels: names of a model's outputs that have none.

    Returns:
        The model, and what of a whole model's weights isn't used, in words.

    Raises:
        RankwiseError: nothing to load there, the adapter doesn't fit the base, or a part of the model would be random.
    """
    if not (folder / peft_format.CONFIG).is_file():
        if not (folder / hub.CONFIG).is_file():
            raise RankwiseError(_nothing_trained(folder))
        source, model, found = _whole(folder, dtype)
        if labels:
            name_outputs(model, names_given(folder, _labels(model.config), labels))
        return model, found.in_words()
    adapter = peft_format.read(folder, any_kind=True)
    check_task(adapter, _task_type(adapter))
    source, model, found = base_of(adapter, base=base, dtype=dtype, labels=labels)
    if adapter.unsupported is not None:
        from rankwise.adapters import peft_kinds

        loaded = peft_kinds.load(model, folder)
    else:
        loaded = attach.attach(model, adapter).eval()
    given = {path.removeprefix("base_model.") for path in adapter.trained}
    check_whole(found, given, f"The adapter in {folder} on {source.name}")
    return loaded, ""


def base_of(
    adapter: Adapter, *, base: str | None, dtype: torch.dtype | None = None, labels: Sequence[str] = ()
) -> tuple[loading.Source, PreTrainedModel, Account]:
    """Load an adapter's base, with the adapter's labels, ready to take the adapter.

    Args:
        adapter: as it was read.
        base: the base model's name or folder, where it isn't the one the adapter names.
        dtype: of the base's weights. Default: its own.
        labels: names of the outputs, where the adapter has none.

    Returns:
        Where it comes from, the model, and what of it was drawn.

    Raises:
        RankwiseError: there is no such model, or its labels aren't the adapter's.
    """
    folder, name = adapter.folder, base or adapter.base_model
    if name is None:
        raise RankwiseError(f"The adapter in {folder} doesn't name its base model. Name it with `base=`.")
    try:
        source = loading.locate(name, task_type=_task_type(adapter))
    except RankwiseError as error:
        why = "" if base else f" The adapter in {folder} was trained on it. Say where it is now with `base=`."
        raise RankwiseError(f"{error}{why}") from error
    names = adapter.label_names or _unnamed_labels(source.config, adapter.num_labels)
    names = names_given(folder, names, labels) if labels else names
    problem = adapter.problem or PROBLEMS.get(source.task_type) or _problem(source.config, names)
    problem_type = objectives.named(problem).problem_type
    kind: torch.dtype = dtype or getattr(source.config, "dtype", None) or torch.float32
    model, found = loading.load(source, names, dtype=kind, seed=0, problem_type=problem_type)
    _check_head(adapter, model, source.config)
    return source, model, found


def names_given(folder: Path | None, own: Sequence[str], given: Sequence[str]) -> list[str]:
    """Return the names that are given to outputs without names.

    Args:
        folder: of the adapter or model, for messages.
        own: the outputs' names so far.
        given: in the order of their ids.

    Raises:
        RankwiseError: the outputs have other names already, there are more or fewer of them, or a name is given twice.
    """
    if list(own) == list(given):
        return list(given)
    if list(own) != default_names(len(own)):
        raise RankwiseError(
            f"The outputs of {folder} have names of their own: {account.listed(own)}. Leave out `label_names=`."
        )
    if len(given) != len(own) or len(set(given)) < len(given):
        raise RankwiseError(
            f"`label_names=` takes {len(own)} different names, one for each output of {folder}, in order; it has {account.listed(given)}."
        )
    return list(given)


def name_outputs(model: PreTrainedModel, names: Sequence[str]) -> None:
    """Give a model's outputs names."""
    config = cast(Any, model.config)
    config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}


def _whole(folder: Path, dtype: torch.dtype) -> tuple[loading.Source, PreTrainedModel, Account]:
    """Load a whole model, with the LoRA layers that `save_pretrained` and Trainer's checkpoints leave in it."""
    source = loading.locate(str(folder), task_type=loading.task_type_of(str(folder)))
    of_texts = source.task_type == "SEQ_CLS"
    problem_type = objectives.of_config(source.config).problem_type if of_texts else ""
    model, found = loading.load(
        source, _labels(source.config), dtype=dtype, seed=0, problem_type=problem_type, adapted=True
    )
    check_whole(found, (), f"The model in {folder}")
    if found.adapted:
        tensors = loading.stored(
            source.path, [f"{path}.{name}" for path in found.adapted for name in account.LORA]
        )
        attach.attach(model, _inside(folder, model, found.adapted, tensors)).eval()
    return source, model, found


def _inside(
    folder: Path, model: PreTrainedModel, paths: Sequence[str], tensors: Mapping[str, torch.Tensor]
) -> Adapter:
    """Make an adapter of the LoRA matrices in a model's weights, and of the model's own head.

    Raises:
        RankwiseError: they are damaged.
    """
    lora, scaling = {}, {}
    for path in paths:
        A, B, s = (tensors[f"{path}.{name}"] for name in account.LORA)
        if A.shape[:1] != (0,):  # a layer of rank 0 is a plain one
            lora[path], scaling[path] = (A, B), float(s) if s.numel() == 1 else math.nan
    checks.check_factors(folder / "the weights", lora)
    if odd := [path for path, s in scaling.items() if not math.isfinite(s)]:
        raise RankwiseError(
            f"The weights in {folder} are damaged: the scaling of {account.listed(odd)} is no number."
        )
    heads = body_and_heads(model)[1]
    return Adapter(
        folder=folder,
        base_model=None,
        lora=lora,
        scaling=scaling,
        dropout=0.0,
        trained={
            name: value
            for name, value in model.state_dict().items()
            if name.startswith(tuple(f"{h}." for h in heads))
        },
        modules_to_save=heads,
        label_names=None,
        fingerprint=None,
    )


PROBLEMS = {"TOKEN_CLS": "tokens", "CAUSAL_LM": "generation"}
"""What the outputs of an adapter mean that says its task, by PEFT's name, and nothing else."""


def _task_type(adapter: Adapter) -> str:
    """Return what an adapter's base is loaded for, by PEFT's name."""
    if adapter.problem is not None:
        return objectives.named(adapter.problem).task_type
    said = adapter.config.get("task_type")
    return said if said in PROBLEMS else "SEQ_CLS"


def check_task(adapter: Adapter, task_type: str = "SEQ_CLS") -> None:
    """Check that an adapter is one for a task, as far as it says.

    Args:
        adapter: as read.
        task_type: PEFT's name of the task. `SEQ_CLS` stands for classes or numbers of whole texts.

    Raises:
        RankwiseError: it is for another task.
    """
    said = adapter.config.get("task_type")
    if said not in (None, "FEATURE_EXTRACTION", task_type):
        raise RankwiseError(
            f"The adapter in {adapter.folder} was trained for another task ({said}); "
            f"{'rankwise runs sequence classifiers (SEQ_CLS)' if task_type == 'SEQ_CLS' else f'this one takes {task_type}'}."
        )


def _check_head(adapter: Adapter, model: PreTrainedModel, config: Any) -> None:
    """Check that the base's own head, where the adapter has none, is for the labels that the adapter names."""
    heads = tuple(f"{path}." for path in body_and_heads(model)[1])
    if adapter.label_names is None or any(name.startswith(heads) for name in adapter.trained):
        return
    names = _labels(config)
    if names not in (adapter.label_names, default_names(len(names))):
        raise RankwiseError(
            f"The adapter in {adapter.folder} has no head, and its base's is for other labels: {account.listed(names)}, "
            f"not {account.listed(adapter.label_names)}. Export it with its head."
        )


def _problem(config: Any, labels: list[str]) -> str:
    """Say what the outputs of an adapter that doesn't say it mean: as for its base, where that says it and has as many."""
    if config.problem_type is not None and len(_labels(config)) == len(labels):
        return objectives.of_config(config).name
    return "regression" if len(labels) == 1 else "classification"


def _labels(config: Any) -> list[str]:
    return [config.id2label[i] for i in sorted(config.id2label)]


def _unnamed_labels(config: Any, count: int | None) -> list[str]:
    """Name the labels of an adapter that doesn't: as its base does, where the number agrees."""
    names = _labels(config)
    return names if count in (None, len(names)) else [f"LABEL_{i}" for i in range(count)]


def merge(
    folder: str | Path, out: str | Path, *, base: str | None = None, label_names: Sequence[str] = ()
) -> PreTrainedModel:
    """Merge an adapter into a float32 copy of its base and write an ordinary Transformers folder, tokenizer included.

    Args:
        folder: of the adapter.
        out: folder to write.
        base: the base model's name or folder, where it isn't the one the adapter names.
        label_names: of the outputs, in order, where the adapter has none.

    Raises:
        RankwiseError: no adapter there, it doesn't fit the base, or `out` can't be written.
    """
    folder, out = Path(folder), Path(out)
    if (folder / peft_format.CONFIG).is_file():
        check_folder(out, folder, peft_format.CONFIG)
        adapter = peft_format.read(folder)
        model = load(folder, base=base, dtype=torch.float32)
        if label_names:
            name_outputs(model, names_given(folder, attach.label_names(model), label_names))
        source = loading.locate(
            base or cast(str, adapter.base_model), task_type=objectives.of_model(model).task_type
        )
    elif (folder / hub.CONFIG).is_file():
        check_folder(out, folder, peft_format.CONFIG)
        source, model, found = _whole(folder, torch.float32)
        if not found.adapted:
            raise RankwiseError(
                f"{folder} holds a whole model, not an adapter: there is nothing to merge, Transformers loads it as it is."
            )
    else:
        raise RankwiseError(_nothing_trained(folder))
    merged = cast(PreTrainedModel, attach.merge(model))
    if odd := [name for name, weight in merged.named_parameters() if not weight.isfinite().all()]:
        raise RankwiseError(
            f"Merged, the adapter in {folder} gives weights that aren't numbers: {account.listed(odd)}. The base or the adapter is damaged."
        )
    make_folder(out)
    try:
        # Files are moved into place whole: a model written halfway would load with weights missing.
        with TemporaryDirectory(dir=out, prefix=".merging-") as workspace, loading.quiet():
            merged.save_pretrained(workspace)
            source.tokenizer.save_pretrained(workspace)
            for file in Path(workspace).iterdir():
                file.replace(out / file.name)
    except OSError as error:
        raise RankwiseError(
            f"{out} can't be written: {error.strerror or error}. Name another folder with `out=`."
        ) from None
    return merged


def _nothing_trained(folder: Path) -> str:
    """Say why a folder can't be loaded, and what could be."""
    if not folder.is_dir():
        return (
            f"There is no folder {folder}."
            if not folder.exists()
            else f"{folder} is a file; name the folder that `rankwise train` wrote."
        )
    run = RunFolder(folder)
    if run.finished:
        return (
            f"{folder} is a finished run whose model was not kept. `rankwise compare --keep-models` keeps fully fine-tuned models, "
            "`rankwise train --method full` always does."
        )
    if run.has_run:
        return f"{folder} is a run that has not finished. Give the command that began it again; it continues."
    inside = ", ".join(str(part.path) for part in run_folders(folder) if part.finished)
    if inside:
        return f"{folder} is a grid of several runs. Name one of them: {inside}."
    return f"{folder} holds neither an adapter nor a model. Name the folder that `rankwise train` wrote."
