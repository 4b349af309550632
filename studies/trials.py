"""Trainings on rows held out of a task's training split: what the studies of learning rates and of ablations have in common.

A tenth of the training rows (1,000 at most, stratified) is held out; no validation split is read. sst2 and qqp have rows to spare, 8,000 to
train on and 8,000 to judge on; those of sst2 studies/grid.py sees neither way.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rankwise.rank import controller
from rankwise.run_folder import RunFolder
from rankwise.tasks import registry
from rankwise.tasks.encoding import Rows
from rankwise.tasks.load import load_split
from rankwise.tasks.objectives import OBJECTIVES
from rankwise.tasks.splits import stratified_split

LEFT, MANY = {"sst2": 22_000, "qqp": 0}, 8_000
"""Training rows, in a drawn order, that aren't touched here (sst2's are studies/grid.py's), and how many are trained and judged on."""

Row = dict[str, Any]


def cut_at(shares: dict[float, float]) -> None:
    """What is negligible at each cut of this process's trainings: these shares of the gain and no more, however little the rows tell."""
    controller.CUT_AT, controller.MOST = shares, 0.0


def earlier(stored: Path) -> Path:
    """Where the results of earlier versions are, which today's code wouldn't give again."""
    return stored.parent / "earlier" / stored.name


def split(task: str, data: Path | None, work: Path, most: int | None = None) -> None:
    """Writes the task's training rows without a held-out slice, and the slice; `most` of the former, and three times that of the latter."""
    rows, _ = load_split(registry.named(task), "train", data)
    if task in LEFT:
        left = np.random.default_rng(0).permutation(len(rows))[LEFT[task] :]
        kept, held_out = (rows.select(left[at : at + MANY]) for at in (0, MANY))
    else:
        kept, held_out = stratified_split(
            rows, min(0.1, 1000 / len(rows)), OBJECTIVES[registry.named(task).problem]
        )
    (work / task).mkdir(parents=True, exist_ok=True)
    for name, part in (("train", kept), ("held_out", held_out)):
        if most is not None:
            part = part.select(np.arange(min(len(part), most if part is kept else 3 * most)))
        pq.write_table(_table(part), work / task / f"{name}.parquet")


def _table(rows: Rows) -> pa.Table:
    columns = {"text": rows.text, "label": rows.labels}
    return pa.table(columns | ({"text_pair": rows.text_pair} if rows.text_pair else {}))


def run_missing(stored: Path, wanted: Sequence[Row], run: Callable[[Row], Row], jobs: int) -> None:
    """Runs the trials that `stored` doesn't have, and stores each as it comes.

    Args:
        stored: a Parquet file, a row a trial.
        wanted: what names each trial.
        run: what names a trial → its row, the name included.
        jobs: trials at a time.
    """
    rows = pq.read_table(stored).to_pylist() if stored.exists() else []
    missing = [w for w in wanted if not any(all(row.get(k) == v for k, v in w.items()) for row in rows)]
    lock = Lock()

    def one(which: Row) -> None:
        row = run(which)
        with lock:
            rows.append(row)
            partial, names = (
                stored.with_suffix(".partial"),
                dict.fromkeys(name for row in rows for name in row),
            )
            pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), partial)
            partial.replace(stored)
            print(f"{len(rows)}: {row}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, missing))


def trial(
    out: Path,
    task: str,
    method: str,
    settings: Mapping[str, float | str],
    program: Sequence[str] = ("-m", "rankwise"),
) -> Row:
    """`rankwise train` on one thread in a process of its own, with the recipe's other settings.

    Args:
        out: folder of the run, beside the files that `split` wrote.
        task: its name.
        method: as in a grid.
        settings: options of `rankwise train` by name, as `lr`, `epochs` and `seed`.
        program: what Python runs.

    Returns:
        What was measured on the rows held out; accuracy and loss None where the loss was not a number: the rate is too high.

    Raises:
        SystemExit: the training ended in any other way, killed for one: that says nothing about the rate.
    """
    pair = ["--text-pair", "text_pair"] if registry.named(task).text_pair else []
    command = [sys.executable, *program, "train", str(out.parent / "train.parquet"), *pair]
    command += ["--validation", str(out.parent / "held_out.parquet"), "--method", method]
    command += [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    command += ["--threads", "1", "--out", str(out), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        if "Lower --lr" not in done.stderr:
            raise SystemExit(f"{out} ended with exit code {done.returncode}: {done.stderr.strip()[-500:]}")
        return {"accuracy": None, "loss": None}
    result = json.loads(done.stdout)
    scores = result["scores"]["validation"]
    return {
        "accuracy": scores["accuracy"],
        "loss": scores["loss"],
        "calibrated_loss": _calibrated(out),
        "components": sum((result["rank"] or {}).values()),
        "ranks": json.dumps(result["rank"]),
        "adapter_params": result["adapter_params"],
        "n_train": result["n_train"],
        "n_held_out": result["n_validation"],
    }


def _calibrated(out: Path) -> float:
    table = RunFolder(out).read_predictions()
    labels, logits = (torch.tensor(table[name].to_pylist()) for name in ("label", "logits"))
    return OBJECTIVES["classification"].calibrated_losses(logits, labels).mean().item()
