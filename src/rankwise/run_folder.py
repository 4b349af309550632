"""The folder of one run: every read and write of a run's own files goes through here.

Files are replaced in one step. So a reader finds the old file or the new one, whenever a run is killed.

run.json                 the request, what it was resolved to, versions, hardware
run.yaml                 the same request as options, for `rankwise train --config`
steps.jsonl              one line an optimizer step
ranks.jsonl              one line a rank decision: the proposal, the evidence, the outcome
checkpoint-<n>/          the latest state of training, and the SHA-256 of its files; removed when the run ends well
predictions.parquet      idx, label, prediction, logits of the validation rows; labels in the form of their objective (`tasks.objectives`)
texts.json               what a language model wrote for a few prompts of the validation rows
result.json              written last: its presence means "finished"
"""

import contextlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rankwise import records
from rankwise.errors import RankwiseError
from rankwise.files import (
    RERUN,
    append_lines,
    damaged,
    flush,
    make_folder,
    naming,
    read_json,
    read_lines,
    replacing,
    step_line,
    whole_lines,
    write,
    write_json,
    write_sums,
    write_yaml,
)

RESULT = tuple(name for name, field in records.Result.model_fields.items() if field.is_required())
"""Entries that every result.json has. Reports rely on them."""
LABEL_TYPES = (pa.int64(), pa.float32(), pa.list_(pa.float32()))
"""Stored types of predictions and labels: classes, numbers, and lists: several labels as 0s and 1s, or each word's class, then −100."""


def _number_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def run_name(task: str, method: str, seed: int) -> str:
    """Return the name of a run's folder: `sst2`, `lora:rank=4`, 0 → `sst2.lora-rank-4.s0`."""
    return f"{task}.{method_slug(method)}.s{seed}"


def method_slug(method: str) -> str:
    """Return a method as part of a folder's name: `lora:rank=4` → `lora-rank-4`."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", method).strip("-")


class RunFolder:
    """One run on disk: its request, logs, checkpoint, predictions and result.

    Attributes:
        writes: whether this process writes it.
    """

    writes = True

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.log = self.path / "log.txt"
        self._run = self.path / "run.json"
        self._result = self.path / "result.json"
        self._steps = self.path / "steps.jsonl"
        self._ranks = self.path / "ranks.jsonl"
        self._predictions = self.path / "predictions.parquet"
        self._texts = self.path / "texts.json"

    # ── The request ───────────────────────────────────────────────────────────────────────────

    @property
    def has_run(self) -> bool:
        """Whether a run was requested here."""
        return self._run.is_file()

    @property
    def finished(self) -> bool:
        """Whether the run has a result."""
        return self._result.is_file()

    @property
    def finished_at(self) -> int:
        """Time at which the result was written, in nanoseconds of the file system's clock."""
        return self._result.stat().st_mtime_ns

    def write_request(self, requested: dict[str, Any], assigned: dict[str, Any] | None = None) -> None:
        """Make the folder and record what to run there. What an earlier start recorded is kept, so that the run can resume.

        Args:
            requested: `to_json` of the RunConfig.
            assigned: what a grid decides for its runs (`threads`, `shared_machine`, `keep_model`).

        Raises:
            RankwiseError: the folder can't be written.
        """
        make_folder(self.path)
        known = self.read_run() if self.has_run else {}
        write_json(self._run, {**known, "requested": requested, "assigned": assigned or {}})

    def write_options(self, options: dict[str, Any]) -> None:
        """Write run.yaml: the options that `rankwise train --config` takes to ask for this run again."""
        write_yaml(self.path / "run.yaml", "rankwise train --config run.yaml", options)

    def read_run(self) -> dict[str, Any]:
        """Read run.json: `requested` and `assigned`; `resolved`, `facts`, `task`, `versions`, `hardware` once started.

        Raises:
            RankwiseError: it is missing or damaged.
        """
        return _record(records.Run, self._run)

    def damaged_run(self, why: object) -> RankwiseError:
        """Return the error for a run.json that holds something else than a run."""
        return damaged(self._run, why)

    def update_run_json(self, **entries: Any) -> None:
        """Set entries of run.json."""
        write_json(self._run, {**self.read_run(), **entries})

    # ── Logs and checkpoint ───────────────────────────────────────────────────────────────────

    def append_steps(self, lines: list[dict[str, Any]]) -> None:
        """Add lines to steps.jsonl."""
        append_lines(self._steps, lines)

    def append_ranks(self, lines: list[dict[str, Any]]) -> None:
        """Add lines to ranks.jsonl."""
        append_lines(self._ranks, lines)

    def write_ranks(self, lines: list[dict[str, Any]]) -> None:
        """Replace ranks.jsonl."""
        write(self._ranks, "".join(json.dumps(line) + "\n" for line in lines).encode())

    def read_steps(self) -> list[dict[str, Any]]:
        """Read every whole line of steps.jsonl. A last line that a kill cut short is left out.

        Raises:
            RankwiseError: another line is damaged.
        """
        return read_lines(self._steps, "step")

    def read_ranks(self) -> list[dict[str, Any]]:
        """Read every rank decision of ranks.jsonl, in the same way."""
        decisions = read_lines(self._ranks, "decision")
        for number, decision in enumerate(decisions, start=1):
            if fault := records.fault(records.Decision, decision):
                raise damaged(self._ranks, f"line {number}: {fault}")
        return decisions

    def read_curve(self, metric: str) -> pa.Table:
        """Read steps.jsonl as columns: step, loss, and `score` (null at steps without an evaluation of the validation rows).

        Args:
            metric: name of the validation score.

        Raises:
            RankwiseError: a line is damaged, other than a last one that a kill cut short.
        """
        steps, losses, scores = [], [], []
        for number, line in enumerate(whole_lines(self._steps), start=1):
            entry = step_line(line)
            fault = "it is no step" if entry is None else records.fault(records.Step, entry)
            if entry is None or fault:
                raise damaged(self._steps, f"line {number}: {fault}")
            steps.append(entry["step"])
            losses.append(float(entry["loss"]))
            scores.append((entry.get("validation") or {}).get(metric))
        kinds = {"step": pa.int64(), "loss": pa.float64(), "score": pa.float64()}
        columns = zip(kinds.items(), (steps, losses, scores), strict=True)
        return pa.table({name: pa.array(values, kind) for (name, kind), values in columns})

    def read_decisions(self) -> tuple[list[dict[str, Any]], int]:
        """Read the rank decisions of ranks.jsonl; also return how many whole lines are damaged."""
        lines = whole_lines(self._ranks)
        entries = [entry for entry in map(step_line, lines) if entry is not None]
        decisions = [entry for entry in entries if records.fault(records.Decision, entry) is None]
        return decisions, len(lines) - len(decisions)

    def truncate_steps(self, step: int) -> None:
        """Remove what was logged after `step`, so that a resumed run's logs equal those of an uninterrupted one."""
        for file, lines in ((self._steps, self.read_steps()), (self._ranks, self.read_ranks())):
            if file.is_file():
                kept = [line for line in lines if line["step"] <= step]
                write(file, "".join(json.dumps(line) + "\n" for line in kept).encode())

    @property
    def checkpoints(self) -> list[Path]:
        """The complete checkpoints, the latest first. A kill while one took the place of another leaves two."""
        found = [
            path
            for path in self.path.glob("checkpoint-*")
            if re.fullmatch("[0-9]{1,18}", path.name[11:]) and path.is_dir()
        ]
        return sorted(found, key=_number_of, reverse=True)

    @property
    def checkpoint(self) -> Path | None:
        """The latest complete checkpoint; None if there is none."""
        return next(iter(self.checkpoints), None)

    def replace_checkpoint(self, save: Callable[[Path], None]) -> None:
        """Replace the checkpoint: the new one is written aside, flushed to disk and renamed, then the old one is removed.

        Args:
            save: writes the state into the empty folder that it is given.
        """
        found = self.checkpoints
        number = _number_of(found[0]) + 1 if found else 1
        partial = self.path / "checkpoint-partial"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            with naming(partial):
                partial.mkdir()
                save(partial)
                write_sums(partial)
                for file in partial.iterdir():
                    flush(file)
                partial.replace(self.path / f"checkpoint-{number}")
                flush(self.path)
        except BaseException:  # half a checkpoint only takes space
            shutil.rmtree(partial, ignore_errors=True)
            raise
        for old in found:
            shutil.rmtree(old, ignore_errors=True)

    def remove_checkpoint(self) -> None:
        """Remove every checkpoint, and what a kill left of a file: the run has a result, and nothing is left to resume."""
        for folder in self.path.glob("checkpoint-*"):
            shutil.rmtree(folder, ignore_errors=True)
        for file in self.path.glob("*.partial"):
            with contextlib.suppress(OSError):
                file.unlink()

    def forget_request(self) -> None:
        """Remove run.json, so that a run without a checkpoint begins anew and chooses anew."""
        self._run.unlink(missing_ok=True)

    def remove_unstarted(self) -> None:
        """Remove the folder, if it holds nothing but a request and logs without a step; otherwise it stays as it is."""
        begun = {self._run.name, self._steps.name, self._ranks.name, "run.yaml", ".lock"}
        with contextlib.suppress(OSError):
            held = list(self.path.iterdir())
            logged = self._steps.is_file() and self._steps.stat().st_size > 0
            if logged or any(
                path.name.removesuffix(".partial") not in begun or path.is_dir() for path in held
            ):
                return
            for path in held:
                path.unlink()
            self.path.rmdir()

    # ── Predictions and result ────────────────────────────────────────────────────────────────

    def write_predictions(
        self, idx: np.ndarray, label: np.ndarray, prediction: np.ndarray, logits: np.ndarray
    ) -> None:
        """Write predictions.parquet, which paired tests read.

        Args:
            idx: int64 [n], of the validation rows.
            label: [n], [n, outputs] or [n, words], in the objective's form.
            prediction: in the same form.
            logits: float32 [n, outputs], or [n, words, outputs] with NaN behind a row's last word, of which one list is stored.
        """
        if logits.ndim == 3:
            label, prediction = label.astype(np.float32), prediction.astype(np.float32)
            lists = [row[~np.isnan(row).all(axis=1)].ravel() for row in logits]
            logits = np.empty(len(lists), dtype=object)
            logits[:] = lists
        columns = {"idx": idx, "label": label, "prediction": prediction, "logits": logits}
        table = pa.table({name: list(c) if c.ndim > 1 else c for name, c in columns.items()})
        with replacing(self._predictions) as partial:
            pq.write_table(table, partial, write_page_checksum=True)  # a flipped bit is no other prediction

    def read_predictions(self) -> pa.Table:
        """Read predictions.parquet.

        Raises:
            RankwiseError: it is missing or damaged.
        """
        names = ["idx", "label", "prediction", "logits"]
        # a folder would be read as a data set
        if self._predictions.exists() and not self._predictions.is_file():
            raise damaged(self._predictions, "not a file")
        try:
            table = pq.read_table(self._predictions, columns=names, page_checksum_verification=True)
            fault = _odd_column(table)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise damaged(self._predictions, error) from None
        if fault:
            raise damaged(self._predictions, fault)
        return table

    def write_texts(self, texts: list[dict[str, Any]]) -> None:
        """Write texts.json: for each prompt its row (`idx`), `prompt`, `references` and the `text` that the model wrote."""
        write_json(self._texts, {"texts": texts})

    def read_texts(self) -> list[dict[str, Any]]:
        """Read texts.json; empty where a run wrote none.

        Raises:
            RankwiseError: it is damaged.
        """
        return _record(records.Texts, self._texts)["texts"] if self._texts.is_file() else []

    def write_result(self, result: dict[str, Any]) -> None:
        """Write result.json, which ends the run."""
        write_json(self._result, result)

    def read_result(self) -> dict[str, Any]:
        """Read result.json.

        Raises:
            RankwiseError: it is missing or damaged.
        """
        return _record(records.Result, self._result)


class FollowedRun(RunFolder):
    """The folder of a run in several processes, for all but the first: they read it, and writing does nothing."""

    writes = False

    def _nothing(self, *args: Any, **kwargs: Any) -> None:
        """Leave it to the first process."""

    write_request = write_options = update_run_json = append_steps = append_ranks = write_ranks = _nothing
    truncate_steps = replace_checkpoint = remove_checkpoint = forget_request = remove_unstarted = _nothing
    write_predictions = write_texts = write_result = _nothing


def _record(kind: type[records.Record], file: Path, remedy: str = RERUN) -> dict[str, Any]:
    """Read a file that must hold a record of this kind, other entries included.

    Raises:
        RankwiseError: it is missing or damaged.
    """
    document = read_json(file, remedy)
    fault = records.fault(kind, document)
    if fault:
        raise damaged(file, fault, remedy)
    return document


def _odd_column(table: pa.Table) -> str | None:
    """Return what is wrong with a column of predictions; None where all have their types."""
    columns = {name: table[name] for name in table.column_names}
    missing = [name for name in ("idx", "label", "prediction") if name not in columns]
    if missing:
        return f"it lacks {', '.join(missing)}"
    kind = columns["label"].type
    if not pa.types.is_integer(columns["idx"].type) or columns["idx"].null_count:
        return "idx holds something that is no row number"
    for name in ("label", "prediction"):
        column = columns[name]
        if kind not in LABEL_TYPES or column.type != kind or column.null_count or not _finite(column):
            return f"{name} holds something that is no label"
    if pa.types.is_list(kind) and len(table):
        lengths = {
            length
            for name in ("label", "prediction")
            for length in _lists(columns[name]).value_lengths().to_pylist()
        }
        if len(lengths) > 1:
            return "its rows differ in their number of labels"
    return None


def _lists(column: pa.ChunkedArray) -> pa.ListArray:
    return pa.concat_arrays(column.chunks)


def _finite(column: pa.ChunkedArray) -> bool:
    """Return whether a column of labels holds finite numbers only."""
    if not len(column):
        return True
    values = _lists(column).flatten() if pa.types.is_list(column.type) else column
    numbers = values.to_numpy(zero_copy_only=False) if isinstance(values, pa.Array) else values.to_numpy()
    return not values.null_count and bool(np.isfinite(numbers).all())


def one_answer(predictions: pa.Table) -> bool:
    """Return whether every row got the same class though the labels differ: then nothing was learned.

    Args:
        predictions: from `RunFolder.read_predictions`.
    """
    labels, given = predictions["label"], predictions["prediction"]
    return pa.types.is_integer(labels.type) and len(given.unique()) == 1 < len(labels.unique())


def read_grid(out: Path) -> dict[str, Any]:
    """Read grid.json of a grid's folder; empty if there is none yet.

    Raises:
        RankwiseError: it is damaged.
    """
    file = out / "grid.json"
    return _record(records.Grid, file, "Remove this file; the runs beside it stay.") if file.is_file() else {}


def write_grid(out: Path, document: dict[str, Any]) -> None:
    """Write grid.json: what was requested so far."""
    write_json(out / "grid.json", document)


def run_folders(out: Path) -> list[RunFolder]:
    """Return every run folder of a grid, finished or not, by name."""
    found = {path.parent for file in ("run.json", "result.json") for path in out.glob(f"*/{file}")}
    return [RunFolder(path) for path in sorted(found)]
