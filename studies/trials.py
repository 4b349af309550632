"""Trainings on rows held out of a task's training split: what the studies of learning rates and of ablations share.

A tenth of the training rows (1,000 at most, stratified) is held out; no validation split is read. sst2 and qqp have rows to spare: 8,000 to
train on and 8,000 to judge on. Those of sst2 are not used by studies/grid.py in any way.

A study varies a training in three ways. `rankwise.rank.defaults.replaced` gives it another `RankConfig`, `PruningRule` or controller.
`training_with` gives it other arguments of `Training`. `replaced_in` replaces attributes of a module or class, where no argument reaches.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rankwise.engine.training import Training
from rankwise.rank.config import RankConfig
from rankwise.run_folder import RunFolder
from rankwise.tasks import registry
from rankwise.tasks.encoding import Rows
from rankwise.tasks.load import load_split
from rankwise.tasks.objectives import OBJECTIVES
from rankwise.tasks.splits import stratified_split

LEFT, MANY = {"sst2": 22_000, "qqp": 0}, 8_000
"""Training rows, in a drawn order, that aren't used here (sst2's are studies/grid.py's), and how many are trained and judged on."""

Row = dict[str, Any]


def prune_at(tolerances: Mapping[float, float]) -> RankConfig:
    """Return a configuration that prunes by these tolerances, without a noise tolerance.

    Args:
        tolerances: share of the training steps → loss increase that is negligible then, as a share of the gain.
    """
    return RankConfig(prune_at=tolerances, noise_cap=0.0)


NEVER_PRUNED = prune_at({0.8: 0.0})


@contextmanager
def training_with(**arguments: Any) -> Iterator[None]:
    """Give every `Training` of this process other arguments, for a block of code."""
    with replaced_in(Training, __init__=partialmethod(Training.__init__, **arguments)):
        yield


@contextmanager
def replaced_in(owner: Any, **attributes: Any) -> Iterator[None]:
    """Replace attributes of a module or class for a block of code."""
    before = {name: getattr(owner, name) for name in attributes}
    for name, value in attributes.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def earlier(stored: Path) -> Path:
    """Return where results of earlier versions are, which today's code wouldn't give again."""
    return stored.parent / "earlier" / stored.name


def split(task: str, data: Path | None, work: Path, most: int | None = None) -> None:
    """Write a task's training rows without a held-out slice, and the slice.

    Args:
        task: its name.
        data: folder with one sub-folder of Parquet files a task.
        work: the files are `<work>/<task>/train.parquet` and `held_out.parquet`.
        most: training rows; three times as many judge, 8,000 at most.
    """
    rows, _ = load_split(registry.named(task), "train", data)
    if task in LEFT or most is not None:
        left, trained = np.random.default_rng(0).permutation(len(rows))[LEFT.get(task, 0) :], most or MANY
        kept, held_out = (
            rows.select(left[:trained]),
            rows.select(left[trained:][: min(3 * trained, MANY)]),
        )
    else:
        kept, held_out = stratified_split(
            rows, min(0.1, 1000 / len(rows)), OBJECTIVES[registry.named(task).problem]
        )
    (work / task).mkdir(parents=True, exist_ok=True)
    for name, part in (("train", kept), ("held_out", held_out)):
        pq.write_table(_table(part), work / task / f"{name}.parquet")


def _table(rows: Rows) -> pa.Table:
    columns = {"text": rows.text, "label": rows.labels}
    return pa.table(columns | ({"text_pair": rows.text_pair} if rows.text_pair else {}))


def run_missing(stored: Path, wanted: Sequence[Row], run: Callable[[Row], Row], jobs: int) -> None:
    """Run the trials that `stored` doesn't have, and store each as it ends.

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
            half = stored.with_suffix(".partial")
            names = dict.fromkeys(name for row in rows for name in row)
            pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), half)
            half.replace(stored)
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
    """Run `rankwise train` on one thread in a process of its own, with the recipe's other settings.

    Args:
        out: folder of the run, beside the files that `split` wrote.
        task: its name.
        method: as in a grid.
        settings: options of `rankwise train` by name, as `lr`, `epochs` and `seed`.
        program: what Python runs.

    Returns:
        What was measured on the held-out rows. Accuracy and loss are None where the loss was not a number: the rate is too high.

    Raises:
        SystemExit: the training ended in another way; if it was killed, that says nothing about the rate.
    """
    pair = ["--text-pair", "text_pair"] if registry.named(task).text_pair else []
    command = [sys.executable, *program, "train", str(out.parent / "train.parquet"), *pair]
    command += ["--validation", str(out.parent / "held_out.parquet"), "--method", method]
    command += [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    command += ["--threads", "1", "--out", str(out), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        if not re.search(r"Lower (--lr|lr=)", done.stderr):
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
