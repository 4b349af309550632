"""When a prune costs least: the same size, cut after a quarter, half or more of the steps, against a training that is never pruned.

    python studies/when_to_prune.py --data ../shared/data/glue      # runs what is missing, stores, prints
    python studies/when_to_prune.py --show                          # prints what is stored

Rows and judging are those of studies/trials.py. Adaptive starts as the default does; at one check it is cut to a given share of its
parameters, whatever the evidence says, and isn't undone. Before that, the check notes what held-out rows lose at each smaller size.
The first trainings have what as many rows lose that were trained on, too. Stored as studies/when_to_prune.parquet, a row a training.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq

from rankwise.rank import defaults
from rankwise.rank.components import Basis
from rankwise.rank.config import PREFERRED
from rankwise.rank.controller import RankController
from rankwise.rank.evidence import LossIncrease
from rankwise.rank.pruning_rule import Order, ranks_without, smaller_sizes
from trials import Row, run_missing, split, trial

STORED = Path(__file__).with_suffix(".parquet")
TASKS, SEEDS, LR, EPOCHS = ("sst2", "qqp", "mnli"), (0,), 1e-3, 3
RANK_8 = "lora:rank=8,targets=all-linear"
CUTS: tuple[tuple[float, float], ...] = ((0.25, 0.25), (0.5, 0.25), (0.7, 0.25), (0.5, 0.125))
"""Share of the steps after which a training is cut, and share of its parameters that is left."""


class Cut(RankController):
    """A controller that cuts to a share of the parameters at its prune check."""

    share = 1.0
    noted: ClassVar[list[dict[str, Any]]] = []

    def _prune_by_size(self, bases: dict[str, Basis], order: Order, losses: Any, limit: float) -> None:
        gain = self._gain or 1.0
        for size in smaller_sizes(len(order)):
            ranks = ranks_without(bases, order[: len(order) - size])
            matrices = self.matrices(bases, ranks)
            held_out = LossIncrease.of(self.held_out.losses_with(matrices) - losses)
            Cut.noted.append(
                {
                    "params": self._after(ranks),
                    "held_out": [held_out.mean / gain, held_out.error / gain],
                }
            )
        removed = next(
            n
            for n in range(len(order))
            if self._after(ranks_without(bases, order[:n])) <= self.share * self.most
        )
        ranks = ranks_without(bases, order[:removed])
        increase = LossIncrease.of(self.held_out.losses_with(self.matrices(bases, ranks)) - losses)
        self._carry_out(self.decision("prune", True, increase, limit, ranks))

    def _after(self, ranks: Mapping[str, int]) -> int:
        return self._parameters({**self.ranks, **ranks})

    def undo(self) -> None:
        """Leave everything as it was cut."""
        self.before_prune, self.resizer.pruned = None, {}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with one sub-folder of Parquet files a task")
    parser.add_argument("--work", type=Path, default=Path("runs/when_to_prune"), help="where trials are kept")
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time, with one thread each")
    parser.add_argument("--tasks", nargs="*", default=TASKS, help="some of the tasks")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS, help="seeds")
    parser.add_argument("--show", action="store_true", help="print what is stored, run nothing")
    asked = parser.parse_args()
    if not asked.show:
        for task in asked.tasks:
            split(task, asked.data, asked.work)
        wanted: list[Row] = [
            {"task": task, "seed": seed, "method": method, "at": at, "share": share}
            for seed in asked.seeds
            for task in asked.tasks
            for method, at, share in (
                ("adaptive", None, None),
                (RANK_8, None, None),
                *(("adaptive", at, share) for at, share in CUTS),
            )
        ]
        run_missing(STORED, wanted, partial(_trial, asked.work), asked.jobs)
    show(pq.read_table(STORED).to_pylist())


def _trial(work: Path, which: Row) -> Row:
    at, share = which["at"], which["share"]
    out = work / which["task"] / f"{which['method'].partition(':')[0]}-{at}-{share}-s{which['seed']}"
    program = [str(Path(__file__)), "--as", f"{at}", f"{share}", str(out.with_suffix(".json"))]
    settings = {"lr": LR, "epochs": EPOCHS, "seed": which["seed"]}
    found = trial(out, which["task"], which["method"], settings, program)
    noted = out.with_suffix(".json")
    return which | found | {"sizes": noted.read_text() if noted.exists() else None}


def _run(at: str, share: str, noted: str, arguments: list[str]) -> None:
    """Be `rankwise` with these arguments, adaptive cut as asked; `None` is never."""
    from rankwise.cli import main as rankwise

    never = at == "None"
    config = replace(PREFERRED["accuracy"], prune_at={0.5 if never else float(at): 0.0}, least_rank=math.inf)
    Cut.share = 1.0 if never else float(share)
    with defaults.replaced(config=config, controller=RankController if never else Cut):
        try:
            rankwise(arguments)
        finally:
            if Cut.noted:
                Path(noted).write_text(json.dumps(Cut.noted))


def show(rows: list[Row]) -> None:
    """Markdown: accuracy, loss and size of each training; then what each size would have lost at the check."""
    print("| task | seed | trained | accuracy | loss at the best temperature | parameters |")
    print("|---|---:|---|---:|---:|---:|")
    for row in sorted(rows, key=lambda r: (r["task"], r["seed"], r["method"], r["at"] or 0, r["share"] or 0)):
        name = "rank 8 in all linear layers" if row["method"] == RANK_8 else "adaptive, never pruned"
        if row["at"]:
            name = f"adaptive, cut to {100 * row['share']:g} % after {100 * row['at']:g} % of the steps"
        print(
            f"| {row['task']} | {row['seed']} | {name} | {100 * row['accuracy']:.2f} | {row['calibrated_loss']:.4f} | "
            f"{row['adapter_params']:,} |"
        )
    print("\n| task | seed | at | parameters | % of the gain lost, held-out rows | rows trained on |")
    print("|---|---:|---:|---:|---:|---:|")
    for row in rows:
        for size in json.loads(row.get("sizes") or "[]"):
            cells = [_percent(size["held_out"]), _percent(size.get("trained_on"))]
            print(
                f"| {row['task']} | {row['seed']} | {100 * row['at']:g} % | {size['params']:,} | {' | '.join(cells)} |"
            )


def _percent(found: list[float] | None) -> str:
    return "" if found is None else f"{100 * found[0]:.2f} ± {100 * found[1]:.2f}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as"]:
        at, share, noted = sys.argv[2:5]
        _run(at, share, noted, sys.argv[5:])
    else:
        main()
