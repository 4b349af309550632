"""Does the rank that is found follow the amount of data, and should it? Adaptive and fixed ranks on a part of a task's training rows.

    python studies/data_size.py --data ../shared/data/glue     # runs what is missing, stores as it goes, prints
    python studies/data_size.py --show                         # prints what is stored

Runs are those of studies/grid.py, the two-phase schedule for all, with `--limit-train`: the same rows for every method and seed. They are
judged on the rows of that study, whose own results are with all of a task's training rows. Stored as studies/data_size.parquet,
a row a run.
"""

import argparse
import itertools
import statistics
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import grid
from grid import FIXED, Row
from rankwise.run_folder import run_folders

STORED = Path(__file__).with_suffix(".parquet")
TASKS, SIZES, SEEDS = ("qqp", "movies", "mnli"), (500, 1000, 2000), 3
METHODS = ("adaptive", FIXED[3], FIXED[6])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with one sub-folder of GLUE's Parquet files a task")
    parser.add_argument("--work", type=Path, default=Path("runs/data-size"), help="where runs are kept")
    parser.add_argument("--tasks", nargs="*", default=TASKS, help="some of the tasks")
    parser.add_argument("--sizes", nargs="*", type=int, default=SIZES, help="training rows")
    parser.add_argument("--methods", nargs="*", default=METHODS, help="some of the methods")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, with one thread each")
    parser.add_argument("--show", action="store_true", help="print what is stored, run nothing")
    asked = parser.parse_args()
    if not asked.show:
        if asked.data is None:
            parser.error("--data is needed to run anything")
        data = grid.prepare(asked.data, asked.work / "data")
        for method, task, size in itertools.product(asked.methods, asked.tasks, asked.sizes):
            known = {(r["task"], r["n_train"], r["method"], r["seed"]) for r in stored()}
            if not known.issuperset((task, size, method, seed) for seed in range(SEEDS)):
                limit = ("--limit-train", str(size), "--schedule", "two-phase", "--jobs", str(asked.jobs))
                grid.compare(asked.work / f"{size}", data, task, [method], SEEDS, *limit)
                store(asked.work)
    show(stored())


def stored() -> list[Row]:
    """Rows of the study so far."""
    return pq.read_table(STORED).to_pylist() if STORED.exists() else []


def store(work: Path) -> None:
    """Adds the finished runs under a folder to those that are stored."""
    found = [grid.summary(run) for size in work.glob("[0-9]*") for run in run_folders(size) if run.finished]
    rows = {(r["task"], r["n_train"], r["method"], r["seed"]): r for r in [*stored(), *found]}
    partial = STORED.with_suffix(".partial")
    pq.write_table(pa.Table.from_pylist(list(rows.values())), partial)
    partial.replace(STORED)


def show(rows: list[Row]) -> None:
    """Markdown: mean score, loss and size by task, rows and method, and by seed what adaptive differs by from each fixed rank."""
    print(
        "| task | rows | method | score | loss | parameters | adaptive − it, by seed |\n|---|---:|---|---:|---:|---:|---|"
    )
    for task, size, method in sorted({(r["task"], r["n_train"], r["method"]) for r in rows}):
        of = {(r["method"], r["seed"]): r for r in rows if (r["task"], r["n_train"]) == (task, size)}
        own = [of[method, seed] for m, seed in sorted(of) if m == method]
        score, loss, params = (
            statistics.fmean(r[key] for r in own) for key in ("score", "loss", "adapter_params")
        )
        pairs = [
            of["adaptive", r["seed"]]["score"] - r["score"] for r in own if ("adaptive", r["seed"]) in of
        ]
        by_seed = "" if method == "adaptive" else ", ".join(f"{100 * d:+.2f}" for d in pairs)
        print(
            f"| {task} | {size:,} | {method} | {100 * score:.2f} ({len(own)}) | {loss:.4f} | {params:,.0f} | {by_seed} |"
        )


if __name__ == "__main__":
    main()
