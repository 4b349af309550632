"""How often does a check err? Whole checks on as few held-out rows as a training has, of prunes whose loss increase is known.

    python studies/ablations.py --data ../shared/data/glue --tasks sst2 --variants "never cut"
    python studies/decisions.py            # takes the unpruned adapters of these; stores, prints
    python studies/decisions.py --show     # prints what is stored

The loss increase of prunes of `SIZES` sizes is measured on all 8,000 rows of sst2 that ablations.py judges on. Then some of these rows
are drawn, 300 times over. The check sees those alone, its proposals rounded down to a size that was measured. A prune whose loss increase
is above the tolerance is an error. Beside the current check stands the one that it replaced. Stored as studies/decisions.parquet, a row a
rule, seed, number of rows drawn and tolerance, and as studies/loss_increase.parquet, a row a prune that was measured.
"""

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
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
from rankwise.rank.components import Basis, NoOptimizer
from rankwise.rank.config import CONFIDENCE, RankConfig
from rankwise.rank.controller import RankController
from rankwise.rank.decision import Decision
from rankwise.rank.evidence import HeldOutTest, LossIncrease
from rankwise.rank.pruning_rule import Order, Proposal, least_important, ranks_without
from rankwise.tasks import objectives
from rankwise.tasks.encoding import encode
from rankwise.tasks.objectives import OBJECTIVES
from rankwise.tasks.rows import read_rows
from trials import Row

STORED = Path(__file__).with_suffix(".parquet")
LOSS_INCREASE = STORED.with_stem("loss_increase")
SEEDS, STATISTICS, DRAWN, DRAWS, SIZES = (0, 1), 1600, (128, 256, 400), 300, 16
TOLERANCES = 0.002, 0.02
CONFIG = RankConfig(noise_cap=0.0)
"""No noise tolerance: a share of the gain and no more."""


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
        rows, increases = [], []
        for seed in SEEDS:
            checks, prunes = _checks(asked.work / "sst2", seed)
            rows += checks
            increases += prunes
        pq.write_table(pa.Table.from_pylist(rows), STORED)
        pq.write_table(pa.Table.from_pylist(increases), LOSS_INCREASE)
    show(pq.read_table(STORED).to_pylist(), pq.read_table(LOSS_INCREASE).to_pylist())


def _checks(folder: Path, seed: int) -> tuple[list[Row], list[Row]]:
    trained = predict.open_trained(folder / trial_name("never cut", seed))
    model, compute = trained.model.eval(), trained.compute
    seen, judged = (
        encode(read_rows(folder / f"{name}.parquet", trained.task)[0], trained.tokenizer, 128, cache_folder())
        for name in ("train", "held_out")
    )  # fmt: skip
    labels = torch.from_numpy(np.asarray(judged.labels))
    controller = RankController(model, lambda: torch.zeros(1), 1, NoOptimizer(), config=CONFIG)
    controller.statistics.sums = compress.collect_statistics(
        model,
        seen.select(np.arange(STATISTICS)),
        compute,
        objectives.named(trained.task.problem),
        lambda done, of: None,
    )
    bases = controller.bases()
    order = controller.order(bases)
    total = sum(importance for importance, _ in order)

    def logits_without(removed: int) -> Tensor:
        found: list[Tensor] = []

        def losses() -> Tensor:
            found.append(torch.from_numpy(predict_logits(model, judged, compute)))
            return found[0][:, 0]

        test = HeldOutTest(controller.layers, losses)
        if removed == len(order):
            test.losses_without_adapters()
        else:
            ranks = ranks_without(bases, order[:removed])
            test.losses_with(controller.matrices(bases, ranks) if removed else {})
        return found[0]

    shares = np.geomspace(3e-4, 0.2, SIZES)
    counts = sorted({least_important(order, bases, share).components for share in shares})
    known = {count: logits_without(count) for count in (*counts, 0, len(order))}
    mean = {count: _losses(of, labels).mean().item() for count, of in known.items()}
    gain = mean[len(order)] - mean[0]
    prunes = [
        {
            "seed": seed,
            "left": len(order) - count,
            "of": len(order),
            "importance": sum(importance for importance, _ in order[:count]) / total,
            "loss_increase": (mean[count] - mean[0]) / gain,
        }
        for count in counts
    ]
    rows, rng = [], np.random.default_rng(seed)
    for drawn in DRAWN:
        for tolerance in TOLERANCES:
            draws = [rng.choice(len(labels), drawn, replace=False) for _ in range(DRAWS)]
            for rule, check in RULES.items():
                made = []
                for i in draws:
                    test = _KnownLosses({k: v[i] for k, v in known.items()}, labels[i])
                    made.append(check(controller, bases, order, counts, test).pruned(tolerance))
                increases = [(mean[count] - mean[0]) / gain for count in made]
                rows.append(
                    {
                        "rule": rule,
                        "seed": seed,
                        "drawn": drawn,
                        "tolerance": tolerance,
                        "made": statistics.fmean(count > 0 for count in made),
                        "left": len(order) - statistics.median(made),
                        "of": len(order),
                        "loss_increase": statistics.fmean(increases),
                        "too_much": statistics.fmean(x > tolerance for x in increases),
                        "twice_too_much": statistics.fmean(x > 2 * tolerance for x in increases),
                    }
                )
    return rows, prunes


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    return OBJECTIVES["classification"].calibrated_losses(logits, labels)


class _KnownLosses(HeldOutTest):
    """Held-out rows whose logits are known for some numbers of pruned components, which stand in place of matrices."""

    def __init__(self, logits: Mapping[int, Tensor], labels: Tensor) -> None:
        self.logits, self.labels, self.rows_seen = logits, labels, 0

    def losses_with(self, matrices: Any) -> Tensor:
        return _losses(self.logits[matrices or 0], self.labels).double()

    def losses_without_adapters(self) -> Tensor:
        return self.losses_with(max(self.logits))


class _Check(RankController):
    """A check whose prunes are known; nothing is resized."""

    def __init__(
        self,
        of: RankController,
        bases: dict[str, Basis],
        order: Order,
        counts: Sequence[int],
        held_out: HeldOutTest,
    ) -> None:
        self.layers, self.statistics, self.resizer, self.config = (
            of.layers,
            of.statistics,
            of.resizer,
            of.config,
        )
        self.only_adapters, self.steps, self.steps_taken = False, 1, 0
        self.checks, self.decisions = {1: self.grow}, []
        self.known_bases, self.known_order, self.counts, self.held_out = bases, order, counts, held_out

    def bases(self) -> dict[str, Basis]:
        return self.known_bases

    def order(self, bases: Any) -> Order:
        return self.known_order

    def propose(self, bases: Any, order: Order, share: float) -> Proposal:
        """Round a proposal down to a size that was measured."""
        allowed = least_important(order, bases, share).components
        count = max((c for c in self.counts if c <= allowed), default=0)
        sums = torch.tensor([importance for importance, _ in order], dtype=torch.float64).cumsum(0)
        reached = (sums[count - 1] / sums[-1]).item() if count else 0.0
        return Proposal(ranks_without(bases, order[:count]), reached, count)

    def matrices(self, bases: Any, ranks: Any) -> Any:
        """Return the number of components pruned, in place of matrices."""
        return len(self.known_order) - sum(ranks.values())

    def _carry_out(self, decision: Decision) -> None:
        self.decisions.append(decision)

    def pruned(self, tolerance: float) -> int:
        """Return how many components the check prunes."""
        self.prune(tolerance)
        last = self.decisions[-1] if self.decisions else None
        return sum(a - b for a, b in last.changes.values()) if last and last.accepted else 0


class _NormalPrior(_Check):
    """The check before: a proposal has to pass `at_their_word`. After one that passes comes one of twice the importance, after one that
    doesn't one of a quarter."""

    @torch.no_grad()
    def prune(self, tolerance: float) -> None:
        config, bases, order = self.config, self.known_bases, self.known_order
        whole = self.held_out.losses_with({})
        gain = LossIncrease.of(self.held_out.losses_without_adapters() - whole)
        if gain.mean <= config.confidence * gain.error:
            return
        share, best = tolerance / (1 + config.confidence), None
        for _ in range(config.trials):
            proposal = self.propose(bases, order, share)
            if proposal.components < config.smallest_prune * len(order):
                break
            _, increase = self._evaluate(bases, proposal, whole)
            limit, expected = tolerance * gain.mean, proposal.share * gain.mean
            decision = self.decision("prune", False, increase, limit, proposal.ranks, expected)
            decision = replace(decision, accepted=at_their_word(decision))
            if decision.accepted:
                best, share = decision, 2 * proposal.share
                continue
            if best:
                break
            self._carry_out(decision)
            share = proposal.share / 4
        if best:
            self._carry_out(best)


def at_their_word(decision: Decision) -> bool:
    """Return whether measured and expected loss increase, weighed by their precisions, are within the limit.

    The expected one is taken as uncertain as it is large. Rows alone must not say otherwise.
    """
    mean, error, expected = decision.loss_increase, decision.error, decision.expected
    if expected is not None:
        seen, prior = error**2, expected**2
        weight = prior / (prior + seen) if prior + seen else 0.0
        mean, error = weight * mean + (1 - weight) * expected, math.sqrt(weight * seen)
    missed = decision.loss_increase - CONFIDENCE * decision.error > decision.limit
    return not missed and mean + CONFIDENCE * error <= decision.limit


RULES: dict[str, type[_Check]] = {"as it is": _Check, "statistics at their word": _NormalPrior}
"""Names as they are stored: the current check, and the one that it replaced."""


def show(rows: list[Row], increases: list[Row]) -> None:
    """Print Markdown; the loss increase in percent of the gain."""
    print(
        "| rule | seed | held-out rows | tolerance | prunes made | components left, median | loss increase, mean "
        "| more than tolerated | than twice |\n"
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    )
    for row in rows:
        shares = (f"{100 * row[name]:.0f} %" for name in ("too_much", "twice_too_much"))
        print(
            f"| {row['rule']} | {row['seed']} | {row['drawn']} | {100 * row['tolerance']:g} % | {100 * row['made']:.0f} % | "
            f"{row['left']:.0f} of {row['of']} | {100 * row['loss_increase']:+.2f} % | {' | '.join(shares)} |"
        )
    print("\n| seed | components left | of all importance | loss increase |\n|---:|---:|---:|---:|")
    for row in increases:
        print(
            f"| {row['seed']} | {row['left']} of {row['of']} | {100 * row['importance']:.2f} % | {100 * row['loss_increase']:+.2f} % |"
        )


if __name__ == "__main__":
    main()
