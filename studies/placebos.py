"""What helps: the rank pattern that adaptive finds, its size, or the path to it? Trainings from scratch with the rank pattern that the same
seed's adaptive training ended with, with that pattern shuffled over layers, and with rank 1 everywhere.

    python studies/placebos.py --data ../shared/data/glue      # runs what is missing, stores, prints
    python studies/placebos.py --show                          # prints what is stored

Rank patterns, rows, seeds, rates and judging are those of studies/ablations.py, variant "as it is", which has to be run before. A placebo
is an adaptive training whose ranks stay as they begin: the scaling alpha/r, the rate, the schedule, the rows and their order are the same.
Shuffling is among layers whose components have the same number of parameters, so that the size stays. Stored as studies/placebos.parquet,
a row a training.
"""

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow.parquet as pq
from torch import nn

import ablations
from rankwise.lora import inject
from rankwise.lora.scaling import ALPHA
from rankwise.rank import defaults
from rankwise.rank.controller import RankController
from trials import Row, replaced_in, run_missing, split, trial

STORED = Path(__file__).with_suffix(".parquet")
FOUND, SHUFFLED, ONE = "the map that was found", "that map, shuffled over layers", "rank 1 everywhere"
PLACEBOS = (FOUND, SHUFFLED, ONE)
"""Names as they are stored; a map is a rank pattern."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with one sub-folder of Parquet files a task")
    parser.add_argument("--work", type=Path, default=Path("runs/placebos"), help="where trials are kept")
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time, with one thread each")
    parser.add_argument("--tasks", nargs="*", default=ablations.TASKS, help="some of the tasks")
    parser.add_argument("--placebos", nargs="*", default=PLACEBOS, help="some of the placebos")
    parser.add_argument("--show", action="store_true", help="print what is stored, run nothing")
    asked = parser.parse_args()
    adaptive = [
        row
        for row in pq.read_table(ablations.STORED).to_pylist()
        if row["variant"] == "as it is" and row["rows"] is None and row["task"] in asked.tasks
    ]
    if not asked.show:
        for task in asked.tasks:
            split(task, asked.data, asked.work)
        wanted = [
            {"task": row["task"], "variant": placebo, "seed": row["seed"], "pattern": row["ranks"]}
            for row in adaptive
            for placebo in asked.placebos
        ]
        run_missing(STORED, wanted, partial(_trial, asked.work), asked.jobs)
    show(adaptive, pq.read_table(STORED).to_pylist())


def _trial(work: Path, which: Row) -> Row:
    """Run one placebo; its rank pattern is written beside its run, whose process reads it."""
    name = f"{PLACEBOS.index(which['variant'])}-s{which['seed']}-{crc32(which['pattern'].encode()):08x}"
    out = work / which["task"] / name  # a run with another pattern is another folder
    start = out.with_name(f"{name}.json")
    start.write_text(json.dumps(_begin(which["variant"], json.loads(which["pattern"]), which["seed"])))
    settings = {"lr": ablations.LR, "epochs": ablations.EPOCHS, "beta2": ablations.BETA2}
    settings |= {"schedule": ablations.SCHEDULE, "seed": which["seed"]}
    return which | trial(out, which["task"], "adaptive", settings, [__file__, "--with", str(start)])


def _begin(placebo: str, found: dict[str, int], seed: int) -> dict[str, Any]:
    """Return the arguments of `_kept`."""
    ranks = dict.fromkeys(found, 1) if placebo == ONE else found
    return {"ranks": ranks, "shuffle": seed if placebo == SHUFFLED else None}


class KeepsRanks(RankController):
    """Holds rows out as ever, and decides nothing."""

    def prune(self, tolerance: float) -> None:
        pass

    def grow(self) -> None:
        pass


@contextmanager
def _kept(ranks: dict[str, int], shuffle: int | None) -> Iterator[None]:
    """Have adaptive trainings start with these ranks and stay with them, for a block of code.

    Args:
        ranks: module path → rank.
        shuffle: seed by which ranks are shuffled; None leaves them.
    """
    insert = inject.insert

    def with_pattern(model: nn.Module, start: dict[str, int], scaling: dict[str, float], **more: Any) -> None:
        given = {path: ranks[path] for path in start}
        if shuffle is not None:
            alike = defaultdict(list)
            for path in start:
                alike[sum(model.get_submodule(path).weight.shape)].append(path)  # pyright: ignore[reportArgumentType, reportCallIssue]
            rng = np.random.default_rng(shuffle)
            for paths in alike.values():
                given |= {
                    path: ranks[other] for path, other in zip(paths, rng.permutation(paths), strict=True)
                }
        some = {path: r for path, r in given.items() if r}
        insert(model, some, {path: ALPHA / r for path, r in some.items()}, **more)

    with replaced_in(inject, insert=with_pattern), defaults.replaced(controller=KeepsRanks):
        yield


def show(adaptive: list[Row], placebos: list[Row]) -> None:
    """Print Markdown: means over seeds, and by seed what adaptive differs by."""
    own = {(row["task"], row["seed"]): row for row in adaptive}
    print(
        "| task | trained | accuracy | loss at the best temperature | parameters | adaptive − it, by seed | the same of losses |\n"
        "|---|---|---:|---:|---:|---|---|"
    )
    for task in dict.fromkeys(task for task, _ in own):
        for variant in ("as it is", *PLACEBOS):
            rows = [row for row in [*adaptive, *placebos] if (row["task"], row["variant"]) == (task, variant)]
            pairs = [(own[task, row["seed"]], row) for row in sorted(rows, key=lambda row: row["seed"])]
            if not pairs:
                continue
            accuracy, loss, size = (
                statistics.fmean(row[key] for _, row in pairs)
                for key in ("accuracy", "calibrated_loss", "adapter_params")
            )
            ahead = [f"{100 * (a['accuracy'] - row['accuracy']):+.2f}" for a, row in pairs]
            losses = [f"{a['calibrated_loss'] - row['calibrated_loss']:+.4f}" for a, row in pairs]
            by_seed = " | " if variant == "as it is" else f"{', '.join(ahead)} | {', '.join(losses)}"
            print(f"| {task} | {variant} | {100 * accuracy:.2f} | {loss:.4f} | {size:,.0f} | {by_seed} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--with"]:
        from rankwise.cli import main as rankwise

        with _kept(**json.loads(Path(sys.argv[2]).read_text())):
            rankwise(sys.argv[3:])
    main()
