"""Opens a trained model as it was trained: dtype, truncation and columns come from its run folder.

Evaluating a run on its own validation rows therefore gives its own score.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from rankwise import hardware
from rankwise.adapters import peft_format, threshold_file
from rankwise.adapters.attach import label_names
from rankwise.adapters.load import load_any
from rankwise.config import RunConfig
from rankwise.config_json import from_json
from rankwise.engine.compute import Compute
from rankwise.errors import RankwiseError
from rankwise.inference_options import HowToRun
from rankwise.lora import quantized
from rankwise.models import families, loading
from rankwise.models.account import listed
from rankwise.run_folder import RunFolder
from rankwise.tasks import look, objectives, words
from rankwise.tasks.task import Task
from rankwise.tasks.threshold import Threshold

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Trained:
    """A trained model with everything needed to run it on new rows.

    Attributes:
        model: on its device, in eval mode.
        tokenizer: the model's.
        task: names of columns and labels, metrics.
        compute: how batches are run.
        config: what the run was asked for; None where rankwise didn't train it.
        folder: where it was read from.
        threshold: from which probability on a row is of one class; None goes by the highest.
        most_frequent: the answer that its training rows have most often; None where that isn't known.
        notes: on how it was loaded, for people.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    task: Task
    compute: Compute
    config: RunConfig | None
    folder: Path
    threshold: Threshold | None = None
    most_frequent: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


def open_trained(
    folder: Path,
    *,
    base: str | None = None,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    label_names: Sequence[str] = (),
    how: HowToRun = HowToRun(),  # noqa: B008 (frozen)
) -> Trained:
    """Load what rankwise or PEFT trained.

    Args:
        folder: a run folder, a PEFT adapter, or a Transformers model.
        base: the adapter's base model, where it isn't the one it names.
        text: column of the text. Default for this and the other columns: the run's own.
        text_pair: column of the second text.
        label: column of the label.
        label_names: of the outputs, in order, where the adapter has none.
        how: device, threads, rows of a batch, and where texts are truncated.

    Raises:
        RankwiseError: it can't be loaded, a part of it would be random, or it can't be run so.
    """
    device = hardware.choose_device(how.device)
    if how.threads is not None:
        torch.set_num_threads(how.threads)
    run = RunFolder(folder)
    record = run.read_run() if run.has_run else {}
    facts = {name: value for name, value in (record.get("facts") or {}).items() if value is not None}
    asked = _of_record(run, RunConfig, record["requested"]) if record else None
    stored = _of_record(run, Task, record["task"]) if record.get("task") else None
    dtype, _ = hardware.choose_dtype(facts.get("dtype", "auto"), device)
    is_adapter = (folder / peft_format.CONFIG).is_file()
    model, note = load_any(
        folder, base=base, dtype=dtype if is_adapter else torch.float32, labels=label_names
    )
    model.to(device)
    if is_adapter and facts.get("base_bits"):
        quantized.check(device)
        quantized.quantize(model, facts["base_bits"])
    name = (base or peft_format.read(folder, any_kind=True).base_model or "") if is_adapter else str(folder)
    tokenizer = loading.locate(name, task_type=families.task_type(model) or "SEQ_CLS").tokenizer
    task = _task(stored, folder, model)
    columns = {"text": text, "text_pair": text_pair, "label": label}
    task = replace(task, **{column: name for column, name in columns.items() if name is not None})
    compute = Compute.for_model(
        model,
        dtype=dtype,
        frozen_base=is_adapter,
        padding=facts.get("padding", "packed"),
        max_length=_max_length(model, tokenizer, how.max_length, facts.get("max_length")),
        pad_id=loading.pad_id(model, tokenizer),
        threads=how.threads,
    )
    compute = replace(compute, forward_rows=how.batch_size)
    return Trained(
        model,
        tokenizer,
        task,
        compute,
        asked,
        folder,
        threshold=threshold_file.read(folder, task.label_names),
        most_frequent=_most_frequent(record.get("look"), task),
        notes=(note,) if note else (),
    )


def _most_frequent(stored: Any, task: Task) -> tuple[str, ...] | None:
    """Return the answer that most training rows have; None where a run doesn't say what its rows were."""
    try:
        return None if stored is None else tuple(look.most_frequent(look.from_json(stored), task.problem))
    except ValueError:
        return None


def _max_length(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, asked: int | None, trained: int | None
) -> int:
    """Return the tokens that a text may have: those asked for, those it was trained with, or the model's own limit."""
    return trained if asked is None and trained else families.text_limit(model, tokenizer, asked)


def _of_record(run: RunFolder, kind: type[Kind], stored: Any) -> Kind:
    """Return an entry of run.json as what it was.

    Raises:
        RankwiseError: it is damaged.
    """
    try:
        return from_json(kind, stored)
    except ValueError as error:
        raise run.damaged_run(error) from None


def _task(stored: Task | None, folder: Path, model: nn.Module) -> Task:
    """Return what a run was trained for; for other models, what their config says."""
    if stored is not None and not objectives.named(stored.problem).has_column:
        return stored
    if stored is not None:
        outputs = label_names(model)
        if list(stored.label_names) != outputs:
            raise RankwiseError(
                f"The run in {folder} was trained for the labels {listed(stored.label_names)}; the model there is for "
                f"{listed(outputs)}."
            )
        return stored
    objective = objectives.of_model(model)
    if not objective.has_column:
        return _language_task(folder, objective.metrics)
    names = tuple(label_names(model))
    text, label = words.COLUMNS if objective.of_words else ("text", "label")
    return Task(
        name=folder.name,
        text=text,
        text_pair=None,
        label=label,
        label_names=names,
        metrics=objective.metrics_for(names),
        source=str(folder),
        problem=objective.name,
    )


def _language_task(folder: Path, metrics: tuple[str, ...]) -> Task:
    """Return the task of a language model that rankwise didn't train: it completes prompts."""
    return Task(
        name=folder.name,
        text="prompt",
        text_pair="completion",
        label=None,
        label_names=(),
        metrics=metrics,
        source=str(folder),
        problem="generation",
        loss_on="completion",
    )
