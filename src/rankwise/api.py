"""The same things as the commands, as functions of ordinary objects: a Transformers model, a tokenizer, rows.

model = AutoModelForSequenceClassification.from_pretrained("roberta-base", num_labels=2)
rankwise.adapt(model)
rankwise.fit(model, tokenizer, train, validation)
rankwise.save(model, "my-adapter")
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rankwise import hardware
from rankwise.config import LoraOptions, RunConfig, TrainOptions
from rankwise.engine.autotune import tune
from rankwise.engine.compute import Compute, Padding, predict_logits
from rankwise.engine.training import Step, Training
from rankwise.errors import RankwiseError
from rankwise.files import cache_folder
from rankwise.lora.inject import find_targets
from rankwise.lora.layer import lora_layers
from rankwise.models import families, loading
from rankwise.rank.controller import Decision
from rankwise.runs import recipes
from rankwise.tasks.encoding import Encoded, Rows, encode
from rankwise.tasks.losses import class_weights, mean_loss
from rankwise.tasks.metrics import score
from rankwise.tasks.problems import PROBLEMS, Labels, of_config

Table = Iterable[Mapping[str, Any]]
"""Rows as mappings: a list of dicts, a `datasets.Dataset`, `pyarrow.Table.to_pylist()` …"""


@dataclass(frozen=True)
class Columns:
    """Which keys of a row hold what."""

    text: str = "text"
    text_pair: str | None = None
    label: str = "label"
    """A class's name or id; a number; or a list: names of labels, or a 0 or 1 for each."""


@dataclass(frozen=True)
class FitResult:
    """What a `fit` did.

    Attributes:
        steps: one entry an optimizer step.
        scores: metrics on the validation rows after the last step, `loss` among them; empty without validation rows.
        notes: what was taken (padding, dtype, learning rate), and why.
        decisions: about ranks, where they were to be found.
    """

    steps: list[Step]
    scores: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    decisions: tuple[Decision, ...] = ()


def fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Table,
    validation: Table | None = None,
    *,
    columns: Columns = Columns(),
    options: TrainOptions | None = None,
    seed: int = 0,
    max_length: int | None = None,
    memory: str = "fast",
    on_step: Callable[[Step], None] = lambda step: None,
) -> FitResult:
    """Trains a sequence classifier in place: adapters and head after `rankwise.adapt`, every trainable weight otherwise.

    What the labels are follows the model's `config.problem_type`, or else what Transformers takes: one output is a number (regression),
    lists are several labels a row, all else is a class. `config.problem_type` says it afterwards.

    Args:
        model: where it is (device) and in the dtype it is in.
        tokenizer: the model's.
        train: rows with a text and a label (see `Columns.label`).
        validation: rows to score after the last step.
        columns: the keys of text, pair and label.
        options: what isn't set comes from the recipe.
        seed: of row order and dropout.
        max_length: tokens a text is truncated to. Default: the model's own limit, 512 at most.
        memory: `fast`, `lean` or a size such as `2GB`; as in `--memory`.
        on_step: called after each optimizer step.

    Returns:
        The steps, the final scores, and notes on what was taken.

    Raises:
        RankwiseError: a row without text or a known label, nothing to train, or a loss that is not a number.
    """
    method, lora = _adapted(model)
    asked = RunConfig(method=method, lora=lora, seed=seed, train=options or TrainOptions())
    config = recipes.resolve(asked, method)
    lr = recipes.resolve_lr(config, method, families.width(model.config))
    limit = max_length or families.text_limit(model.config, tokenizer)
    compute = _compute(model, tokenizer, limit, config.train.padding or "packed")
    settings = replace(config.train, lr=lr.value, padding=compute.padding)
    entries = list(train)
    _say_problem(model, entries, columns.label)
    rows = _encode(entries, columns, tokenizer, limit, model, labelled=True)
    weights = None
    if settings.class_weights is not None:
        weights = class_weights(settings.class_weights, label_names(model), cast(Labels, rows.labels))
    training = Training(model, rows, options=settings, compute=compute, seed=seed, class_weights=weights)
    engine = tune(training, memory=memory, cache=cache_folder())
    steps: list[Step] = []
    with training.compute.running(model):
        while not training.done:
            steps.append(training.step())
            on_step(steps[-1])
    model.eval()
    notes = (
        f"{'; '.join(filter(None, [compute.padding_reason, engine]))}.",
        f"Learning rate {lr.value:g} ({lr.why}).",
    )
    notes += tuple(filter(None, [training.rank_note]))
    scores = (
        evaluate(model, tokenizer, validation, columns=columns, max_length=limit)
        if validation is not None
        else {}
    )
    return FitResult(steps, scores, notes, tuple(training.decisions))


def predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Table,
    *,
    columns: Columns = Columns(),
    max_length: int | None = None,
) -> np.ndarray:
    """Logits [rows, outputs] of texts, in their order; labels aren't looked at."""
    limit = max_length or families.text_limit(model.config, tokenizer)
    encoded = _encode(rows, columns, tokenizer, limit, model, labelled=False)
    return predict_logits(model, encoded, _compute(model, tokenizer, limit))


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Table,
    *,
    metrics: Sequence[str] | None = None,
    columns: Columns = Columns(),
    max_length: int | None = None,
) -> dict[str, float]:
    """Metrics (by default those of its kind of problem) and mean loss of a model on labelled rows."""
    limit = max_length or families.text_limit(model.config, tokenizer)
    encoded = _encode(rows, columns, tokenizer, limit, model, labelled=True)
    compute = _compute(model, tokenizer, limit)
    logits, labels = predict_logits(model, encoded, compute), cast(Labels, encoded.labels)
    return score(metrics or of_config(model.config).metrics, labels, logits) | {
        "loss": mean_loss(logits, labels)
    }


def label_names(model: nn.Module) -> list[str]:
    """Names of the classes, in the order of their ids."""
    names = cast(dict[int, str], cast(Any, model).config.id2label)
    return [names[i] for i in sorted(names)]


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
        pad_id=loading.pad_id(tokenizer),
    )


def _encode(
    table: Table,
    columns: Columns,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    model: PreTrainedModel,
    *,
    labelled: bool,
) -> Encoded:
    entries = list(table)
    if not entries:
        raise RankwiseError("There are no rows: the table is empty.")
    text = [_text(entry, columns.text, i) for i, entry in enumerate(entries)]
    pair = (
        [_text(entry, columns.text_pair, i) for i, entry in enumerate(entries)] if columns.text_pair else None
    )
    labels = None
    if labelled:
        read = _LABELS[of_config(model.config).name]
        labels = np.array([read(e, columns.label, label_names(model), i) for i, e in enumerate(entries)])
    rows = Rows(text=text, text_pair=pair, labels=labels, idx=np.arange(len(entries), dtype=np.int64))
    return encode(rows, tokenizer, max_length, None)


def _text(entry: Mapping[str, Any], column: str, i: int) -> str:
    if not isinstance(entry.get(column), str):
        raise RankwiseError(f"Row {i} has no text in {column!r}; it has: {', '.join(map(str, entry))}.")
    return entry[column]


def _adapted(model: nn.Module) -> tuple[str, LoraOptions]:
    """By what was adapted, and how, the method whose settings a model takes."""
    layers = lora_layers(model)
    if not layers:
        return "full", LoraOptions()
    free = any(layer.moments is not None for layer in layers.values())
    everywhere = layers.keys() >= set(find_targets(model, ["all-linear"]))
    return "adaptive" if free else "lora", LoraOptions(targets=("all-linear",) if everywhere else ())


def _say_problem(model: PreTrainedModel, entries: list[Mapping[str, Any]], column: str) -> None:
    """Fills in what a model's config leaves open: what its outputs stand for."""
    if model.config.problem_type is None:
        several = bool(entries) and isinstance(entries[0].get(column), list | tuple | np.ndarray)
        problem = PROBLEMS["multi-label"] if several else of_config(model.config)
        model.config.problem_type = problem.problem_type


def _class(entry: Mapping[str, Any], column: str, names: list[str], i: int) -> np.int64:
    value = entry.get(column)
    if isinstance(value, str) and value in names:
        return np.int64(names.index(value))
    if isinstance(value, int | np.integer) and 0 <= int(value) < len(names):
        return np.int64(value)
    raise _no_label(value, column, i, f"the model knows {json.dumps(names)}")


def _several(entry: Mapping[str, Any], column: str, names: list[str], i: int) -> np.ndarray:
    value = entry.get(column)
    if isinstance(value, list | tuple | np.ndarray):
        labels = list(value)
        if all(isinstance(label, str) and label in names for label in labels):
            return np.isin(names, labels).astype(np.float32)
        if len(labels) == len(names) and all(label in (0, 1) for label in labels):
            return np.array(labels, dtype=np.float32)
    raise _no_label(
        value,
        column,
        i,
        f"several labels are a list of names out of {json.dumps(names)}, or of as many 0s and 1s",
    )


def _number(entry: Mapping[str, Any], column: str, names: list[str], i: int) -> np.float32:
    value = entry.get(column)
    if isinstance(value, int | float | np.number) and not isinstance(value, bool) and np.isfinite(value):
        return np.float32(value)
    raise _no_label(value, column, i, "regression takes numbers")


_LABELS: dict[str, Callable[[Mapping[str, Any], str, list[str], int], Any]] = {
    "classification": _class,
    "multi-label": _several,
    "regression": _number,
}


def _no_label(value: Any, column: str, i: int, known: str) -> RankwiseError:
    return RankwiseError(f"Row {i} has the label {value!r:.60} in {column!r}; {known}.")
