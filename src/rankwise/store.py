"""The run folder: the one place that knows file names. Whatever is killed at whatever moment, a reader finds the old file or the new one.

run.json                 what was asked for, what it was resolved to, versions, hardware
steps.jsonl              one line an optimizer step
ranks.jsonl              one line a rank decision: what was proposed, the evidence, what became of it
checkpoint-<n>/          the latest state of training; removed when the run ends well
predictions.parquet      idx, label, prediction, logits of the validation rows, labels in the form of their problem (see `problems`)
result.json              written last: its presence means "finished"
"""

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json as pj
import pyarrow.parquet as pq

from rankwise.errors import RankwiseError

RESULT = (
    *("task", "method", "seed", "model", "metric", "score", "scores", "n_train", "n_validation"),
    *("trainable_params", "total_params", "adapter_params"),
    *("train_seconds", "samples_per_second", "peak_rss_mb"),
)
"""What a result.json has at least, and a report counts on."""


LABEL_TYPES = (pa.int64(), pa.float32(), pa.list_(pa.float32()))
"""What predictions and labels are stored as: classes, numbers, and sets of labels as 0s and 1s."""


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _maybe_number(value: Any) -> bool:
    return value is None or _number(value)


_KINDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("task", "method", "model", "metric"), _text),
    **dict.fromkeys(("samples_per_second", "peak_rss_mb"), _maybe_number),
    "seed": lambda value: isinstance(value, int),
    "scores": lambda value: isinstance(value, dict) and all(isinstance(v, dict) for v in value.values()),
}
"""What an entry of `RESULT` may be; the others are finite numbers."""


def run_name(task: str, method: str, seed: int) -> str:
    """`sst2`, `lora:rank=4`, 0 → `sst2.lora-rank-4.s0`."""
    return f"{task}.{method_slug(method)}.s{seed}"


def method_slug(method: str) -> str:
    """`lora:rank=4` → `lora-rank-4`: a method as part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", method).strip("-")


class RunFolder:
    """One run on disk."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.log = self.path / "log.txt"
        self._run = self.path / "run.json"
        self._result = self.path / "result.json"
        self._steps = self.path / "steps.jsonl"
        self._ranks = self.path / "ranks.jsonl"
        self._predictions = self.path / "predictions.parquet"

    # ── What was asked for ──────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def has_run(self) -> bool:
        """Something was asked for here."""
        return self._run.is_file()

    @property
    def finished(self) -> bool:
        """The run ended well."""
        return self._result.is_file()

    @property
    def finished_at(self) -> int:
        """When the result was written, in nanoseconds of the file system's clock."""
        return self._result.stat().st_mtime_ns

    def write_request(self, requested: dict[str, Any], assigned: dict[str, Any] | None = None) -> None:
        """Makes the folder and says what to run there; what an earlier start recorded (facts to resume with) is kept.

        Args:
            requested: `to_json` of the RunConfig.
            assigned: what the grid decides for its runs (`threads`, `shared_machine`, `keep_model`).

        Raises:
            RankwiseError: the folder can't be written.
        """
        make_folder(self.path)
        known = self.read_run() if self.has_run else {}
        _write_json(self._run, {**known, "requested": requested, "assigned": assigned or {}})

    def read_run(self) -> dict[str, Any]:
        """run.json: `requested` and `assigned`; `resolved`, `facts`, `task`, `versions`, `hardware` once started.

        Raises:
            RankwiseError: it is missing or damaged.
        """
        return _read_json(self._run, ("requested",))

    def update_run_json(self, **entries: Any) -> None:
        """Sets entries of run.json."""
        _write_json(self._run, {**self.read_run(), **entries})

    # ── While it runs ───────────────────────────────────────────────────────────────────────────────────────────────────

    def append_steps(self, lines: list[dict[str, Any]]) -> None:
        """Adds lines to steps.jsonl."""
        _append(self._steps, lines)

    def append_ranks(self, lines: list[dict[str, Any]]) -> None:
        """Adds lines to ranks.jsonl."""
        _append(self._ranks, lines)

    def write_ranks(self, lines: list[dict[str, Any]]) -> None:
        """ranks.jsonl anew."""
        _write(self._ranks, "".join(json.dumps(line) + "\n" for line in lines).encode())

    def read_steps(self) -> list[dict[str, Any]]:
        """Every whole line of steps.jsonl; a last line cut short by a kill is left out.

        Raises:
            RankwiseError: another line is damaged.
        """
        return _read_lines(self._steps, "step")

    def read_ranks(self) -> list[dict[str, Any]]:
        """The same of ranks.jsonl: every rank decision."""
        return _read_lines(self._ranks, "decision")

    def read_curve(self, metric: str) -> pa.Table:
        """steps.jsonl as columns, read fast: step, loss, and `score` (null where the validation rows weren't evaluated).

        Args:
            metric: whose validation score.

        Raises:
            RankwiseError: a line other than a last one cut short is damaged.
        """
        lines = self._steps.read_bytes() if self._steps.is_file() else b""
        lines = lines[: lines.rfind(b"\n") + 1]
        scores = pa.struct([(metric, pa.float64())])
        schema = pa.schema([("step", pa.int64()), ("loss", pa.float64()), ("validation", scores)])
        if not lines:
            table = schema.empty_table()
        else:
            options = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
            try:
                table = pj.read_json(pa.BufferReader(lines), parse_options=options)
            except pa.ArrowException as error:
                raise damaged(self._steps, error) from None
            if table["step"].null_count:
                raise damaged(self._steps, "a line is no step")
        columns = table.flatten()
        return pa.table(
            {"step": columns["step"], "loss": columns["loss"], "score": columns[f"validation.{metric}"]}
        )

    def read_decisions(self) -> tuple[list[dict[str, Any]], int]:
        """The rank decisions of ranks.jsonl, and how many whole lines of it are none."""
        lines = self._ranks.read_bytes().split(b"\n")[:-1] if self._ranks.is_file() else []
        decisions = []
        for line in lines:
            try:
                decision = json.loads(line)
            except ValueError:
                continue
            if isinstance(decision, dict) and isinstance(decision.get("step"), int):
                decisions.append(decision)
        return decisions, len(lines) - len(decisions)

    def truncate_steps(self, step: int) -> None:
        """Forgets what was logged after `step`, so that a resumed run's logs read like an undisturbed one's."""
        for file, lines in ((self._steps, self.read_steps()), (self._ranks, self.read_ranks())):
            if file.is_file():
                kept = [line for line in lines if line["step"] <= step]
                _write(file, "".join(json.dumps(line) + "\n" for line in kept).encode())

    @property
    def checkpoint(self) -> Path | None:
        """The latest whole checkpoint."""
        found = {
            int(p.name.rpartition("-")[2]): p for p in self.path.glob("checkpoint-*") if p.name[11:].isdigit()
        }
        return found[max(found)] if found else None

    def replace_checkpoint(self, save: Callable[[Path], None]) -> None:
        """Puts a new checkpoint in the old one's place: written aside, flushed to disk, renamed, the old one then removed.

        Args:
            save: writes the state into the empty folder it is given.
        """
        old = self.checkpoint
        number = int(old.name.rpartition("-")[2]) + 1 if old else 1
        partial = self.path / "checkpoint-partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        save(partial)
        for file in partial.iterdir():
            _flush(file)
        partial.replace(self.path / f"checkpoint-{number}")
        _flush(self.path)
        if old:
            shutil.rmtree(old, ignore_errors=True)

    def remove_checkpoint(self) -> None:
        """The run has ended well; nothing is left to resume."""
        for folder in self.path.glob("checkpoint-*"):
            shutil.rmtree(folder, ignore_errors=True)

    # ── What it made ────────────────────────────────────────────────────────────────────────────────────────────────────

    def write_predictions(
        self, idx: np.ndarray, label: np.ndarray, prediction: np.ndarray, logits: np.ndarray
    ) -> None:
        """What paired tests need, a row a validation row: idx int64 [n], label and prediction in one form, logits float32 [n, outputs]."""
        columns = {"idx": idx, "label": label, "prediction": prediction, "logits": logits}
        table = pa.table({name: list(c) if c.ndim > 1 else c for name, c in columns.items()})
        partial = self._predictions.with_suffix(".partial")
        pq.write_table(table, partial)
        _flush(partial)
        partial.replace(self._predictions)

    def read_predictions(self) -> pa.Table:
        """The same table.

        Raises:
            RankwiseError: it is missing or damaged.
        """
        try:
            table = pq.read_table(self._predictions, columns=["idx", "label", "prediction", "logits"])
        except (OSError, pa.ArrowException) as error:
            raise damaged(self._predictions, error) from None
        kinds = {name: table[name].type for name in ("idx", "label", "prediction")}
        for name, kind in kinds.items():
            fits = (
                pa.types.is_integer(kind) if name == "idx" else kind in LABEL_TYPES and kind == kinds["label"]
            )
            if not fits or table[name].null_count:
                raise damaged(
                    self._predictions,
                    f"{name} holds something that is no {'row number' if name == 'idx' else 'label'}",
                )
        return table

    def write_result(self, result: dict[str, Any]) -> None:
        """Ends the run. Written last, atomically."""
        _write_json(self._result, result)

    def read_result(self) -> dict[str, Any]:
        """result.json.

        Raises:
            RankwiseError: it is missing or damaged.
        """
        result = _read_json(self._result, RESULT)
        odd = [name for name in RESULT if not _KINDS.get(name, _number)(result[name])]
        if odd:
            raise damaged(self._result, f"{odd[0]} is {result[odd[0]]!r:.40}")
        return result


def one_answer(predictions: pa.Table) -> bool:
    """Every row was given the same class though they differ (a table of `RunFolder.read_predictions`): nothing was learned."""
    labels, given = predictions["label"], predictions["prediction"]
    return pa.types.is_integer(labels.type) and len(given.unique()) == 1 < len(labels.unique())


def read_grid(out: Path) -> dict[str, Any]:
    """grid.json of a grid's folder; empty where there is none yet.

    Raises:
        RankwiseError: it is damaged.
    """
    file = out / "grid.json"
    return _read_json(file, remedy="Remove this file; the runs beside it stay.") if file.is_file() else {}


def write_grid(out: Path, document: dict[str, Any]) -> None:
    """Sets grid.json: what was asked for so far."""
    _write_json(out / "grid.json", document)


def run_folders(out: Path) -> list[RunFolder]:
    """Every run folder of a grid, finished or not, by name."""
    found = {path.parent for file in ("run.json", "result.json") for path in out.glob(f"*/{file}")}
    return [RunFolder(path) for path in sorted(found)]


def check_place(out: Path, folder: Path, kind: str) -> None:
    """Makes sure that files can be written to the folder that `out`, a file or folder, is or lies in; it needn't exist.

    Raises:
        RankwiseError: they can't.
    """
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise RankwiseError(
            f"{out} can't be written: {place} takes no files. Name another {kind} with --out."
        )


def check_folder(out: Path, source: Path, foreign: str) -> None:
    """Makes sure that what is made from an adapter may be written to a folder; writes nothing itself.

    Args:
        out: needn't exist; what was written there the same way before is replaced.
        source: the adapter's folder or file.
        foreign: name of a file that, with what is to be written beside it, would make a folder neither one thing nor the other.

    Raises:
        RankwiseError: it is the source itself, holds another run or what is foreign, or can't be written.
    """
    if out.exists() and out.samefile(source):
        raise RankwiseError(f"{out} holds the adapter itself. Name another folder with --out.")
    for name in (foreign, "result.json"):
        if (out / name).exists():
            what = "a run" if name == "result.json" else f"something else ({name})"
            raise RankwiseError(f"{out} holds {what}, which would be spoilt. Name another folder with --out.")
    check_place(out, out, "folder")


def make_folder(path: Path) -> None:
    """Makes a folder that can be written to.

    Raises:
        RankwiseError: it can't be.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RankwiseError(
            f"{path} can't be written: {error.strerror or error}. Give another folder with --out."
        ) from None


def damaged(file: Path, why: object, remedy: str = "Remove its folder to run it again.") -> RankwiseError:
    """The error for a file that isn't what was written there."""
    if not file.exists():
        return RankwiseError(f"{file} is missing. {remedy}")
    reason = (str(why).strip() or type(why).__name__).splitlines()[0]
    return RankwiseError(f"{file} is damaged ({reason}). {remedy}")


def _read_json(
    file: Path, keys: Sequence[str] = (), remedy: str = "Remove its folder to run it again."
) -> dict[str, Any]:
    """A JSON object that has all these keys."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(file, error, remedy) from None
    if not isinstance(document, dict):
        raise damaged(file, "not a JSON object", remedy)
    missing = [key for key in keys if key not in document]
    if missing:
        raise damaged(file, f"it lacks {', '.join(missing)}", remedy)
    return document


def _append(file: Path, lines: list[dict[str, Any]]) -> None:
    with file.open("a", encoding="utf-8") as opened:
        opened.writelines(json.dumps(line) + "\n" for line in lines)


def _read_lines(file: Path, what: str) -> list[dict[str, Any]]:
    """Lines of JSON that say their step."""
    if not file.is_file():
        return []
    entries = []
    for number, line in enumerate(file.read_bytes().split(b"\n")[:-1], start=1):
        try:
            entries.append(json.loads(line))
            entries[-1]["step"]
        except (ValueError, KeyError, TypeError):
            raise damaged(file, f"line {number} is no {what}") from None
    return entries


def _write_json(file: Path, document: dict[str, Any]) -> None:
    _write(file, (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())


def _write(file: Path, content: bytes) -> None:
    partial = file.with_name(f"{file.name}.partial")
    with partial.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    partial.replace(file)


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
