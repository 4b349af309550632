"""How often does a check err? Cuts of known harm, judged on as few held-out rows as a training has.

    python studies/decisions.py            # after studies/ablations.py, whose uncut adapters it takes; stores, prints
    python studies/decisions.py --show     # prints what is stored

The harm of a cut is measured on all 8,000 rows of sst2 that ablations.py judges on; then 400 of them are drawn, 500 times over, and the
check decides on those alone, with the statistics' expectation as in a training. A cut with more harm than is negligible that is made is an
error of the one kind, a cut with less that isn't made of the other. Stored as studies/decisions.parquet, a row a seed and size.
"""

import argparse
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
SEEDS, STATISTICS, ROWS, DRAWS = (0, 1), 1600, 400, 500
SHARES = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2)
"""Of all worth, that a cut takes away."""


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
        rows = [row for seed in SEEDS for row in _cuts(asked.work / "sst2", seed)]
        pq.write_table(pa.Table.from_pylist(rows), STORED)
    show(pq.read_table(STORED).to_pylist())


def _cuts(folder: Path, seed: int) -> list[dict[str, Any]]:
    trained = scoring.open_trained(folder / f"never-cut-s{seed}")
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

    def look(matrices: rank.Matrices) -> Tensor:
        logits: list[Tensor] = []

        def losses() -> Tensor:
            logits.append(torch.from_numpy(predict_logits(model, judged, compute)))
            return logits[0][:, 0]

        controller.losses = losses
        controller.look(matrices)
        return logits[0]

    whole, none = look({}), look(rank.none_of(controller.layers))
    base = calibrated_losses(whole, labels)
    gain = (calibrated_losses(none, labels) - base).mean().item()
    rng, draws = np.random.default_rng(seed), []
    for _ in range(DRAWS):
        which = rng.choice(len(labels), ROWS, replace=False)
        losses_drawn = calibrated_losses(whole[which], labels[which])
        draws.append(
            (
                which,
                losses_drawn,
                (calibrated_losses(none[which], labels[which]) - losses_drawn).mean().item(),
            )
        )
    rows = []
    for share in SHARES:
        worths = torch.tensor([worth for worth, _ in order], dtype=torch.float64).cumsum(0)
        count = int((worths <= share * worths[-1]).sum())
        reached = float(worths[count - 1] / worths[-1])
        ranks = rank.without(bases, order[:count])
        cut = look(controller.matrices(bases, ranks))
        harm = calibrated_losses(cut, labels) - base
        made = 0
        for which, whole_drawn, gain_drawn in draws:
            harm_drawn = calibrated_losses(cut[which], labels[which]) - whole_drawn
            limit = rank.SHARE * max(gain_drawn, 0.0)
            made += controller._judge("cut", harm_drawn, limit, ranks, reached * gain_drawn).accepted
        rows.append(
            {
                "seed": seed,
                "share": share,
                "left": len(order) - count,
                "of": len(order),
                "harm": harm.mean().item() / gain,
                "error": harm.std().item() / len(harm) ** 0.5 / gain,
                "made": made / DRAWS,
            }
        )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Markdown; harm in percent of the gain, beside the 2 % that are negligible."""
    print(
        "| seed | components left | worth taken | harm, all rows | cuts made, on 400 rows |\n|---:|---:|---:|---:|---:|"
    )
    for row in rows:
        harm = f"{100 * row['harm']:+.1f} ± {100 * row['error']:.1f} %"
        print(
            f"| {row['seed']} | {row['left']} of {row['of']} | {100 * row['share']:g} % | {harm} | {100 * row['made']:.0f} % |"
        )


if __name__ == "__main__":
    main()
