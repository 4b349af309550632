"""The commands as Python functions on ordinary objects: a Transformers model, a tokenizer, rows.

model = AutoModelForSequenceClassification.from_pretrained("roberta-base", num_labels=2)
rankwise.adapt(model)
rankwise.fit(model, tokenizer, train, validation)
rankwise.save(model, "my-adapter")
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rankwise import hardware, report
from rankwise.adapters.attach import label_names
from rankwise.config import DataOptions, LoraOptions, ProblemName, RunConfig, TableOptions, TrainOptions
from rankwise.engine import row_check
from rankwise.engine.autotune import tune
from rankwise.engine.compute import Compute, Padding, predict_logits
from rankwise.engine.training import Step, Training
from rankwise.errors import RankwiseError
from rankwise.files import cache_folder
from rankwise.lora.inject import find_targets
from rankwise.lora.layer import lora_layers
from rankwise.lora.wrappers import sees_through
from rankwise.models import families, loading
from rankwise.rank.decision import Decision
from rankwise.rank.statistics import all_finite
from rankwise.runs import early_stopping, methods, recipes
from rankwise.tasks import mappings, objectives
from rankwise.tasks.columns import columns as columns_of
from rankwise.tasks.encoding import Encoded, encode
from rankwise.tasks.labels import Labels
from rankwise.tasks.load import load_dataset
from rankwise.tasks.look import Look
from rankwise.tasks.looking import look_at
from rankwise.tasks.mappings import Columns, Table
from rankwise.tasks.quality import Quality, measure
from rankwise.tasks.tables import expand, read_tables

__all__ = [
    "Columns",
    "FitResult",
    "Look",
    "Quality",
    "Table",
    "evaluate",
    "fit",
    "look",
    "predict",
    "quality",
]

File = str | Path


@dataclass(frozen=True)
class FitResult:
    """The outcome of `fit`.

    Attributes:
        steps: one entry for each optimizer step.
        scores: metrics and `loss` on the validation rows after the last step; empty without validation rows.
        notes: padding, engine and learning rate that were chosen, with the reasons.
        decisions: about ranks, in adaptive training.
        curve: (step, scores on the validation rows) wherever `evaluate_every` asked for them.
        quality: how good the predictions on the validation rows are; None without such rows, and for texts that are written.
        skipped_steps: steps in which nothing was updated, because a gradient wasn't finite; `notes` says so, too.
    """

    steps: list[Step]
    scores: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    decisions: tuple[Decision, ...] = ()
    curve: tuple[tuple[int, dict[str, float]], ...] = ()
    skipped_steps: int = 0
    quality: Quality | None = None


@sees_through
def fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Table,
    validation: Table | None = None,
    *,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    options: TrainOptions | None = None,
    seed: int = 0,
    max_length: int | None = None,
    memory: str = "fast",
    on_step: Callable[[Step], None] = lambda step: None,
) -> FitResult:
    """Train a sequence classifier or a causal language model in place: what `rankwise.adapt` left to train, or every trainable weight.

    The model's `config.problem_type` says what labels mean. Where it is None it is set, by Transformers' rules: one output is a number
    (regression), a list holds several labels of a row, everything else is a class.

    Args:
        model: is trained on its own device and in its own dtype.
        tokenizer: the model's.
        train: rows with text and label, or with what a language model learns (see `Columns`).
        validation: rows to score after the last step, and meanwhile with `TrainOptions(evaluate_every=…)`.
        columns: the keys of text, second text and label.
        options: settings; those that are None come from the recipe. With `patience`, a tenth of the training rows is held out for it.
        seed: of row order and dropout.
        max_length: tokens a text is truncated to. Default: the model's own limit, 512 at most (1,024 for language models).
        memory: `fast`, `lean` (gradient checkpointing) or a budget such as `2GB`.
        on_step: called after each optimizer step.

    Returns:
        The steps, the final scores, notes and rank decisions.

    Raises:
        RankwiseError: a row without text or a known label, nothing to train, or a loss or a weight that is not a number.
    """
    method, lora = _adapted(model)
    asked = RunConfig(method=method, lora=lora, seed=seed, train=options or TrainOptions())
    config = recipes.resolve(asked, method)
    lr = recipes.resolve_lr(config, method, families.width(model.config))
    limit = families.text_limit(model, tokenizer, max_length)
    compute = _compute(model, tokenizer, limit, config.train.padding or "packed")
    settings = replace(config.train, lr=lr.value, padding=compute.padding)
    entries = mappings.entries_of(train)
    _set_problem_type(model, entries, columns.label)
    rows, weights = _encode(entries, columns, tokenizer, limit, model, config.train), None
    objective = objectives.of_model(model)
    checked = (
        None if validation is None else _encode(validation, columns, tokenizer, limit, model, config.train)
    )
    if settings.evaluate_every is not None and checked is None:
        raise RankwiseError("`evaluate_every=` needs validation rows. Give `validation=`, or leave it out.")
    held_out = None
    if settings.patience is not None:
        rows, held_out = early_stopping.hold_out(rows, objective, seed)
    if settings.class_weights is not None:
        weights = objective.class_weights(
            settings.class_weights, label_names(model), cast(Labels, rows.labels)
        )
    training = Training(model, rows, options=settings, compute=compute, seed=seed, class_weights=weights)
    engine = tune(training, memory=memory, cache=cache_folder())
    steps: list[Step] = []
    curve: list[tuple[int, dict[str, float]]] = []
    stopping = early_stopping.EarlyStopping(settings.patience)
    while not training.done and not stopping.stop:
        with training.compute.running(model):
            steps.append(training.step())
        number = steps[-1].step
        if checked is not None and settings.evaluate_every and number % settings.evaluate_every == 0:
            curve.append((number, _scores(model, checked, training.compute)))
        if held_out is not None and number % training.batches.steps_per_epoch == 0:
            logits = predict_logits(model, held_out, training.compute, objective=objective)
            stopping.add(objective.mean_loss(logits, cast(Labels, held_out.labels)))
        on_step(steps[-1])
    training.end()
    model.eval()
    if not all_finite(p.detach() for p in training.update.parameters):
        raise RankwiseError(
            f"Weights aren't finite after step {training.step_number}. Lower `lr=` (now {training.peak_lr:g})."
        )
    notes = (
        f"{'; '.join(filter(None, [compute.padding_reason, engine]))}.",
        f"Learning rate {lr.value:g} ({lr.why}).",
    )
    notes += tuple(filter(None, [_left_out(rows), training.rank_note, *training.notes]))
    scores, measured = {}, None
    if checked is not None:
        compute = _compute(model, tokenizer, limit)
        logits = predict_logits(model, checked, compute, objective=objectives.of_model(model))
        scores, measured = _scored(model, checked, logits), _quality(model, checked, logits)
    return FitResult(
        steps,
        scores,
        notes,
        tuple(training.decisions),
        tuple(curve),
        skipped_steps=training.skipped_steps,
        quality=measured,
    )


@sees_through
def predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Table,
    *,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    max_length: int | None = None,
) -> np.ndarray:
    """Compute logits [rows, outputs] of texts, in their order; of a token classifier's rows [rows, words, outputs].

    There they are NaN behind a row's last word. Words behind `max_length` tokens are left out.

    Args:
        model: a sequence classifier.
        tokenizer: the model's.
        rows: with text; labels are ignored.
        columns: the keys of text and second text.
        max_length: tokens a text is truncated to. Default: the model's own limit, 512 at most (1,024 for language models).

    Raises:
        RankwiseError: no rows, a row without text, or a language model.
    """
    if not objectives.of_model(model).has_column:
        raise RankwiseError(
            f"{type(model).__name__} is a language model: it has logits of tokens, and not of texts."
        )
    limit = families.text_limit(model, tokenizer, max_length)
    encoded = _encode(rows, columns, tokenizer, limit, model, None)
    compute = _compute(model, tokenizer, limit)
    return predict_logits(model, encoded, compute, objective=objectives.of_model(model))


@sees_through
def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Table,
    *,
    metrics: Sequence[str] | None = None,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    options: TrainOptions | None = None,
    max_length: int | None = None,
) -> dict[str, float]:
    """Compute metrics and mean `loss` of a model on labelled rows.

    Args:
        model: a sequence classifier, or a causal language model.
        tokenizer: the model's.
        rows: with text and label (see `Columns`).
        metrics: their names. Default: those of the model's objective.
        columns: the keys of text, second text and label.
        options: those of the training, which say which tokens a language model learns.
        max_length: tokens a text is truncated to. Default: the model's own limit, 512 at most (1,024 for language models).

    Raises:
        RankwiseError: no rows, a row without text or a known label, or an unknown metric.
    """
    limit = families.text_limit(model, tokenizer, max_length)
    encoded = _encode(rows, columns, tokenizer, limit, model, options or TrainOptions())
    return _scores(model, encoded, _compute(model, tokenizer, limit), metrics)


@sees_through
def quality(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Table,
    *,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    max_length: int | None = None,
) -> Quality:
    """Measure how good a model's predictions on labelled rows are: interval, baseline, each class, confusions, calibration.

    The arguments and errors are those of `evaluate`. `str(found)` shows it as the command does.
    """
    limit = families.text_limit(model, tokenizer, max_length)
    encoded = _encode(rows, columns, tokenizer, limit, model, TrainOptions())
    objective, compute = objectives.of_model(model), _compute(model, tokenizer, limit)
    found = _quality(model, encoded, predict_logits(model, encoded, compute, objective=objective))
    if found is None:
        raise RankwiseError(
            "A model that writes texts has no classes or numbers to measure. `evaluate` gives its losses."
        )
    return found


def look(
    table: File | Sequence[File] | Table | None = None,
    *,
    validation: File | Table | None = None,
    dataset: str | None = None,
    dataset_config: str | None = None,
    train_split: str | None = None,
    validation_split: str | None = None,
    task: str = "movies",
    text: str | None = None,
    text_pair: str | None = None,
    label: str | Sequence[str] | None = None,
    prompt: str | None = None,
    completion: str | None = None,
    messages: str | None = None,
    problem: ProblemName | None = None,
    data: File | None = None,
    limit_train: int | None = None,
    limit_eval: int | None = None,
    model: str | None = None,
    max_length: int | None = None,
    out: File | None = None,
) -> Look:
    """Look at rows before training: classes and their shares, lengths of texts, duplicates, and what looks like a slip.

    The arguments are the options of the command `look`. `str(found)` shows it as the command does.

    Args:
        table: a file, several or a pattern; or rows, as `fit` takes them. Default: `dataset`, or `task`.
        validation: rows to evaluate on, likewise. Default: they are split off, stratified by label.
        dataset: a data set of the Hugging Face hub, or a folder that the `datasets` library loads.
        dataset_config: its configuration.
        train_split: its split to train on.
        validation_split: its split to evaluate on.
        task: a task by name, where neither rows nor a data set are given.
        text: column of the text.
        text_pair: column of the second text, where rows are pairs.
        label: column of the label, or several of 0s and 1s.
        prompt: column of a language model's prompt.
        completion: column of its completion.
        messages: column of whole conversations.
        problem: what the label means. Default: it follows from the labels.
        data: folder with the Parquet files of tasks by name.
        limit_train: training rows that are drawn.
        limit_eval: rows to evaluate on that are drawn.
        model: count the tokens of this model. Default: the embedded one's, or words where it can't be fetched.
        max_length: tokens that a text is truncated to. Default: the model's own limit, 512 at most (1,024 for language models).
        out: page to write, such as `look.html`.

    Raises:
        RankwiseError: the rows can't be read or can't be trained on, or the page can't be written.
    """
    if out is not None:
        report.check_page(Path(out))
    files, rows = _files(table), None
    if files is None and table is not None:
        if dataset is not None:
            raise RankwiseError(f"Both `dataset={dataset}` and rows are given. Leave one out.")
        rows = mappings.as_table(cast(Table, table), "The table")
    held_out = None
    if validation is not None and not isinstance(validation, File):
        held_out = mappings.as_table(validation, "The validation table")
    options = TableOptions(
        train_file=files,
        validation=Path(validation) if isinstance(validation, File) else None,
        dataset=dataset,
        dataset_config=dataset_config,
        train_split=train_split,
        validation_split=validation_split,
        text=text,
        text_pair=text_pair,
        label=None if label is None else (label,) if isinstance(label, str) else tuple(label),
        prompt=prompt,
        completion=completion,
        messages=messages,
        problem=problem,
    )
    limits = DataOptions(
        data=None if data is None else Path(data),
        limit_train=limit_train,
        limit_eval=limit_eval,
        max_length=max_length,
    )
    loaded = load_dataset(RunConfig(task=task, table=options, data=limits), rows, held_out)
    found = look_at(loaded, model, max_length)
    if out is not None:
        shown = read_tables(files) if files is not None else rows
        name = str(files[0]) if files is not None and len(files) == 1 else loaded.task.name
        report.write_look(Path(out), name, found, [] if shown is None else columns_of(shown), loaded.notes)
    return found


def _files(table: object) -> tuple[Path, ...] | None:
    """Return the files that an argument names, or None where it holds rows."""
    if isinstance(table, File):
        return expand([Path(table)])
    if isinstance(table, list | tuple) and table and all(isinstance(one, File) for one in table):
        return expand([Path(one) for one in table])
    return None


def _scores(
    model: PreTrainedModel, rows: Encoded, compute: Compute, metrics: Sequence[str] | None = None
) -> dict[str, float]:
    """Return metrics and mean `loss` on labelled rows."""
    logits = predict_logits(model, rows, compute, objective=objectives.of_model(model))
    return _scored(model, rows, logits, metrics)


def _quality(model: PreTrainedModel, rows: Encoded, logits: np.ndarray) -> Quality | None:
    """Return how good predictions of labelled rows are; None for texts that are written."""
    objective = objectives.of_model(model)
    names = label_names(model) if objective.has_column else ()
    return measure(objective, objective.metrics_for(names)[0], names, cast(Labels, rows.labels), logits)


def _scored(
    model: PreTrainedModel, rows: Encoded, logits: np.ndarray, metrics: Sequence[str] | None = None
) -> dict[str, float]:
    """Return metrics and mean `loss` of logits [rows, outputs]."""
    labels, objective = cast(Labels, rows.labels), objectives.of_model(model)
    names = label_names(model) if objective.has_column else ()
    return {
        **objective.score(metrics or objective.metrics_for(names), labels, logits, names),
        "loss": objective.mean_loss(logits, labels),
    }


def _compute(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int, padding: Padding = "packed"
) -> Compute:
    device = next(model.parameters()).device
    body = next(p for p in families.body_and_heads(model)[0].parameters() if p.ndim >= 2)
    dtype, _ = hardware.choose_dtype("auto", device)
    full = body.requires_grad and body.dtype == torch.float32
    return Compute.for_model(
        model,
        dtype=dtype,
        frozen_base=not full,
        padding=padding,
        max_length=max_length,
        pad_id=loading.pad_id(model, tokenizer),
    )


def _encode(
    table: Table,
    columns: Columns,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    model: PreTrainedModel,
    train: TrainOptions | None,
) -> Encoded:
    """Return rows as token ids; without labels where `train` is None."""
    objective = objectives.of_model(model)
    names, of_words = label_names(model), objective.of_words
    rows = mappings.read(table, columns, objective if train else None, names, train, of_words=of_words)
    encoded = encode(rows, tokenizer, max_length, None)
    row_check.check(model, encoded)
    return encoded


def _left_out(rows: Encoded) -> str:
    if not rows.n_left_out:
        return ""
    return (
        f"{rows.n_left_out:,} rows left out: nothing of them that is to be learned is within `max_length=`."
    )


def _adapted(model: nn.Module) -> tuple[str, LoraOptions]:
    """Return the method and the options whose recipe fits a model as it was adapted."""
    layers = lora_layers(model)
    adaptive = any(layer.statistics is not None for layer in layers.values())
    name = methods.of_layers(has_ranks=bool(layers), finds_ranks=adaptive)
    everywhere = layers and layers.keys() >= set(find_targets(model, ["all-linear"]))
    return name, LoraOptions(targets=("all-linear",) if everywhere else ())


def _set_problem_type(model: PreTrainedModel, entries: list[Mapping[str, Any]], column: str) -> None:
    """Set the `problem_type` of a classifier whose config leaves it open."""
    if (
        getattr(model.config, "problem_type", None) is None
        and objectives.of_model(model).task_type == "SEQ_CLS"
    ):
        several = mappings.several_labels(entries, column)
        objective = objectives.named("multi-label") if several else objectives.of_config(model.config)
        cast(Any, model.config).problem_type = objective.problem_type
