"""Why full fine-tuning is ahead on sst2: is it what the rank leaves out, or the embeddings, which adapters leave as they are?

    python studies/gap.py --data ../shared/data/glue      # runs what is missing, stores, prints
    python studies/gap.py --show                          # prints what is stored

Full fine-tuning with and without its embeddings, and ranks 16 and 64 in all linear layers, each with as many learning rates. Rows and
judging are those of studies/trials.py. Stored as studies/gap.parquet, a row a training.
"""

import argparse
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rankwise.runs.methods import Method, register
from trials import Row, run_missing, split, trial

STORED = Path(__file__).with_suffix(".parquet")
FROZEN = "full-without-embeddings"
RATES = {
    "full": (1e-4, 2e-4),
    FROZEN: (1e-4, 2e-4),
    "lora:rank=16,alpha=5.66,rslora=true,targets=all-linear": (7e-4, 1e-3),
    "lora:rank=64,alpha=5.66,rslora=true,targets=all-linear": (7e-4, 1e-3),
}
SEEDS, EPOCHS = (0, 1), 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with one sub-folder of Parquet files a task")
    parser.add_argument("--work", type=Path, default=Path("runs/gap"), help="where trials are kept")
    parser.add_argument("--tasks", nargs="*", default=["sst2"], help="tasks")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS, help="seeds")
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time, with one thread each")
    parser.add_argument("--show", action="store_true", help="print what is stored, run nothing")
    asked = parser.parse_args()
    if not asked.show:
        for task in asked.tasks:
            split(task, asked.data, asked.work)
        wanted: list[Row] = [
            {"task": task, "seed": seed, "method": method, "lr": lr}
            for seed in asked.seeds
            for task in asked.tasks
            for method, rates in RATES.items()
            for lr in rates
        ]
        run_missing(STORED, wanted, partial(_trial, asked.work), asked.jobs)
    show(pq.read_table(STORED).to_pylist())


def _trial(work: Path, which: Row) -> Row:
    name = which["method"].replace(":", "-").replace(",", "-").replace("=", "")
    out = work / which["task"] / f"{name}-{which['lr']:g}-s{which['seed']}"
    settings = {"lr": which["lr"], "epochs": EPOCHS, "seed": which["seed"]}
    return which | trial(out, which["task"], which["method"], settings, [str(Path(__file__)), "--as"])


def _full_without_embeddings(model: Any, *_: Any) -> None:
    model.requires_grad_(True)
    model.get_input_embeddings().requires_grad_(False)


def show(rows: list[Row]) -> None:
    """Markdown: of each method and rate the mean over seeds."""
    print(
        "| task | trained | rate | seeds | accuracy | loss at the best temperature |\n|---|---|---:|---:|---:|---:|"
    )
    for task, method, lr in dict.fromkeys((row["task"], row["method"], row["lr"]) for row in rows):
        found = [row for row in rows if (row["task"], row["method"], row["lr"]) == (task, method, lr)]
        accuracy, loss = (
            statistics.fmean(row[key] for row in found) for key in ("accuracy", "calibrated_loss")
        )
        print(f"| {task} | {method} | {lr:g} | {len(found)} | {100 * accuracy:.2f} | {loss:.4f} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as"]:
        from rankwise.cli import main as rankwise

        register(
            FROZEN, Method(label="Full fine-tuning without embeddings", prepare=_full_without_embeddings)
        )
        rankwise(sys.argv[2:])
    else:
        main()
