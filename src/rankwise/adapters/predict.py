"""Evaluates a trained model on labelled rows, and predicts on a file."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa

from rankwise.adapters import prediction_files, texts, threshold_file
from rankwise.adapters.prediction_files import check_out
from rankwise.adapters.texts import Writer
from rankwise.adapters.trained import Trained, open_trained
from rankwise.engine import row_check
from rankwise.engine.compute import predict_logits
from rankwise.errors import RankwiseError
from rankwise.files import cache_folder
from rankwise.inference_options import TextOptions
from rankwise.tasks import objectives, prompts, quality, tables, threshold
from rankwise.tasks.custom import load_dataset_split
from rankwise.tasks.encoding import Encoded, Rows, encode
from rankwise.tasks.labels import IGNORED, Labels
from rankwise.tasks.load import load_dataset, load_split
from rankwise.tasks.objectives import Objective
from rankwise.tasks.rows import read_rows, survey, texts_or_reasons
from rankwise.tasks.streams import Stream, arrow_types, open_stream
from rankwise.tasks.table import Places, Table
from rankwise.tasks.task import Task

__all__ = [
    "Trained",
    "check_out",
    "evaluate",
    "labelled_rows",
    "logits_of",
    "open_trained",
    "predict_file",
    "task_rows",
]

Progress = Callable[[int, int], None]
"""Called with (rows done, all rows)."""
GENERATION = "generation"
"""The problem of language models."""
KINDS = 20
"""Reasons that are reported one by one; further ones together."""
OTHER = "other reasons, see the column `reason`"


def logits_of(trained: Trained, rows: Rows, on_progress: Progress = lambda done, of: None) -> np.ndarray:
    """Compute logits [rows, outputs], in the order of the rows; of rows of words [rows, words, outputs], NaN where there is no word.

    Raises:
        RankwiseError: the model doesn't take these rows, or a logit isn't a number.
    """
    logits, encoded = _run(trained, rows, on_progress)
    return _by_word(logits, encoded) if rows.of_words else logits


def _run(trained: Trained, rows: Rows, on_progress: Progress) -> tuple[np.ndarray, Encoded]:
    """Return what the objective keeps of each row's logits, and the rows as they were run."""
    encoded = encode(rows, trained.tokenizer, trained.compute.max_length, cache_folder())
    row_check.check(trained.model, encoded)
    objective = objectives.named(trained.task.problem)
    logits = predict_logits(
        trained.model, encoded, trained.compute, objective=objective, on_progress=on_progress
    )
    odd = ~_has_numbers(logits, encoded, objective)
    if odd.any():
        raise _no_numbers(trained, odd, encoded.idx)
    return logits, encoded


def _has_numbers(logits: np.ndarray, encoded: Encoded, objective: Objective) -> np.ndarray:
    """Return for each row whether all of its logits are numbers; NaN stands for words that aren't there, too."""
    expected = encoded.labels_a_row if objective.of_words else 1
    return np.isfinite(logits).reshape(len(logits), -1).sum(axis=1) == expected * logits.shape[-1]


def _by_word(logits: np.ndarray, encoded: Encoded) -> np.ndarray:
    """Put the logits of unlabelled rows of words, whose tokens are labelled by the number of the word that they begin, at these numbers."""
    assert encoded.token_labels is not None
    numbers = encoded.token_labels[encoded.token_labels != IGNORED]
    row = np.repeat(np.arange(len(encoded)), encoded.labels_a_row)
    found = np.full((len(encoded), numbers.max() + 1, logits.shape[2]), np.nan, dtype=logits.dtype)
    found[row, numbers] = logits[~np.isnan(logits).all(axis=2)]
    return found


def _no_numbers(trained: Trained, odd: Any, idx: np.ndarray) -> RankwiseError:
    return RankwiseError(
        f"The model in {trained.folder} gives no numbers for {odd.sum():,} of {len(odd):,} rows (the first is row "
        f"{idx[odd.argmax()]}): its weights hold values that aren't numbers, or its number type overflows."
    )


def evaluate(
    trained: Trained,
    file: Path | None = None,
    split: str = "validation",
    folder: Path | None = None,
    on_progress: Progress = lambda done, of: None,
    options: TextOptions = TextOptions(),  # noqa: B008 (frozen)
    *,
    threshold_for: str | None = None,
    of_class: str | None = None,
) -> dict[str, Any]:
    """Score a model on `labelled_rows`. A language model also writes texts where `options` names their scores.

    Args:
        trained: the model.
        file: see `labelled_rows`, as for `split` and `folder`.
        split: of the run's own data.
        folder: of the task's files.
        on_progress: called as rows are done.
        threshold_for: such as `precision=0.9`: also find the threshold for it and store it beside the model; `predict_file` uses it.
        of_class: the class that the threshold is for.

    Returns:
        `n` rows, the task's metrics, `loss`, `quality` (`tasks.quality`; None for texts), `threshold` (found or stored, else
        None), and `notes`.

    Raises:
        RankwiseError: rows can't be read or scored, or a text can't be written for one.
    """
    _check_options(trained, options)
    threshold.check(threshold_for, of_class, objectives.named(trained.task.problem), trained.task.label_names)
    writer = Writer(trained, options) if options.scores else None
    rows, notes = labelled_rows(trained, file, split, folder)
    found = {
        **_scores(trained, rows, on_progress, threshold_for, of_class),
        "notes": [*trained.notes, *notes],
    }
    if writer is not None:
        writer.write(prompts.of_rows(rows), on_progress)
        if why := next(iter(writer.reasons.values()), None):
            raise RankwiseError(f"A prompt of these rows can't be written for: {why}.")
        found |= {**writer.scores(), "notes": [*found["notes"], *writer.notes()]}
    return found


def _check_options(trained: Trained, options: TextOptions) -> None:
    """Refuse options of texts for a model that writes none."""
    given = next((one.name for one in fields(options) if getattr(options, one.name) != one.default), None)
    if given is not None and trained.task.problem != GENERATION:
        raise RankwiseError(
            f"`{given}=` is for language models, and the model in {trained.folder} is for {trained.task.problem}."
        )


def labelled_rows(
    trained: Trained, file: Path | None = None, split: str = "validation", folder: Path | None = None
) -> tuple[Rows, Sequence[str]]:
    """Read labelled rows from a file, or from the run's own data (`task_rows`) where none is given; with notes on them."""
    return task_rows(trained, split, folder) if file is None else read_rows(file, trained.task)


def task_rows(trained: Trained, split: str, folder: Path | None) -> tuple[Rows, Sequence[str]]:
    """Read a split of the run's own data. `validation` gives the rows that the run was scored on, with its limit.

    Args:
        trained: by rankwise.
        split: `validation`, or another of a task by name.
        folder: as in `--data`; the run's own where not given.

    Raises:
        RankwiseError: rankwise didn't train it, or its data is no longer there.
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


def _scores(
    trained: Trained, rows: Rows, on_progress: Progress, threshold_for: str | None, of_class: str | None
) -> dict[str, Any]:
    """Return what `evaluate` does of predictions; the threshold that is asked for is stored."""
    if not len(rows) or rows.labels is None:
        raise RankwiseError("There is no row with both text and label to evaluate on.")
    task, objective = trained.task, objectives.named(trained.task.problem)
    (logits, encoded), names = _run(trained, rows, on_progress), task.label_names
    labels, found = cast(Labels, encoded.labels), trained.threshold
    if threshold_for is not None and of_class is not None:
        found = threshold.find(threshold_for, of_class, objective, labels, logits, names)
        threshold_file.write(trained.folder, found)
    measured = quality.measure(
        objective, task.metrics[0], names, labels, logits, most_frequent=trained.most_frequent
    )
    return {
        "n": len(rows),
        **objective.score(task.metrics, labels, logits, names),
        "loss": objective.mean_loss(logits, labels),
        "quality": measured and measured.to_json(),
        "threshold": found and {**found.to_json(), "here": found.on(objective, labels, logits, names)},
    }


# ── Predictions on a file ─────────────────────────────────────────────────────────────────────


def predict_file(
    trained: Trained,
    file: Path,
    out: Path,
    on_progress: Progress = lambda done, of: None,
    *,
    keep: Literal["all", "none"] = "all",
    options: TextOptions = TextOptions(),  # noqa: B008 (frozen)
) -> dict[str, Any]:
    """Predict every row of `file`: its label with probabilities and logits, its number, a tag for each word, or a text.

    Memory doesn't grow with the file, but for texts.
    A row that can't be scored has an empty answer, and `reason` says why.

    Args:
        trained: the model.
        file: CSV, TSV, JSONL or Parquet.
        out: the same kinds, by its ending. It has a row for each row of `file`, in its order.
        on_progress: called as rows are done.
        keep: `all` writes the columns of `file` before the answer's; `none` writes the row's position in `file`, from 0, as `idx`.
        options: how a language model writes.

    Returns:
        `n` rows, `unscored` of them without an answer, `out`, `notes`, and `predicted`: how often each label was predicted, the
        lowest, mean and highest number, or scores of texts.

    Raises:
        RankwiseError: a file can't be read or written, no row has a text, or the model gives no numbers.
    """
    check_out(out, tables.expand([file]))
    stream = open_stream(file)
    _check_options(trained, options)
    writes = trained.task.problem == GENERATION
    if options.scores and trained.task.text_pair and len(_columns_of(trained.task, stream)) == 1:
        raise texts.no_references()
    answers = _TextAnswers(trained, options) if writes else _Answers(trained)
    notes = [*trained.notes, *(stream.notes if writes else survey(stream, trained.task))]
    names = prediction_files.names_beside(stream.columns if keep == "all" else (), answers.schema.names)
    columns = prediction_files.Columns(
        kept=_kept_types(stream, names, out),
        answers=answers.schema if keep == "all" else pa.schema([("idx", pa.int64()), *answers.schema]),
        as_they_are=stream.of_text,
    )
    done = 0
    with prediction_files.writing(out, columns) as write:
        for piece in stream.pieces(None if keep == "all" else _columns_of(trained.task, stream)):
            table = answers.of(piece, lambda some, of, done=done: on_progress(done + some, stream.rows))
            if keep == "none":
                table = table.add_column(0, "idx", [np.arange(done, done + len(piece))])
            kept = {name: piece.columns[column] for column, name in names.items()}
            write(kept, table)
            done += len(piece)
            on_progress(done, stream.rows)
    if done != stream.rows:
        raise RankwiseError(f"{stream.name} has changed while it was read: it had {stream.rows:,} rows.")
    renamed = [f"{column!r} is {name!r}" for column, name in names.items() if name != column]
    if renamed:
        notes.append(f"Columns of {stream.name} with the name of one of the answer's: {', '.join(renamed)}.")
    notes += [*answers.notes(stream.name), *prediction_files.note_on_formulas(out, columns)]
    return {
        "n": done,
        "unscored": done - answers.scored,
        "out": str(out),
        "predicted": answers.predicted,
        "notes": notes,
    }


def _columns_of(task: Task, stream: Stream) -> list[str]:
    """Return the columns that answers are made from."""
    if task.problem != GENERATION:
        return [name for name in (task.text, task.text_pair) if name]
    return [task.text, *(name for name in (task.text_pair, prompts.REFERENCES) if name in stream.columns)]


def _kept_types(stream: Stream, names: dict[str, str], out: Path) -> dict[str, pa.DataType]:
    """Return the types of the columns that are kept, by their names in the file. Only Parquet has types."""
    if not names or out.suffix.lower() != ".parquet":
        return dict.fromkeys(names.values(), pa.null())
    return {names[column]: kind for column, kind in arrow_types(stream).items()}


class _Reasons:
    """Why rows have no answer, piece by piece."""

    def __init__(self) -> None:
        self._places: dict[str, Places] = {}

    def add(self, piece: Table, reasons: list[str | None]) -> None:
        """Add those of the rows of a piece, None for a row with an answer."""
        for reason in dict.fromkeys(filter(None, reasons)):
            rows = [row for row, why in enumerate(reasons) if why == reason]
            kind = reason if len(self._places) < KINDS or reason in self._places else OTHER
            self._places.setdefault(kind, Places()).add(piece, rows)

    def notes(self, name: str) -> list[str]:
        """Return a sentence on each reason."""
        return [
            f"{name}: {places.count:,} {'row has' if places.count == 1 else 'rows have'} no answer: {reason} ({places})."
            for reason, places in self._places.items()
        ]


class _TextAnswers:
    """The texts that a language model writes for the rows of a file, piece by piece."""

    def __init__(self, trained: Trained, options: TextOptions) -> None:
        self._task, self._writer, self._reasons = trained.task, Writer(trained, options), _Reasons()
        self.scored = 0
        """Rows that have a text."""
        self.schema = pa.schema([("generated", pa.string()), ("reason", pa.string())])

    @property
    def predicted(self) -> dict[str, float]:
        """Scores of the texts that have references, and words a text."""
        return {**self._writer.scores(), "words a text": texts.words_a_text(self._writer)}

    def notes(self, name: str) -> list[str]:
        """Return sentences on rows without a text, and on texts without an end."""
        return [*self._reasons.notes(name), *self._writer.notes()]

    def of(self, piece: Table, on_progress: Progress) -> pa.Table:
        """Return a text for each row, or null and the reason where there is none."""
        asked = prompts.of_table(piece, self._task)
        self._writer.write(asked, on_progress)
        table, reasons = texts.table(asked, self._writer)
        self.scored += reasons.count(None)
        self._reasons.add(piece, reasons)
        return table.append_column("reason", [pa.array(reasons, pa.string())])


class _Answers:
    """The answers to the rows of a file, piece by piece.

    Args:
        trained: the model.
    """

    def __init__(self, trained: Trained) -> None:
        self._trained, self._objective = trained, objectives.named(trained.task.problem)
        self._summaries: list[tuple[int, dict[str, float]]] = []
        self._reasons = _Reasons()
        self._truncated = 0
        of_row = (1, 1) if self._objective.of_words else (1,)
        outputs = np.ones((*of_row, len(trained.task.label_names)), np.float32)
        example, _ = self._objective.columns(outputs, trained.task.label_names)
        self._of_scored = pa.table(example).schema
        self.schema = self._of_scored.append(pa.field("reason", pa.string()))

    @property
    def scored(self) -> int:
        """Rows that have an answer."""
        return sum(n for n, _ in self._summaries)

    @property
    def predicted(self) -> dict[str, float]:
        """How often each label was predicted, or the lowest, mean and highest number."""
        return self._objective.combine(self._summaries) if self._summaries else {}

    def notes(self, name: str) -> list[str]:
        """Return sentences on rows without an answer, and on truncated ones."""
        notes = self._reasons.notes(name)
        if self._truncated:
            texts = "text was" if self._truncated == 1 else "texts were"
            limit = self._trained.compute.max_length
            notes.append(f"{self._truncated:,} {texts} longer than {limit} tokens and truncated.")
        return notes

    def of(self, piece: Table, on_progress: Progress) -> pa.Table:
        """Return an answer for each row, of nulls and the reason where there is none."""
        texts, reasons = texts_or_reasons(piece, self._trained.task)
        logits = self._logits(texts, reasons, piece, on_progress)
        scored = [row for row, reason in enumerate(reasons) if reason is None]
        table = self._of_scored.empty_table()
        if scored:
            names, limit = self._trained.task.label_names, self._trained.threshold
            said = None if limit is None else limit.decide(self._objective, logits, names)
            columns, summary = self._objective.columns(logits, names, said)
            self._summaries.append((len(scored), summary))
            table = pa.table(
                {name: pa.array(values, self._of_scored.field(name).type) for name, values in columns.items()}
            )
        places = {row: place for place, row in enumerate(scored)}
        table = table.take(pa.array([places.get(row) for row in range(len(piece))], pa.int64()))
        self._reasons.add(piece, reasons)
        return table.append_column("reason", [pa.array(reasons, pa.string())])

    def _logits(
        self, texts: list[list[str]], reasons: list[str | None], piece: Table, on_progress: Progress
    ) -> np.ndarray:
        """Return logits of the rows that can be scored; what is wrong with others is added to the reasons."""
        trained = self._trained
        pair, objective = texts[1] if len(texts) > 1 else None, self._objective
        rows = Rows(texts[0], pair, None, np.arange(len(piece)), of_words=objective.of_words)
        rows = rows.select(np.array([row for row, why in enumerate(reasons) if why is None], dtype=np.int64))
        if not len(rows):
            return np.empty((0, 0), np.float32)
        encoded = encode(rows, trained.tokenizer, trained.compute.max_length, empty=True)
        for row in rows.idx[encoded.lengths == 0]:
            reasons[row] = "the tokenizer finds no token in the text"
        encoded = encoded.select(np.flatnonzero(encoded.lengths))
        self._truncated += encoded.n_truncated
        if not len(encoded):
            return np.empty((0, 0), np.float32)
        row_check.check(trained.model, replace(encoded, idx=piece.first + encoded.idx))
        logits = predict_logits(
            trained.model, encoded, trained.compute, objective=objective, on_progress=on_progress
        )
        finite = _has_numbers(logits, encoded, objective)
        if not finite.any():
            raise _no_numbers(trained, ~finite, piece.first + encoded.idx)
        for row in encoded.idx[~finite]:
            reasons[row] = "the model gives no number"
        return (_by_word(logits, encoded) if objective.of_words else logits)[finite]
