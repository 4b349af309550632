"""What pruning costs, by how the learning rate falls: with what is left of it after the last prune, layers learn again what they lost.

    python studies/schedules.py --data ../shared/data/glue      # runs what is missing, stores, prints
    python studies/schedules.py --show                          # prints what is stored

Rows and judging are those of studies/trials.py: sst2 with 8,000 rows to train on and 8,000 to judge on, mnli with 832 to judge on. Each
trial is `rankwise train` in a process of its own. Stored as studies/schedules.parquet, a row a trial.
"""

import argparse
import statistics
import sys
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from rankwise.rank import defaults
from rankwise.run_folder import method_slug
from trials import NEVER_PRUNED, Row, prune_at, run_missing, split, trial

STORED = Path(__file__).with_suffix(".parquet")
TASKS, SEEDS = ("sst2", "mnli"), (0, 1)
TOLERANCES = ((0.0, 0.0), (0.002, 0.02), (0.002, 0.1), (0.02, 0.1))
"""Half-way and at four fifths of the steps, as shares of the gain; the first never prunes."""
FIXED = {
    "lora:rank=8,alpha=5.66,rslora=true": 2e-3,
    "lora:rank=64,alpha=5.66,rslora=true": 2e-3,
    "full": 1e-4,
}
"""Methods whose ranks don't change, and their learning rates: what the schedule does without any pruning."""
ADAPTIVE_LR = 1.4e-3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with one sub-folder of Parquet files a task")
    parser.add_argument("--work", type=Path, default=Path("runs/schedules"), help="where trials are kept")
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time, with one thread each")
    parser.add_argument("--tasks", nargs="*", default=TASKS, help="some of the tasks")
    parser.add_argument("--show", action="store_true", help="print what is stored, run nothing")
    asked = parser.parse_args()
    if not asked.show:
        for task in asked.tasks:
            split(task, asked.data, asked.work)
        run_missing(STORED, _trials(asked.tasks), partial(_trial, asked.work), asked.jobs)
    _print(pq.read_table(STORED).to_pylist())


def _trials(tasks: list[str]) -> list[Row]:
    methods = [("adaptive", ADAPTIVE_LR, *tolerances) for tolerances in TOLERANCES]
    methods += [(method, lr, None, None) for method, lr in FIXED.items()]
    return [
        {"task": task, "method": method, "lr": lr, "half_way": half_way, "late": late, "schedule": schedule, "seed": seed}
        for task in tasks
        for method, lr, half_way, late in methods
        for schedule in ("linear", "two-phase")
        for seed in SEEDS
    ]  # fmt: skip


def _trial(work: Path, which: Row) -> Row:
    given = [] if which["late"] is None else [str(which["half_way"]), str(which["late"])]
    name = "-".join([method_slug(which["method"]), *given, which["schedule"], f"s{which['seed']}"])
    settings = {name: which[name] for name in ("lr", "schedule", "seed")}
    program = [str(Path(__file__)), "--prune", *given] if given else ("-m", "rankwise")
    return which | trial(work / which["task"] / name, which["task"], which["method"], settings, program)


def _print(rows: list[Row]) -> None:
    """Print Markdown: loss at the best temperature, seed by seed, and means."""
    print(
        "| task | method | tolerance | schedule | accuracy | loss | mean of both | parameters |\n"
        "|---|---|---:|---|---:|---:|---:|---:|"
    )
    keys = dict.fromkeys((r["task"], r["method"], r["half_way"], r["late"], r["schedule"]) for r in rows)
    for task, method, half_way, late, schedule in keys:
        found = [
            r
            for r in rows
            if (r["task"], r["method"], r["half_way"], r["late"], r["schedule"])
            == (task, method, half_way, late, schedule)
        ]
        found.sort(key=lambda r: r["seed"])
        tolerance = f"{100 * half_way:g} and {100 * late:g} %" if late else "never pruned"
        tolerance = "" if late is None else tolerance
        accuracy = ", ".join(f"{100 * r['accuracy']:.2f}" for r in found)
        loss = ", ".join(f"{r['calibrated_loss']:.4f}" for r in found)
        mean, mean_loss, size = (
            statistics.fmean(r[name] for r in found)
            for name in ("accuracy", "calibrated_loss", "adapter_params")
        )
        means = f"{100 * mean:.2f}, {mean_loss:.4f} | {size:,.0f}"
        print(f"| {task} | {method} | {tolerance} | {schedule} | {accuracy} | {loss} | {means} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--prune"]:
        from rankwise.cli import main as rankwise

        half_way, late = map(float, sys.argv[2:4])
        config = prune_at({0.5: half_way, 0.8: late}) if late else NEVER_PRUNED
        with defaults.replaced(config=config):
            rankwise(sys.argv[4:])
    main()
