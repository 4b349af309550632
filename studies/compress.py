"""How often does `rankwise compress` err, and how much smaller is what it makes? Finished adapters of the grid, compressed on as few rows
as somebody may have, with loss increases that are known from other rows.

    python studies/grid.py --data ../shared/data/glue --schedule two-phase --methods lora:rank=16,alpha=5.66,rslora=true,lr=2e-3 \\
        lora:rank=8,alpha=5.66,rslora=true,targets=all-linear,lr=1e-3
    python studies/compress.py --work runs/grid/two-phase/runs     # takes the adapters of these; stores as it goes, prints
    python studies/compress.py --show                         # prints what is stored

Of a task's validation rows 500 give the statistics, and up to 1,000 others the losses at `SIZES` sizes. Of these some are drawn, 100
times over. `rank.compress` sees those alone, its sizes rounded to the nearest that is measured. The loss increase of what it keeps is
taken from the rows that weren't drawn. More than 2 % of the gain, the tolerance of compress, is an error. For rank 16 on query and value
two other rules stand beside the current one: the one that it replaced (`decisions.at_their_word`), and held-out rows alone. Stored as
studies/compress.parquet, a row an adapter, number of rows drawn and rule.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from decisions import at_their_word
from rankwise.adapters import compress, predict
from rankwise.engine.compute import predict_logits
from rankwise.files import cache_folder
from rankwise.rank.components import Basis, NoOptimizer
from rankwise.rank.compress import compress as prune_to_smallest
from rankwise.rank.config import CONFIDENCE
from rankwise.rank.controller import RankController
from rankwise.rank.decision import Decision
from rankwise.rank.evidence import HeldOutTest
from rankwise.rank.pruning_rule import Order, ranks_without
from rankwise.rank.resize import Resizer
from rankwise.tasks import objectives
from rankwise.tasks.encoding import encode
from rankwise.tasks.objectives import OBJECTIVES
from trials import Row, run_missing

STORED = Path(__file__).with_suffix(".parquet")
TASKS, SEEDS = ("mnli", "movies", "mrpc", "sst2", "qnli", "qqp"), (0, 1)
NARROW, WIDE = "rank 16 on query and value", "rank 8 in all linear layers"
RUNS = {
    NARROW: "{task}.lora-rank-16-alpha-5-66-rslora-true-lr-2e-3.s{seed}",
    WIDE: "{task}.lora-rank-8-alpha-5-66-rslora-true-targets-all-linear-lr-1e-3.s{seed}",
}
STATISTICS, OTHERS, DRAWN, DRAWS, SIZES = 500, 1000, (100, 200, 400), 100, 26


def as_it_is(decision: Decision) -> bool:
    return decision.accepted


def rows_alone(decision: Decision) -> bool:
    """Return whether the upper bound of the measured loss increase is within the limit, whatever the statistics expect."""
    return decision.loss_increase + CONFIDENCE * decision.error <= decision.limit


RULES: dict[str, Callable[[Decision], bool]] = {
    "as it is": as_it_is,
    "statistics at their word": at_their_word,
    "rows alone": rows_alone,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/grid/two-phase/runs"), help="where grid.py keeps its runs"
    )
    parser.add_argument("--show", action="store_true", help="print what is stored, run nothing")
    asked = parser.parse_args()
    if not asked.show:
        wanted = [
            {"adapter": adapter, "task": task, "seed": seed, "drawn": drawn, "rule": rule}
            for adapter in RUNS
            for task in TASKS
            for seed in SEEDS
            for drawn in DRAWN
            for rule in (RULES if adapter == NARROW else ["as it is"])
        ]
        run_missing(STORED, wanted, lambda which: which | _compressed(asked.work, **which), jobs=1)
    show(pq.read_table(STORED).to_pylist())


def _compressed(work: Path, adapter: str, task: str, seed: int, drawn: int, rule: str) -> Row:
    known = _known(work / RUNS[adapter].format(task=task, seed=seed))
    tolerance = known.config.tolerance
    whole, rng = len(known.known_order), np.random.default_rng(seed)
    known.rule, kept, increases, points = RULES[rule], [], [], []
    for _ in range(DRAWS):
        rows = torch.zeros(len(known.labels), dtype=torch.bool)
        rows[torch.from_numpy(rng.choice(len(rows), drawn, replace=False))] = True
        kept.append(known.smallest(rows))
        loss, none, smaller = (known.losses_at(size, ~rows).mean().item() for size in (whole, 0, kept[-1]))
        increases.append((smaller - loss) / (none - loss))
        points.append(known.accuracy_at(whole, ~rows) - known.accuracy_at(kept[-1], ~rows))
    return {
        "left": statistics.median(kept),
        "of": whole,
        "loss_increase": statistics.fmean(increases),
        "too_much": statistics.fmean(x > tolerance for x in increases),
        "twice_too_much": statistics.fmean(x > 2 * tolerance for x in increases),
        "params": statistics.median(map(known.params_at, kept)),
        "of_params": known.params_at(whole),
        "points": statistics.fmean(points),
    }


class _Known(RankController):
    """An adapter whose logits at some sizes are known, compressed on some of the rows; nothing is resized."""

    def __init__(self, of: RankController, logits: Mapping[int, Tensor], labels: Tensor) -> None:
        self.layers, self.config, self.decisions, self.steps_taken = of.layers, of.config, [], 0
        self.known_bases, self.logits, self.labels = of.bases(), logits, labels
        self.known_order = of.order(self.known_bases)
        self.held_out, self.resizer = _KnownLosses(self), _NotedSize()
        self.rows = torch.zeros(0)
        self.rule: Callable[[Decision], bool] = as_it_is

    def smallest(self, rows: Tensor) -> int:
        """Return how many components `compress` keeps, seeing some of the rows."""
        self.rows, self.decisions = rows, []
        prune_to_smallest(self)
        return len(self.known_order) - self.resizer.removed

    def losses_at(self, components: int, rows: Tensor) -> Tensor:
        """Return losses of some of the rows with a number of components, or the nearest number that is known."""
        return OBJECTIVES["classification"].calibrated_losses(
            self.logits[nearest(components, self.logits)][rows], self.labels[rows]
        )

    def accuracy_at(self, components: int, rows: Tensor) -> float:
        """Return the accuracy on some of the rows, likewise."""
        logits = self.logits[nearest(components, self.logits)][rows]
        return (logits.argmax(1) == self.labels[rows]).float().mean().item()

    def params_at(self, components: int) -> int:
        """Return the entries of A and B with a number of components."""
        ranks = ranks_without(self.known_bases, self.known_order[: len(self.known_order) - components])
        return sum(
            ranks.get(path, layer.rank) * (layer.in_features + layer.out_features)
            for path, layer in self.layers.items()
        )

    def bases(self) -> dict[str, Basis]:
        return self.known_bases

    def order(self, bases: Any) -> Order:
        return self.known_order

    def matrices(self, bases: Any, ranks: Any) -> Any:
        """Return the number of components, in place of matrices."""
        return sum(ranks.values())

    def decision(self, *given: Any, **named: Any) -> Decision:
        decision = super().decision(*given, **named)
        return replace(decision, accepted=self.rule(decision))


class _KnownLosses(HeldOutTest):
    """Losses of some rows, where a number of components stands in place of matrices."""

    def __init__(self, known: _Known) -> None:
        self.known, self.rows_seen = known, 0

    def losses_with(self, matrices: Any) -> Tensor:
        size = matrices if isinstance(matrices, int) else len(self.known.known_order)
        return self.known.losses_at(size, self.known.rows)

    def losses_without_adapters(self) -> Tensor:
        return self.losses_with(0)


class _NotedSize(Resizer):
    """Notes how many components were to be removed, and resizes nothing."""

    def __init__(self) -> None:
        self.removed = 0

    def resize(self, changes: Mapping[str, tuple[int, int]], bases: Any, step: int) -> None:
        self.removed = sum(before - after for before, after in changes.values())


def nearest(size: int, sizes: Mapping[int, Any]) -> int:
    """Return the one of some sizes that is nearest to a size."""
    return min(sizes, key=lambda known: abs(known - size))


@lru_cache(1)
def _known(folder: Path) -> _Known:
    """Return an adapter with its logits on some validation rows at all `SIZES` sizes."""
    trained = predict.open_trained(folder)
    model, compute = trained.model.eval(), trained.compute
    rows, _ = predict.labelled_rows(trained)
    drawn = np.random.default_rng(0).permutation(len(rows))[: STATISTICS + OTHERS]
    encoded = encode(rows.select(drawn), trained.tokenizer, compute.max_length, cache_folder())
    seen, judged = (encoded.select(np.arange(len(drawn))[half]) for half in (slice(STATISTICS), slice(STATISTICS, None)))  # fmt: skip
    found: list[Tensor] = []

    def losses() -> Tensor:
        found.append(torch.from_numpy(predict_logits(model, judged, compute)))
        return found[-1][:, 0]

    controller = RankController(model, losses, 1, NoOptimizer())
    controller.statistics.sums = compress.collect_statistics(
        model, seen, compute, objectives.named(trained.task.problem), lambda done, of: None
    )
    bases = controller.bases()
    order = controller.order(bases)
    sizes = sorted({0, *np.geomspace(1, len(order), SIZES).round().astype(int).tolist()})
    for size in sizes:
        ranks = ranks_without(bases, order[: len(order) - size])
        if size:
            controller.held_out.losses_with(controller.matrices(bases, ranks))
        else:
            controller.held_out.losses_without_adapters()
    labels = torch.from_numpy(np.asarray(judged.labels))
    return _Known(controller, dict(zip(sizes, found, strict=True)), labels)


def show(rows: list[Row]) -> None:
    """Print Markdown: by rule and number of rows drawn, over adapters; then each adapter with the current rule."""
    measured = "components left | loss increase, mean | of more than 2 % | of more than 4 % | parameters left | points of accuracy |"
    print(f"| adapter | rule | held-out rows | {measured}\n|---|---|{'---:|' * 7}")
    for adapter in RUNS:
        for rule in RULES:
            for drawn in DRAWN:
                which = adapter, rule, drawn
                of = [row for row in rows if (row["adapter"], row["rule"], row["drawn"]) == which]
                if of:
                    print(f"| {adapter} | {rule} | {drawn} | {_measured(of)} |")
    print(f"\n| adapter | task, seed | held-out rows | {measured}\n|---|---|{'---:|' * 7}")
    for row in rows:
        if row["rule"] == "as it is":
            print(
                f"| {row['adapter']} | {row['task']}, {row['seed']} | {row['drawn']} | {_measured([row])} |"
            )


def _measured(rows: list[Row]) -> str:
    """Return means over adapters; parameters and accuracy where they were measured."""

    def mean(name: str) -> float:
        return statistics.fmean(row[name] for row in rows)

    shares = " | ".join(
        f"{100 * mean(name):.2f} %" for name in ("loss_increase", "too_much", "twice_too_much")
    )
    known = all(row["params"] is not None for row in rows)
    spared = f"{mean('params'):,.0f} | {-100 * mean('points'):+.2f}" if known else " | "
    return f"{mean('left'):.0f} of {mean('of'):.0f} | {shares} | {spared}"


if __name__ == "__main__":
    main()
