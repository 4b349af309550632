"""A trained model put to use on a file: `rankwise evaluate` and `rankwise predict`.

The model is run as it was trained (dtype, truncation, columns, all from its run folder), so that evaluating a run on its own validation
rows gives its own score.
"""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from scipy.special import expit, softmax
from torch import nn
from transformers import PreTrainedTokenizerBase

from rankwise import hardware
from rankwise.adapters import peft_format
from rankwise.adapters.load import load_any
from rankwise.config import RunConfig, from_json
from rankwise.engine.compute import Compute, predict_logits
from rankwise.errors import RankwiseError
from rankwise.files import cache_folder, check_place
from rankwise.lora import quantized
from rankwise.models import families, loading
from rankwise.run_folder import RunFolder
from rankwise.tasks.custom import load_dataset_split
from rankwise.tasks.encoding import Rows, encode
from rankwise.tasks.load import load_dataset, load_split
from rankwise.tasks.losses import mean_loss
from rankwise.tasks.metrics import score
from rankwise.tasks.problems import PROBLEMS, of_config
from rankwise.tasks.rows import all_integers, read_rows
from rankwise.tasks.task import Task

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Trained:
    """A trained classifier with everything needed to run it on new rows."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    task: Task
    compute: Compute
    config: RunConfig | None
    """What was asked for, where rankwise trained it."""
    folder: Path


def open_trained(
    folder: Path,
    *,
    base: str | None = None,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
) -> Trained:
    """Loads what was trained into `folder`, by rankwise or by PEFT.

    Args:
        folder: a run folder, a PEFT adapter, or a Transformers model.
        base: the adapter's base model, where it isn't the one it names.
        text: column of the text; like the other columns, the run's own where not given.
        text_pair: column of the second text.
        label: column of the label.
    """
    run = RunFolder(folder)
    record = run.read_run() if run.has_run else {}
    facts = record.get("facts") or {}
    device = hardware.choose_device("auto")
    dtype, _ = hardware.choose_dtype(facts.get("dtype", "auto"), device)
    is_adapter = (folder / peft_format.CONFIG).is_file()
    model = load_any(folder, base=base, dtype=dtype if is_adapter else torch.float32).to(device)
    if is_adapter and facts.get("base_bits"):
        quantized.check(device)
        quantized.quantize(model, facts["base_bits"])
    name = (base or peft_format.read(folder, any_kind=True).base_model or "") if is_adapter else str(folder)
    tokenizer = loading.locate(name).tokenizer
    task = _task(record, folder, cast(Any, model).config)
    columns = {"text": text, "text_pair": text_pair, "label": label}
    task = replace(task, **{column: name for column, name in columns.items() if name is not None})
    compute = Compute.for_model(
        model,
        dtype=dtype,
        frozen_base=is_adapter,
        padding=facts.get("padding", "packed"),
        max_length=facts.get("max_length") or families.text_limit(cast(Any, model).config, tokenizer),
        pad_id=loading.pad_id(tokenizer),
    )
    asked = from_json(RunConfig, record["requested"]) if record else None
    return Trained(model, tokenizer, task, compute, asked, folder)


def _task(record: dict[str, Any], folder: Path, config: Any) -> Task:
    """What a run was trained for, as it says; of other models, what their config says."""
    if stored := record.get("task"):
        return from_json(Task, stored)
    problem = of_config(config)
    return Task(
        name=folder.name,
        text="text",
        text_pair=None,
        label="label",
        label_names=tuple(config.id2label[i] for i in sorted(config.id2label)),
        metrics=problem.metrics,
        source=str(folder),
        problem=problem.name,
    )


def logits_of(trained: Trained, rows: Rows, on_progress: Progress = lambda done, of: None) -> np.ndarray:
    """Logits [rows, outputs] of rows, in their order."""
    encoded = encode(rows, trained.tokenizer, trained.compute.max_length, cache_folder())
    return predict_logits(trained.model, encoded, trained.compute, on_progress=on_progress)


def evaluate(
    trained: Trained,
    file: Path | None = None,
    split: str = "validation",
    folder: Path | None = None,
    on_progress: Progress = lambda done, of: None,
) -> dict[str, Any]:
    """Metrics, loss and number of `labelled_rows`, and their `notes`."""
    rows, notes = labelled_rows(trained, file, split, folder)
    return {**_scores(trained, rows, on_progress), "notes": list(notes)}


def labelled_rows(
    trained: Trained, file: Path | None = None, split: str = "validation", folder: Path | None = None
) -> tuple[Rows, Sequence[str]]:
    """Rows of a file, or of a split of the run's own data (`task_rows`) where none is given; and what there is to say of them."""
    return (
        task_rows(trained, split, folder)
        if file is None
        else read_rows(file, trained.task, labelled=True)
    )


def task_rows(trained: Trained, split: str, folder: Path | None) -> tuple[Rows, Sequence[str]]:
    """Rows of a split of the run's own data; `validation` is what the run itself was scored on, limit and all.

    Args:
        trained: a run of rankwise's.
        split: `validation`, or another of a task by name.
        folder: as in `--data`; the run's own where not given.

    Raises:
        RankwiseError: no run of rankwise's, or its data aren't where they were.
    """
    config = trained.config
    if config is None:
        raise RankwiseError(
            f"{trained.task.source} doesn't say what it was trained on. Name a file with labelled rows."
        )
    if split == "validation":
        config = replace(config, data=replace(config.data, data=folder or config.data.data))
        return load_dataset(config).validation["validation"], ()
    if config.table.dataset is not None:
        return load_dataset_split(config.table, trained.task, split)
    return load_split(trained.task, split, folder or config.data.data)


def _scores(trained: Trained, rows: Rows, on_progress: Progress) -> dict[str, Any]:
    if not len(rows) or rows.labels is None:
        raise RankwiseError("There is no row with both text and label to evaluate on.")
    logits = logits_of(trained, rows, on_progress)
    return {
        "n": len(rows),
        **score(trained.task.metrics, rows.labels, logits),
        "loss": mean_loss(logits, rows.labels),
    }


def predict_file(
    trained: Trained, file: Path, out: Path, on_progress: Progress = lambda done, of: None
) -> dict[str, Any]:
    """Writes what the model says of every row of `file` with a text: its label with probabilities and logits, or its number.

    Args:
        file: CSV, TSV, JSONL or Parquet.
        out: the same kinds, by its ending. `idx` in it is the row's position in `file`, from 0.

    Returns:
        `n`, `out`, `notes`, and as `predicted` how often each label was said, or the lowest, mean and highest number.
    """
    kind = check_out(out, file)
    rows, notes = read_rows(file, trained.task, labelled=False)
    logits = logits_of(trained, rows, on_progress)
    columns, predicted = _said(trained.task, logits)
    table = pa.table({"idx": rows.idx, **columns})
    partial = out.with_name(f"{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        WRITERS[kind](table, partial)
        partial.replace(out)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RankwiseError(
            f"{out} can't be written: {error.strerror or error}. Name another file with --out."
        ) from None
    return {"n": len(rows), "out": str(out), "predicted": predicted, "notes": list(notes)}


def _said(task: Task, logits: np.ndarray) -> tuple[dict[str, Any], dict[str, float]]:
    """Columns of what logits say, and a summary of them."""
    said, names = PROBLEMS[task.problem].predict(logits), task.label_names
    if task.problem == "regression":
        low, mean, high = (float(f(said)) for f in (np.min, np.mean, np.max))
        return {"label": said}, {"lowest": low, "mean": mean, "highest": high}
    labels: list[Any] = list(names)
    if all_integers(names) and all(name == str(int(name)) for name in names):
        labels = [int(name) for name in names]  # a column of integers comes back as one
    if task.problem == "multi-label":
        column: list[Any] = [[labels[i] for i in np.flatnonzero(row)] for row in said]
        probabilities, counts = expit(logits), said.sum(axis=0)
    else:
        column, counts = [labels[i] for i in said], np.bincount(said, minlength=len(names))
        probabilities = softmax(logits, axis=1)
    columns = {f"probability_{name}": probabilities[:, i] for i, name in enumerate(names)}
    columns |= {f"logit_{name}": logits[:, i] for i, name in enumerate(names)}
    return {"label": column, **columns}, {name: int(n) for name, n in zip(names, counts, strict=True)}


def check_out(out: Path, file: Path) -> str:
    """The kind of file that predictions are written as, by its ending.

    Raises:
        RankwiseError: no ending of a known kind, a folder, a place that can't be written, or the rows' own file.
    """
    kind = out.suffix.lower()
    if kind not in WRITERS:
        found = f"as {out.suffix!r}" if out.suffix else f"to {str(out)!r}, which has no ending"
        raise RankwiseError(
            f"Predictions can't be written {found}; name --out with one of {', '.join(WRITERS)}."
        )
    if out.is_dir():
        raise RankwiseError(f"{out} is a folder. Name a file in it with --out.")
    if out.exists() and file.exists() and out.samefile(file):
        raise RankwiseError(
            f"{out} holds the rows to predict on, which would be lost. Name another file with --out."
        )
    check_place(out, out.absolute().parent, "file")
    return kind


def _write_jsonl(table: pa.Table, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())


def _write_delimited(delimiter: str) -> Callable[[pa.Table, Path], None]:
    def write(table: pa.Table, path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerow(table.column_names)
            writer.writerows(
                [json.dumps(v, ensure_ascii=False) if isinstance(v, list) else v for v in row.values()]
                for row in table.to_pylist()
            )

    return write


WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {
    ".jsonl": _write_jsonl,
    ".csv": _write_delimited(","),
    ".tsv": _write_delimited("\t"),
    ".parquet": lambda table, path: pq.write_table(table, path),
}
