"""Loads what was trained: an adapter on its base model, or a fully fine-tuned model; and merges an adapter into its base."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from rankwise.adapters import attach, peft_format
from rankwise.errors import RankwiseError
from rankwise.files import check_folder, make_folder
from rankwise.models import hub, loading
from rankwise.run_folder import RunFolder, run_folders
from rankwise.tasks import objectives


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
    model = load_any(Path(folder), base=base, dtype=dtype)
    if not isinstance(model, PreTrainedModel):
        raise RankwiseError(
            f"The adapter in {folder} adds virtual tokens to each row; load it with peft.PeftModel.from_pretrained."
        )
    return model


def load_any(folder: Path, *, base: str | None, dtype: torch.dtype) -> nn.Module:
    """Load any kind of adapter. PEFT's wrapper is returned where the adapter adds virtual tokens."""
    if not (folder / peft_format.CONFIG).is_file():
        if not (folder / hub.CONFIG).is_file():
            raise RankwiseError(_nothing_trained(folder))
        source = loading.locate(str(folder))
        labels = [source.config.id2label[i] for i in sorted(source.config.id2label)]
        problem_type = objectives.of_config(source.config).problem_type
        return loading.load(source, labels, dtype=dtype, seed=0, problem_type=problem_type)[0]
    adapter = peft_format.read(folder, any_kind=True)
    name = base or adapter.base_model
    if name is None:
        raise RankwiseError(
            f"The adapter in {folder} doesn't name its base model. Name it with --model (base= in Python)."
        )
    try:
        source = loading.locate(name)
    except RankwiseError as error:
        why = (
            ""
            if base
            else f" The adapter in {folder} was trained on it. Say where it is now with --model (base= in Python)."
        )
        raise RankwiseError(f"{error}{why}") from error
    labels = adapter.label_names or _unnamed_labels(source.config, adapter.num_labels)
    problem = adapter.problem or ("regression" if len(labels) == 1 else "classification")
    problem_type = objectives.named(problem).problem_type
    model, _ = loading.load(source, labels, dtype=dtype, seed=0, problem_type=problem_type)
    if adapter.unsupported is not None:
        from rankwise.adapters import peft_kinds

        return peft_kinds.load(model, folder)
    return attach.attach(model, adapter).eval()


def _unnamed_labels(config: Any, count: int | None) -> list[str]:
    """Name the labels of an adapter that doesn't: as its base does, where the number agrees."""
    names = [config.id2label[i] for i in sorted(config.id2label)]
    return names if count in (None, len(names)) else [f"LABEL_{i}" for i in range(count)]


def merge(folder: str | Path, out: str | Path, *, base: str | None = None) -> PreTrainedModel:
    """Merge an adapter into a float32 copy of its base and write an ordinary Transformers folder, tokenizer included.

    Raises:
        RankwiseError: no adapter there, it doesn't fit the base, or `out` can't be written.
    """
    folder, out = Path(folder), Path(out)
    if not (folder / peft_format.CONFIG).is_file():
        raise RankwiseError(
            f"{folder} holds a whole model, not an adapter: there is nothing to merge, Transformers loads it as it is."
            if (folder / hub.CONFIG).is_file()
            else _nothing_trained(folder)
        )
    check_folder(out, folder, peft_format.CONFIG)
    adapter = peft_format.read(folder)
    model = load(folder, base=base, dtype=torch.float32)
    source = loading.locate(base or cast(str, adapter.base_model))
    merged = cast(PreTrainedModel, attach.merge(model))
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
            f"{out} can't be written: {error.strerror or error}. Name another folder with --out."
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
