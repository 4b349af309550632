"""How often does `rankwise compress` err, and how much smaller is what it makes? Finished adapters of the grid, compressed on as few rows
as somebody may have, whose cuts do harm that is known from other rows.

    python studies/grid.py --data ../shared/data/glue --schedule knee --methods lora:rank=16,alpha=5.66,rslora=true,lr=2e-3 \\
        lora:rank=8,alpha=5.66,rslora=true,targets=all-linear,lr=1e-3
    python studies/compress.py --work runs/grid/knee/runs     # takes the adapters of these; stores as it goes, prints
    python studies/compress.py --show                         # prints what is stored

Of a task's validation rows 500 give the statistics, and up to 1,000 others the losses at `SIZES` sizes. Of these some are drawn, 100
times over, and `RankController.compress` sees those alone, its sizes rounded to the next that is measured; the harm of what it keeps is
taken from the rows that weren't drawn. More than 2 % of the gain, which is what compress counts as negligible, is an error. Beside the
rule as it is stand, for rank 16 on query and value, the one that it replaced (`decisions.at_their_word`) and held-out rows alone. Stored
as studies/compress.parquet, a row an adapter, number of rows drawn and rule.
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
from rankwise.rank import controller as rank
from rankwise.rank.components import NoOptimizer
from rankwise.rank.controller import Decision, RankController
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
    """Whether the upper bound of what was seen is negligible, whatever the statistics expect."""
    return decision.difference + rank.SURE * decision.error <= decision.limit


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
        "--work", type=Path, default=Path("runs/grid/knee/runs"), help="where grid.py keeps its runs"
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
    whole, rng = len(known.known_order), np.random.default_rng(seed)
    known.rule, kept, harms, points = RULES[rule], [], [], []
    for _ in range(DRAWS):
        rows = torch.zeros(len(known.labels), dtype=torch.bool)
        rows[torch.from_numpy(rng.choice(len(rows), drawn, replace=False))] = True
        kept.append(known.smallest(rows))
        loss, none, smaller = (known.losses_at(size, ~rows).mean().item() for size in (whole, 0, kept[-1]))
        harms.append((smaller - loss) / (none - loss))
        points.append(known.accuracy_at(whole, ~rows) - known.accuracy_at(kept[-1], ~rows))
    return {
        "left": statistics.median(kept),
        "of": whole,
        "harm": statistics.fmean(harms),
        "too_much": statistics.fmean(harm > rank.SHARE for harm in harms),
        "twice_too_much": statistics.fmean(harm > 2 * rank.SHARE for harm in harms),
        "params": statistics.median(map(known.params_at, kept)),
        "of_params": known.params_at(whole),
        "points": statistics.fmean(points),
    }


class _Known(RankController):
    """`compress` of an adapter whose logits at some sizes are known, on some of the rows; nothing is resized."""

    def __init__(self, of: RankController, logits: Mapping[int, Tensor], labels: Tensor) -> None:
        self.layers, self.moments, self.aside, self.decisions = of.layers, of.moments, {}, []
        self.steps_taken = 0
        self.known_bases, self.logits, self.labels = of.bases(), logits, labels
        self.known_order = of.order(self.known_bases)
        self.rows, self.size = torch.zeros(0), 0
        self.rule: Callable[[Decision], bool] = as_it_is

    def smallest(self, rows: Tensor) -> int:
        """How many components `compress` keeps, seeing some of the rows."""
        self.rows, self.decisions = rows, []
        self.compress()
        return self.size

    def losses_at(self, components: int, rows: Tensor) -> Tensor:
        """Losses of some of the rows with a number of components, or the next number that is known."""
        return OBJECTIVES["classification"].calibrated_losses(
            self.logits[nearest(components, self.logits)][rows], self.labels[rows]
        )

    def accuracy_at(self, components: int, rows: Tensor) -> float:
        """Of some of the rows."""
        logits = self.logits[nearest(components, self.logits)][rows]
        return (logits.argmax(1) == self.labels[rows]).float().mean().item()

    def params_at(self, components: int) -> int:
        """Entries of A and B with a number of components."""
        ranks = rank.without(self.known_bases, self.known_order[: len(self.known_order) - components])
        return sum(
            ranks.get(path, layer.rank) * (layer.in_features + layer.out_features)
            for path, layer in self.layers.items()
        )

    def bases(self) -> dict[str, rank.Basis]:
        return self.known_bases

    def order(self, bases: Any) -> list[tuple[float, str]]:
        return self.known_order

    def matrices(self, bases: Any, ranks: Any) -> Any:
        """Ranks in place of matrices."""
        return ranks

    def look(self, matrices: Any) -> Tensor:
        none = any(isinstance(value, tuple) for value in matrices.values())
        size = 0 if none else sum(matrices.values()) if matrices else len(self.known_order)
        return self.losses_at(size, self.rows)

    def _judge(self, *args: Any, **more: Any) -> Decision:
        decision = super()._judge(*args, **more)
        return replace(decision, accepted=self.rule(decision))

    def _resize(self, changes: Mapping[str, tuple[int, int]]) -> None:
        self.size = len(self.known_order) - sum(before - after for before, after in changes.values())


def nearest(size: int, sizes: Mapping[int, Any]) -> int:
    """The one of some sizes that is nearest to a size."""
    return min(sizes, key=lambda known: abs(known - size))


@lru_cache(1)
def _known(folder: Path) -> _Known:
    """An adapter's logits on some validation rows at all `SIZES` sizes."""
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
    controller.moments = compress.collect_statistics(
        model, seen, compute, objectives.named(trained.task.problem), lambda done, of: None
    )
    bases = controller.bases()
    order = controller.order(bases)
    sizes = sorted({0, *np.geomspace(1, len(order), SIZES).round().astype(int).tolist()})
    for size in sizes:
        ranks = rank.without(bases, order[: len(order) - size])
        controller.look(controller.matrices(bases, ranks) if size else rank.none_of(controller.layers))
    labels = torch.from_numpy(np.asarray(judged.labels))
    return _Known(controller, dict(zip(sizes, found, strict=True)), labels)


def show(rows: list[Row]) -> None:
    """Markdown: by rule and number of rows drawn, over adapters; then each adapter with the rule as it is."""
    measured = "components left | harm, mean | of more than 2 % | of more than 4 % | parameters left | points of accuracy |"
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
    """Means over adapters; parameters and accuracy where they were measured."""

    def mean(name: str) -> float:
        return statistics.fmean(row[name] for row in rows)

    shares = " | ".join(f"{100 * mean(name):.2f} %" for name in ("harm", "too_much", "twice_too_much"))
    known = all(row["params"] is not None for row in rows)
    spared = f"{mean('params'):,.0f} | {-100 * mean('points'):+.2f}" if known else " | "
    return f"{mean('left'):.0f} of {mean('of'):.0f} | {shares} | {spared}"


if __name__ == "__main__":
    main()
