"""Which part of a model puts full fine-tuning ahead of adapters?

    python studies/parts.py --data ../shared/data/glue      # runs what is missing, stores as it goes, prints
    python studies/parts.py --show                          # prints what is stored

Full fine-tuning with parts of the model frozen, and adapters in all linear layers with and without the pooler, each with the recipe's
learning rate (1e-3 for adaptive when they were run on movies), judged on the rows of studies/trials.py: 877 of movies, with 1,280 to
train on, and 8,000 of sst2, with as many to train on. Stored as studies/parts.parquet, a row a trial.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rankwise.rank import defaults
from rankwise.runs import methods
from trials import NEVER_PRUNED, Row, run_missing, split, trial

STORED = Path(__file__).with_suffix(".parquet")
SEEDS = (0, 1)
LINEAR = "lora:rank=16,alpha=5.66,rslora=true,lr=1e-3,targets="
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "full fine-tuning": ("full", ()),
    "without the word embeddings": ("full", ("word_embeddings",)),
    "without embeddings, biases and norms": ("full", ("embeddings", "bias", "LayerNorm")),
    "without the pooler": ("full", ("pooler",)),
    "rank 16 in every linear layer but the pooler": (f"{LINEAR}query+key+value+dense", ("pooler",)),
    "rank 16 in every linear layer": (f"{LINEAR}all-linear", ()),
    "rank 8 on query and value": ("lora", ()),
    "adaptive, never cut": ("adaptive", ()),
    "adaptive": ("adaptive", ()),
}
"""Name → the method, and what is in the names of the parameters that it leaves alone."""
TASKS: dict[str, tuple[Row, tuple[str, ...]]] = {
    "movies": ({"limit-train": 1280}, tuple(VARIANTS)),
    "sst2": ({}, tuple(VARIANTS)[1:3]),
}
"""Task → its settings, and what is tried on it; sst2's full fine-tuning is in studies/schedules.parquet."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with one sub-folder of Parquet files a task")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), help="some of the tasks")
    parser.add_argument("--work", type=Path, default=Path("runs/parts"), help="where trials are kept")
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time, with one thread each")
    parser.add_argument("--show", action="store_true", help="print what is stored, run nothing")
    asked = parser.parse_args()
    if not asked.show:
        for task in asked.tasks:
            split(task, asked.data, asked.work)
        wanted = [
            {"task": task, "variant": variant, "seed": seed}
            for task in asked.tasks
            for seed in SEEDS
            for variant in TASKS[task][1]
        ]
        run_missing(STORED, wanted, partial(_trial, asked.work), asked.jobs)
    show(pq.read_table(STORED).to_pylist())


def _trial(work: Path, which: Row) -> Row:
    out = work / which["task"] / f"{list(VARIANTS).index(which['variant'])}-s{which['seed']}"
    method, _ = VARIANTS[which["variant"]]
    program = [str(Path(__file__)), "--as", which["variant"]]
    settings = TASKS[which["task"]][0] | {"seed": which["seed"], "schedule": "linear"}
    return which | trial(out, which["task"], method, settings, program)


def _freeze(parts: Sequence[str]) -> None:
    """Have every method leave the parameters alone that have one of these in their name."""
    for name, method in methods.METHODS.items():

        def prepare(model: Any, *given: Any, own: Any = method.prepare, **named: Any) -> None:
            own(model, *given, **named)
            for path, parameter in model.named_parameters():
                if any(part in path for part in parts) and not path.startswith("classifier"):
                    parameter.requires_grad_(False)

        methods.METHODS[name] = replace(method, prepare=prepare)


def show(rows: list[Row]) -> None:
    """Print means over seeds as Markdown."""
    print(
        "| task | what is trained | accuracy | loss at the best temperature | by seed |\n|---|---|---:|---:|---:|"
    )
    for task, variant in ((task, variant) for task in TASKS for variant in VARIANTS):
        found = [r for r in rows if (r["task"], r["variant"]) == (task, variant)]
        found.sort(key=lambda row: row["seed"])
        if found:
            accuracy, loss = (
                statistics.fmean(r[key] for r in found) for key in ("accuracy", "calibrated_loss")
            )
            by_seed = ", ".join(f"{100 * r['accuracy']:.1f}" for r in found)
            print(f"| {task} | {variant} | {100 * accuracy:.2f} | {loss:.4f} | {by_seed} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as"]:
        from rankwise.cli import main as rankwise

        _freeze(VARIANTS[sys.argv[2]][1])
        with defaults.replaced(config=NEVER_PRUNED) if "never cut" in sys.argv[2] else nullcontext():
            rankwise(sys.argv[3:])
    main()
