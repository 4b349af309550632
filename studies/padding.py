"""Does training packed move scores? LoRA on movies and mrpc, five seeds, packed and padded to the longest of a batch.

    python studies/padding.py --data ../shared/data/glue      # runs what is missing, stores, prints
    python studies/padding.py --show                          # prints what is stored

Packed batches are drawn at random, padded ones grouped by length, as each path does by default; everything else is the same. Two runs
at a time with one thread each, 2 epochs. Stored as studies/padding.parquet, a row a run.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rankwise.report.stats import estimate, paired_t
from rankwise.run_folder import run_folders

STORED = Path(__file__).with_suffix(".parquet")
TASKS, PADDINGS, SEEDS, EPOCHS = ("movies", "mrpc"), ("packed", "longest"), 5, 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with one sub-folder of GLUE's Parquet files a task")
    parser.add_argument("--work", type=Path, default=Path("runs/padding"), help="where runs are kept")
    parser.add_argument("--show", action="store_true", help="print what is stored, run nothing")
    asked = parser.parse_args()
    if not asked.show:
        for padding in PADDINGS:
            command = [
                sys.executable,
                "-m",
                "rankwise",
                "compare",
                "--data",
                str(asked.data),
                "--tasks",
                *TASKS,
            ]
            command += [
                "--methods",
                "lora",
                "--seeds",
                str(SEEDS),
                "--epochs",
                str(EPOCHS),
                "--padding",
                padding,
            ]
            command += ["--jobs", "2", "--threads", "1", "--out", str(asked.work / padding)]
            subprocess.run(command, check=True)
        _store(asked.work)
    show(pq.read_table(STORED).to_pylist())


def _store(work: Path) -> None:
    rows = []
    for padding in PADDINGS:
        for run in run_folders(work / padding):
            result = run.read_result()
            kept = {key: result[key] for key in ("task", "seed", "score", "n_train", "n_validation")}
            rows.append({"padding": padding, **kept})
    partial = STORED.with_suffix(".partial")
    pq.write_table(pa.Table.from_pylist(rows), partial)
    partial.replace(STORED)


def show(rows: list[dict[str, Any]]) -> None:
    """Means with 95 % t intervals over seeds, and the paired difference's p."""
    for task in TASKS:
        scores = {
            padding: {r["seed"]: r["score"] for r in rows if (r["task"], r["padding"]) == (task, padding)}
            for padding in PADDINGS
        }
        for padding, found in scores.items():
            mean = estimate(list(found.values()))
            print(
                f"{task:7} {padding:8} {100 * mean.mean:.2f} ± {100 * (mean.half or 0.0):.2f}  n = {mean.n}"
            )
        print(f"{task:7} paired t over seeds: p = {paired_t(scores['packed'], scores['longest']):.2f}")


if __name__ == "__main__":
    main()
