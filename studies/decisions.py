"""How often does a check err? Whole checks on as few held-out rows as a training has, whose cuts do harm that is known.

    python studies/decisions.py            # after studies/ablations.py, whose uncut adapters it takes; stores, prints
    python studies/decisions.py --show     # prints what is stored

The harm of cuts of `SIZES` sizes is measured on all 8,000 rows of sst2 that ablations.py judges on. Then some of these rows are drawn, 300
times over, and the check sees those alone, its proposals rounded down to a size that was measured. A cut that does more harm than is
negligible is an error. Stored as studies/decisions.parquet, a row a seed, number of rows drawn and share that is negligible.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from rankwise import compression, rank, scoring, tasks
from rankwise.components import NoOptimizer
from rankwise.data import cache_folder, encode
from rankwise.losses import calibrated_losses
from rankwise.rank import RankController
from rankwise.train import predict_logits

STORED = Path(__file__).with_suffix(".parquet")
SEEDS, STATISTICS, DRAWN, DRAWS, SIZES = (0, 1), 1600, (128, 256, 400), 300, 16
NEGLIGIBLE = tuple(rank.CUT_AT.values())


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
        rows = [row for seed in SEEDS for row in _checks(asked.work / "sst2", seed)]
        pq.write_table(pa.Table.from_pylist(rows), STORED)
    show(pq.read_table(STORED).to_pylist())


def _checks(folder: Path, seed: int) -> list[dict[str, Any]]:
    trained = scoring.open_trained(folder / f"never-cut-0.98-s{seed}")
    model, compute = trained.model.eval(), trained.compute
    seen, judged = (
        encode(tasks.read_rows(folder / f"{name}.parquet", trained.task, labelled=True)[0], trained.tokenizer, 128, cache_folder())
        for name in ("train", "held_out")
    )  # fmt: skip
    labels = torch.from_numpy(np.asarray(judged.labels))
    controller = RankController(model, lambda: torch.zeros(1), 1, NoOptimizer())
    controller.moments = compression.gather(
        model, seen.select(np.arange(STATISTICS)), compute, lambda done, of: None
    )
    bases = controller.bases()
    order = controller.order(bases)

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
    mean = {count: calibrated_losses(of, labels).mean().item() for count, of in known.items()}
    gain = mean[len(order)] - mean[0]
    rows, rng = [], np.random.default_rng(seed)
    for drawn in DRAWN:
        for negligible in NEGLIGIBLE:
            cut = []
            for _ in range(DRAWS):
                which = rng.choice(len(labels), drawn, replace=False)
                one = _Check(controller, bases, order, {k: v[which] for k, v in known.items()}, labels[which])
                cut.append(one.cut(negligible))
            harms = [(mean[count] - mean[0]) / gain for count in cut]
            rows.append(
                {
                    "seed": seed,
                    "drawn": drawn,
                    "negligible": negligible,
                    "made": statistics.fmean(count > 0 for count in cut),
                    "left": len(order) - statistics.median(cut),
                    "of": len(order),
                    "harm": statistics.fmean(harms),
                    "too_much": statistics.fmean(harm > negligible for harm in harms),
                    "twice_too_much": statistics.fmean(harm > 2 * negligible for harm in harms),
                }
            )
    return rows


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
        self.alone, self.steps_taken = False, 0
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
        return calibrated_losses(self.known[count], self.labels).double()

    def _take(self, decision: rank.Decision) -> None:
        self.decisions.append(decision)

    def cut(self, negligible: float) -> int:
        """How many components the check removes."""
        self._cut(negligible)
        last = self.decisions[-1] if self.decisions else None
        return sum(a - b for a, b in last.changes.values()) if last and last.accepted else 0


LEAST = rank._least


def _to_known(counts: list[int]) -> Any:
    """`rank._least`, rounded down to a size that was measured."""

    def rounded(order: Any, share: float) -> Any:
        count = max((c for c in counts if c <= len(LEAST(order, share)[0])), default=0)
        worths = [worth for worth, _ in order]
        return order[:count], sum(worths[:count]) / sum(worths)

    return rounded


def show(rows: list[dict[str, Any]]) -> None:
    """Markdown; harm in percent of the gain."""
    print(
        "| seed | held-out rows | negligible | cuts made | components left, median | harm, mean | more than negligible | than twice |\n"
        "|---:|---:|---:|---:|---:|---:|---:|---:|"
    )
    for row in rows:
        shares = (f"{100 * row[name]:.0f} %" for name in ("too_much", "twice_too_much"))
        print(
            f"| {row['seed']} | {row['drawn']} | {100 * row['negligible']:g} % | {100 * row['made']:.0f} % | "
            f"{row['left']:.0f} of {row['of']} | {100 * row['harm']:+.2f} % | {' | '.join(shares)} |"
        )


if __name__ == "__main__":
    main()
