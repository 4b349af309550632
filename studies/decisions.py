"""How often does a check err? Whole checks on as few held-out rows as a training has, whose cuts do harm that is known.

    python studies/ablations.py --data ../shared/data/glue --tasks sst2 --variants "never cut"
    python studies/decisions.py            # takes the uncut adapters of these; stores, prints
    python studies/decisions.py --show     # prints what is stored

The harm of cuts of `SIZES` sizes is measured on all 8,000 rows of sst2 that ablations.py judges on. Then some of these rows are drawn, 300
times over, and the check sees those alone, its proposals rounded down to a size that was measured. A cut that does more harm than is
negligible is an error. Beside the check as it is stands the one that it replaced. Stored as studies/decisions.parquet, a row a rule, seed,
number of rows drawn and share that is negligible, and as studies/harm.parquet, a row a cut that was measured.
"""

import argparse
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ablations import trial_name
from rankwise.adapters import compress, predict
from rankwise.engine.compute import predict_logits
from rankwise.files import cache_folder
from rankwise.rank import controller as rank
from rankwise.rank.components import NoOptimizer
from rankwise.rank.controller import RankController
from rankwise.tasks import objectives
from rankwise.tasks.encoding import encode
from rankwise.tasks.objectives import OBJECTIVES
from rankwise.tasks.rows import read_rows
from trials import Row

STORED = Path(__file__).with_suffix(".parquet")
HARM = STORED.with_stem("harm")
SEEDS, STATISTICS, DRAWN, DRAWS, SIZES = (0, 1), 1600, (128, 256, 400), 300, 16
NEGLIGIBLE = 0.002, 0.02


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/ablations"), help="where ablations.py keeps its trials"
    )
    parser.add_argument("--show", action="store_true", help="print what is stored, run nothing")
    asked = parser.parse_args()
    if not asked.show:
        rank.MOST = 0.0  # no more than the share of the gain, however little the rows tell
        rows, harm = [], []
        for seed in SEEDS:
            checks, cuts = _checks(asked.work / "sst2", seed)
            rows += checks
            harm += cuts
        pq.write_table(pa.Table.from_pylist(rows), STORED)
        pq.write_table(pa.Table.from_pylist(harm), HARM)
    show(pq.read_table(STORED).to_pylist(), pq.read_table(HARM).to_pylist())


def _checks(folder: Path, seed: int) -> tuple[list[Row], list[Row]]:
    trained = predict.open_trained(folder / trial_name("never cut", seed))
    model, compute = trained.model.eval(), trained.compute
    seen, judged = (
        encode(read_rows(folder / f"{name}.parquet", trained.task, labelled=True)[0], trained.tokenizer, 128, cache_folder())
        for name in ("train", "held_out")
    )  # fmt: skip
    labels = torch.from_numpy(np.asarray(judged.labels))
    controller = RankController(model, lambda: torch.zeros(1), 1, NoOptimizer())
    controller.moments = compress.collect_statistics(
        model,
        seen.select(np.arange(STATISTICS)),
        compute,
        objectives.named(trained.task.problem),
        lambda done, of: None,
    )
    bases = controller.bases()
    order = controller.order(bases)
    total = sum(worth for worth, _ in order)

    def logits(matrices: rank.Matrices) -> Tensor:
        found: list[Tensor] = []

        def losses() -> Tensor:
            found.append(torch.from_numpy(predict_logits(model, judged, compute)))
            return found[0][:, 0]

        controller.losses = losses
        controller.look(matrices)
        return found[0]

    counts = sorted({len(LEAST(order, share)[0]) for share in np.geomspace(3e-4, 0.2, SIZES)})
    known = {
        count: logits(controller.matrices(bases, rank.without(bases, order[:count]))) for count in counts
    }
    known |= {0: logits({}), len(order): logits(rank.none_of(controller.layers))}
    rank._least = _to_known(counts)
    mean = {
        count: OBJECTIVES["classification"].calibrated_losses(of, labels).mean().item()
        for count, of in known.items()
    }
    gain = mean[len(order)] - mean[0]
    cuts = [
        {
            "seed": seed,
            "left": len(order) - count,
            "of": len(order),
            "worth": sum(worth for worth, _ in order[:count]) / total,
            "harm": (mean[count] - mean[0]) / gain,
        }
        for count in counts
    ]
    rows, rng = [], np.random.default_rng(seed)
    for drawn in DRAWN:
        for negligible in NEGLIGIBLE:
            draws = [rng.choice(len(labels), drawn, replace=False) for _ in range(DRAWS)]
            for rule, check in RULES.items():
                made = [
                    check(controller, bases, order, {k: v[i] for k, v in known.items()}, labels[i]).cut(
                        negligible
                    )
                    for i in draws
                ]
                harms = [(mean[count] - mean[0]) / gain for count in made]
                rows.append(
                    {
                        "rule": rule,
                        "seed": seed,
                        "drawn": drawn,
                        "negligible": negligible,
                        "made": statistics.fmean(count > 0 for count in made),
                        "left": len(order) - statistics.median(made),
                        "of": len(order),
                        "harm": statistics.fmean(harms),
                        "too_much": statistics.fmean(harm > negligible for harm in harms),
                        "twice_too_much": statistics.fmean(harm > 2 * negligible for harm in harms),
                    }
                )
    return rows, cuts


class _Check(RankController):
    """A check of a controller that knows the logits of some cuts beforehand; nothing is resized."""

    def __init__(
        self,
        of: RankController,
        bases: dict[str, rank.Basis],
        order: list[tuple[float, str]],
        known: dict[int, Tensor],
        labels: Tensor,
    ) -> None:
        self.layers, self.moments, self.aside, self.decisions = of.layers, of.moments, {}, []
        self.alone, self.steps, self.steps_taken = False, 1, 0
        self.checks = {1: self._grow}
        self.known_bases, self.known_order, self.known, self.labels = bases, order, known, labels

    def bases(self) -> dict[str, rank.Basis]:
        return self.known_bases

    def order(self, bases: Any) -> list[tuple[float, str]]:
        return self.known_order

    def matrices(self, bases: Any, ranks: Any) -> Any:
        """A number of components removed, in place of matrices."""
        return len(self.known_order) - sum(ranks.values())

    def look(self, matrices: Any) -> Tensor:
        everything = len(self.known_order) if matrices else 0
        count = matrices if isinstance(matrices, int) else everything
        return OBJECTIVES["classification"].calibrated_losses(self.known[count], self.labels).double()

    def _take(self, decision: rank.Decision) -> None:
        self.decisions.append(decision)

    def cut(self, negligible: float) -> int:
        """How many components the check removes."""
        self._cut(negligible)
        last = self.decisions[-1] if self.decisions else None
        return sum(a - b for a, b in last.changes.values()) if last and last.accepted else 0


class _TakesThemAtTheirWord(_Check):
    """The check before: a proposal has to pass `at_their_word`; after one that passes comes one of twice the worth, after one that doesn't
    one of a quarter."""

    @torch.no_grad()
    def _cut(self, share: float) -> None:
        whole = self.look({})
        gain = self.look(rank.none_of(self.layers)) - whole
        mean, error = rank.mean_and_error(gain)
        if mean <= rank.SURE * error:
            return
        proposed, best = share / (1 + rank.SURE), None
        for _ in range(rank.TRIES):
            removed, reached = rank._least(self.known_order, proposed)
            if len(removed) < rank.SPARE * len(self.known_order):
                break
            ranks = rank.without(self.known_bases, removed)
            harm = self.look(self.matrices(self.known_bases, ranks)) - whole
            decision = self._judge("cut", harm, share * mean, ranks, reached * mean)
            decision = replace(decision, accepted=at_their_word(decision))
            if decision.accepted:
                best, proposed = decision, 2 * reached
                continue
            if best:
                break
            self._take(decision)
            proposed = reached / 4
        if best:
            self._take(best)


def at_their_word(decision: rank.Decision) -> bool:
    """Whether a cut does little enough harm by what was seen and what was expected, the latter as uncertain as it is large, weighed by
    their precisions; that rows alone don't say otherwise is asked for, too."""
    mean, error, expected = decision.difference, decision.error, decision.expected
    if expected is not None:
        seen, prior = error**2, expected**2
        weight = prior / (prior + seen) if prior + seen else 0.0
        mean, error = weight * mean + (1 - weight) * expected, math.sqrt(weight * seen)
    missed = decision.difference - rank.SURE * decision.error > decision.limit
    return not missed and mean + rank.SURE * error <= decision.limit


RULES: dict[str, type[_Check]] = {"as it is": _Check, "statistics at their word": _TakesThemAtTheirWord}
LEAST = rank._least


def _to_known(counts: list[int]) -> Any:
    """`rank._least`, rounded down to a size that was measured."""

    def rounded(order: Any, share: float) -> Any:
        count = max((c for c in counts if c <= len(LEAST(order, share)[0])), default=0)
        worths = torch.tensor([worth for worth, _ in order], dtype=torch.float64).cumsum(0)
        return order[:count], (worths[count - 1] / worths[-1]).item() if count else 0.0

    return rounded


def show(rows: list[Row], harm: list[Row]) -> None:
    """Markdown; harm in percent of the gain."""
    print(
        "| rule | seed | held-out rows | negligible | cuts made | components left, median | harm, mean "
        "| more than negligible | than twice |\n"
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    )
    for row in rows:
        shares = (f"{100 * row[name]:.0f} %" for name in ("too_much", "twice_too_much"))
        print(
            f"| {row['rule']} | {row['seed']} | {row['drawn']} | {100 * row['negligible']:g} % | {100 * row['made']:.0f} % | "
            f"{row['left']:.0f} of {row['of']} | {100 * row['harm']:+.2f} % | {' | '.join(shares)} |"
        )
    print("\n| seed | components left | of all worth | harm |\n|---:|---:|---:|---:|")
    for row in harm:
        print(
            f"| {row['seed']} | {row['left']} of {row['of']} | {100 * row['worth']:.2f} % | {100 * row['harm']:+.2f} % |"
        )


if __name__ == "__main__":
    main()
