"""Memory and speed of full fine-tuning, fixed ranks and adaptive rank: runs in turn, on one machine.

    python studies/cost.py           # runs what is missing, stores, prints
    python studies/cost.py --show    # prints what is stored

The runs are those of `make compare` (3,000 rows of movies, two epochs, three seeds) and those of more methods:
`--work runs/compare` continues what that command left. Nothing else should use the machine meanwhile. Speed is rows trained on over the
seconds of training, checks included. Memory is the peak of tensor bytes. Stored as studies/cost.parquet, a row a run;
studies/figures/results_table.py takes its columns of memory and speed from there.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rankwise.run_folder import RunFolder, run_folders

STORED = Path(__file__).with_suffix(".parquet")
METHODS = (
    "full",
    "lora",
    "adaptive",
    "adaptive:prefer=size",
    "lora:rank=8,targets=all-linear",
    "lora:rank=16,targets=all-linear",
)
ROWS, EPOCHS, SEEDS = 3000, 2, 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/cost"), help="where runs are kept")
    parser.add_argument("--show", action="store_true", help="print what is stored, run nothing")
    asked = parser.parse_args()
    if asked.show:
        show(pq.read_table(STORED).to_pylist())
        return
    command = [sys.executable, "-m", "rankwise", "compare", "--tasks", "movies", "--methods", *METHODS]
    command += [
        "--seeds",
        str(SEEDS),
        "--epochs",
        str(EPOCHS),
        "--limit-train",
        str(ROWS),
        "--out",
        str(asked.work),
    ]
    subprocess.run(command, check=True)
    rows = [summary(run) for run in run_folders(asked.work) if run.finished]
    pq.write_table(pa.Table.from_pylist(rows), STORED)
    show(rows)


def summary(run: RunFolder) -> dict[str, Any]:
    """Return what is stored of a run."""
    result, known = run.read_result(), run.read_run()
    kept = ("task", "method", "seed", "n_train", "steps", "adapter_params", "train_seconds", "rank_seconds")
    epochs, hardware = known["resolved"]["train"]["epochs"], known["hardware"]
    return {
        **{key: result[key] for key in (*kept, "device", "dtype", "threads")},
        "rows_per_second": result["n_train"] * epochs / result["train_seconds"],
        "peak_memory_mb": result["peak_memory_mb"]["total"],
        "batch_size": known["resolved"]["train"]["batch_size"],
        "processor": hardware["processor"] if result["device"] == "cpu" else hardware["device"],
        "torch": known["versions"]["torch"],
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print memory and speed by method in Markdown."""
    print("| method | seed | parameters | peak MB | rows/s |\n|---|---:|---:|---:|---:|")
    for row in rows:
        print(
            f"| {row['method']} | {row['seed']} | {row['adapter_params']:,} | {row['peak_memory_mb']:,.0f} | {row['rows_per_second']:.0f} |"
        )


if __name__ == "__main__":
    main()
