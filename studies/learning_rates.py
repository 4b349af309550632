"""The sweeps behind the learning rates of recipes/rankwise.toml and of the studies: as many trials for full fine-tuning as for LoRA at any
rank and scale, judged on rows held out of the training split.

    python studies/learning_rates.py --data ../shared/data/glue          # runs what is missing, stores, prints
    python studies/learning_rates.py --show                              # prints what is stored

Each trial is `rankwise train` in a process of its own, with the recipe's other settings. A tenth of the training rows (1,000 at most,
stratified) is held out; no validation split is read. sst2 has rows to spare: 8,000 to train on and 8,000 to judge on that studies/grid.py
sees neither way. Stored as studies/learning_rates.parquet, a row a trial.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from scipy.stats import spearmanr

from rankwise import tasks
from rankwise.data import Rows
from rankwise.losses import calibrated_losses
from rankwise.store import RunFolder, method_slug

HERE = Path(__file__).parent
STORED = HERE / "learning_rates.parquet"
Rates = dict[str, tuple[float, ...]]
WIDE: Rates = {"full": (2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4), "lora": (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)}
NEAR: Rates = {"full": (1e-4, 2e-4, 4e-4), "lora": (1e-3, 2e-3, 4e-3)}
RANKS: Rates = {
    "full": (5e-5, 1e-4, 2e-4),
    **{f"lora:rank={r},alpha=16": (1e-3, 2e-3, 4e-3) for r in (1, 4, 16, 64)},  # s = 16/r
    **{f"lora:rank={r},alpha={5.66 * r**0.5:.3g}": (1e-3, 2e-3, 4e-3) for r in (1, 64)},  # s = 5.66/√r
    "lora:rank=8,alpha=16,targets=all-linear": (5e-4, 1e-3, 2e-3),
    "adaptive": (5e-4, 1e-3, 2e-3),
}
"""Fixed ranks at two rules for the scale that agree at rank 8."""
SWEEPS: list[tuple[str, float, Rates, tuple[int, ...]]] = [
    ("movies", 3.0, WIDE, (0, 1)),
    ("movies", 2.0, NEAR, (0, 1)),
    ("sst2", 3.0, RANKS, (0,)),
    ("mnli", 3.0, RANKS, (0,)),
]
"""Task, epochs, the rates of each method, as many for one as for another, and seeds. `make compare` takes 2 epochs, the recipe 3."""
SST2_LEFT, SST2_ROWS = 22_000, 8_000
"""Rows of sst2 that are studies/grid.py's, in its order, and how many are trained and judged on here."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with one sub-folder of Parquet files a task")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/learning-rates"), help="where trials are kept"
    )
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time, with one thread each")
    parser.add_argument("--show", action="store_true", help="print what is stored, run nothing")
    asked = parser.parse_args()
    if not asked.show:
        _run(asked.data, asked.work, asked.jobs)
    _print(pq.read_table(STORED).to_pylist())


def _run(data: Path | None, work: Path, jobs: int) -> None:
    for task in dict.fromkeys(task for task, *_ in SWEEPS):
        _split(task, data, work)
    stored = pq.read_table(STORED).to_pylist() if STORED.exists() else []
    known = {(row["task"], row["epochs"], row["method"], row["lr"], row["seed"]) for row in stored}
    lock = Lock()

    def trial(which: tuple[str, float, str, float, int]) -> None:
        row = _trial(work, *which)
        with lock:
            stored.append(row)
            partial = STORED.with_suffix(".partial")
            pq.write_table(pa.Table.from_pylist(stored), partial)
            partial.replace(STORED)
            print(f"{len(stored)}: {row}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(trial, (which for which in _trials() if which not in known)))


def _trials() -> Iterator[tuple[str, float, str, float, int]]:
    for task, epochs, rates, seeds in SWEEPS:
        for seed in seeds:
            for pair in zip(*rates.values(), strict=True):
                for method, lr in zip(rates, pair, strict=True):
                    yield task, epochs, method, lr, seed


def _split(task: str, data: Path | None, work: Path) -> None:
    """Writes the task's training rows without a held-out slice, and the slice."""
    rows, _ = tasks.load_split(tasks.named(task), "train", data)
    if task == "sst2":
        left = np.random.default_rng(0).permutation(len(rows))[SST2_LEFT:]
        kept, held_out = (rows.select(left[at : at + SST2_ROWS]) for at in (0, SST2_ROWS))
    else:
        kept, held_out = tasks.stratified_split(rows, min(0.1, 1000 / len(rows)))
    (work / task).mkdir(parents=True, exist_ok=True)
    for name, part in (("train", kept), ("held_out", held_out)):
        pq.write_table(_table(part), work / task / f"{name}.parquet")


def _table(rows: Rows) -> pa.Table:
    columns = {"text": rows.text, "label": rows.labels}
    return pa.table(columns | ({"text_pair": rows.text_pair} if rows.text_pair else {}))


def _trial(work: Path, task: str, epochs: float, method: str, lr: float, seed: int) -> dict[str, Any]:
    folder, out = work / task, work / task / f"{method_slug(method)}-{lr:g}-{epochs:g}-epochs-s{seed}"
    row: dict[str, Any] = {"task": task, "epochs": epochs, "method": method, "lr": lr, "seed": seed}
    pair = ["--text-pair", "text_pair"] if tasks.named(task).text_pair else []
    command = [sys.executable, "-m", "rankwise", "train", str(folder / "train.parquet"), *pair]
    command += ["--validation", str(folder / "held_out.parquet"), "--method", method, "--lr", str(lr)]
    command += ["--epochs", str(epochs), "--seed", str(seed), "--threads", "1", "--out", str(out), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:  # a loss that is not a number ends a trial: the rate is too high
        return {**row, "accuracy": None, "loss": None}
    result = json.loads(done.stdout)
    scores = result["scores"]["validation"]
    return {
        **row,
        "accuracy": scores["accuracy"],
        "loss": scores["loss"],
        "calibrated_loss": _calibrated(out),
        "n_train": result["n_train"],
        "n_held_out": result["n_validation"],
    }


def _calibrated(trial: Path) -> float:
    table = RunFolder(trial).read_predictions()
    labels, logits = (torch.tensor(table[name].to_pylist()) for name in ("label", "logits"))
    return calibrated_losses(logits, labels).mean().item()


def _print(rows: list[dict[str, Any]]) -> None:
    """Means over seeds, a line a task, method and rate; the best held-out accuracy of each method is marked. Then how well a trial's loss,
    as it is and at the best temperature, tells its accuracy."""
    for task, epochs, sweep, _ in SWEEPS:
        for method, rates in sweep.items():
            means = {}
            for lr in rates:
                asked = (task, epochs, method, lr)
                found = [r for r in rows if (r["task"], r["epochs"], r["method"], r["lr"]) == asked]
                scores = [r["accuracy"] for r in found if r["accuracy"] is not None]
                losses = [r["loss"] for r in found if r["loss"] is not None]
                if found and len(scores) == len(found):
                    means[lr] = (sum(scores) / len(scores), sum(losses) / len(losses), len(found))
            best = max(means, key=lambda lr: means[lr][0], default=None)
            for lr, (accuracy, loss, n) in means.items():
                mark = "  ←" if lr == best else ""
                print(
                    f"{task:7} {epochs:g} epochs  {method:40} {lr:8.1e}  accuracy {accuracy:.4f}  loss {loss:.4f}  n = {n}{mark}"
                )
    for task in dict.fromkeys(task for task, *_ in SWEEPS):
        known = [r for r in rows if r["task"] == task and r.get("calibrated_loss") is not None]
        if len(known) > 2:
            accuracy, loss, calibrated = (
                np.array([r[name] for r in known], dtype=float)
                for name in ("accuracy", "loss", "calibrated_loss")
            )
            print(
                f"{task}: rank correlation with accuracy over {len(known)} trials: loss {spearmanr(loss, accuracy)[0]:+.2f}, "
                f"at the best temperature {spearmanr(calibrated, accuracy)[0]:+.2f}"
            )


if __name__ == "__main__":
    main()
