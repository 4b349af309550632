"""What adaptive rank loses against a fixed rank before its prune, by holding rows out, and by the prune itself, on few rows.

    python studies/what_costs.py --data ../shared/data/glue      # runs what is missing, stores, prints
    python studies/what_costs.py --show                          # prints what is stored

Few rows are trained on and many others judge, so that differences are the method's more than the judge's (studies/trials.py). All have
the same schedule. `never` is adaptive that is never pruned; `never, no catching up` doesn't train more often on the rows that were held
out; `cut` is cut half-way to a quarter of its parameters, half of rank 8's, whatever the evidence says. Stored as
studies/what_costs.parquet, a row a training.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rankwise.engine.batch_schedule import BatchSchedule
from rankwise.rank import defaults
from rankwise.rank.config import PREFERRED
from rankwise.rank.controller import RankController
from rankwise.report.stats import estimate
from trials import Row, replaced_in, run_missing, split, trial
from when_to_prune import Cut

STORED = Path(__file__).with_suffix(".parquet")
FIXED = tuple(f"lora:rank={r},alpha=5.66,rslora=true,targets=all-linear" for r in (4, 8, 16))
NEVER, NO_CATCHING_UP, CUT = "never", "never, no catching up", "cut"
CUT_GENTLY = "cut, scale by the root of the rank"
METHODS = (FIXED[1], NEVER, CUT, CUT_GENTLY, NO_CATCHING_UP, FIXED[0], FIXED[2])
TASKS, SEEDS, LR, EPOCHS = ("sst2", "qqp", "qnli", "movies"), (0, 1, 2, 3), 1e-3, 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with one sub-folder of Parquet files a task")
    parser.add_argument("--work", type=Path, default=Path("runs/what_costs"), help="where trials are kept")
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time, with one thread each")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS, help="seeds")
    parser.add_argument("--tasks", nargs="*", default=TASKS, help="tasks")
    parser.add_argument("--rows", type=int, default=2_000, help="training rows")
    parser.add_argument("--methods", nargs="*", default=METHODS, help="some of the methods")
    parser.add_argument("--show", action="store_true", help="print what is stored, run nothing")
    asked = parser.parse_args()
    if not asked.show:
        work = asked.work / str(asked.rows)
        for task in asked.tasks:
            split(task, asked.data, work, asked.rows)
        wanted: list[Row] = [
            {"task": task, "seed": seed, "method": method, "rows": asked.rows}
            for seed in asked.seeds
            for method in asked.methods
            for task in asked.tasks
        ]
        run_missing(STORED, wanted, partial(_trial, work), asked.jobs)
    show(pq.read_table(STORED).to_pylist())


def _trial(work: Path, which: Row) -> Row:
    fixed = which["method"] in FIXED
    slug = "".join(c if c.isalnum() else "-" for c in which["method"])
    out = work / which["task"] / f"{slug}-s{which['seed']}"
    settings = {"lr": LR, "epochs": EPOCHS, "seed": which["seed"], "schedule": "two-phase"}
    program = ["-m", "rankwise"] if fixed else [str(Path(__file__)), "--as", which["method"]]
    return which | trial(out, which["task"], which["method"] if fixed else "adaptive", settings, program)


@contextmanager
def _adaptive(which: str) -> Iterator[None]:
    """Have adaptive trained as a method of this study says, for a block of code."""
    config = replace(PREFERRED["accuracy"], prune_at={0.5: 0.0}, least_rank=math.inf)
    Cut.share = 0.25
    if which == CUT_GENTLY:
        config = replace(config, scaling_exponent=0.5)
    changes = {"batch": _without_catching_up} if which == NO_CATCHING_UP else {}
    with (
        defaults.replaced(config=config, controller=Cut if which in (CUT, CUT_GENTLY) else RankController),
        replaced_in(BatchSchedule, **changes),
    ):
        yield


_batch = BatchSchedule.batch


def _without_catching_up(schedule: BatchSchedule, step: int, *, released: int | None = 0) -> Any:
    held_out = released is None or step < released
    return _batch(schedule, step, released=None if held_out else 0)


def show(rows: list[Row]) -> None:
    """Markdown, for each number of training rows: each method's means; then its difference from rank 8, paired by task and seed."""
    for n in sorted({row["rows"] for row in rows}):
        print(f"\n{n:,} rows are trained on:\n")
        _show([row for row in rows if row["rows"] == n])


def _show(rows: list[Row]) -> None:
    print(
        "| task | method | seeds | accuracy | loss at the best temperature | parameters |\n|---|---|---:|---:|---:|---:|"
    )
    for task in TASKS:
        for method in METHODS:
            found = [row for row in rows if (row["task"], row["method"]) == (task, method)]
            if found:
                accuracy, loss, size = (
                    statistics.fmean(row[key] for row in found)
                    for key in ("accuracy", "calibrated_loss", "adapter_params")
                )
                print(
                    f"| {task} | {method} | {len(found)} | {100 * accuracy:.2f} | {loss:.4f} | {size:,.0f} |"
                )
    print("\n| method − rank 8 in all linear layers | pairs | accuracy | loss |\n|---|---:|---:|---:|")
    known = {(row["task"], row["seed"], row["method"]): row for row in rows}
    for method in METHODS:
        pairs = [
            (row, known[task, seed, FIXED[1]])
            for (task, seed, name), row in known.items()
            if name == method != FIXED[1] and (task, seed, FIXED[1]) in known
        ]
        if len(pairs) > 1:
            cells = [
                _signed(estimate([ours[key] - theirs[key] for ours, theirs in pairs]), factor, digits)
                for key, factor, digits in (("accuracy", 100.0, 2), ("calibrated_loss", 1.0, 4))
            ]
            print(f"| {method} | {len(pairs)} | {' | '.join(cells)} |")


def _signed(found: Any, factor: float, digits: int) -> str:
    return f"{factor * found.mean:+.{digits}f} ± {factor * (found.half or 0.0):.{digits}f}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as"]:
        from rankwise.cli import main as rankwise

        with _adaptive(sys.argv[2]):
            rankwise(sys.argv[3:])
    else:
        main()
