"""Does worth foretell harm? LoRA at rank 16 on movies and mnli; at four moments of the training its components are put in order of worth,
and validation rows say what the loss is without the least.

    python studies/knee.py --data ../shared/data/glue      # runs what is missing, stores, prints
    python studies/knee.py --show                          # prints what is stored, as in docs/adaptive-rank.md

Nothing is cut in earnest. Stored as studies/knee.parquet, a row a moment and size.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F

from rankwise import rank
from rankwise.config import DataOptions, ModelOptions, RunConfig, to_json
from rankwise.run import prepare
from rankwise.store import RunFolder
from rankwise.train import predict_logits

STORED = Path(__file__).with_suffix(".parquet")
TASKS, MOMENTS, KEPT = ("movies", "mnli"), (0.25, 0.5, 0.8, 1.0), (96, 48, 24, 12, 6)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with one sub-folder of GLUE's Parquet files a task")
    parser.add_argument("--show", action="store_true", help="print what is stored, run nothing")
    asked = parser.parse_args()
    stored = pq.read_table(STORED).to_pylist() if STORED.exists() else []
    if not asked.show:
        for task in TASKS:
            if task not in {row["task"] for row in stored}:
                stored += trial(task, asked.data)
                pq.write_table(pa.Table.from_pylist(stored), STORED)
    show(stored)


def trial(task: str, data: Path | None) -> list[dict[str, Any]]:
    """Rows of one training."""
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig(
            task=task, method="adaptive", data=DataOptions(data=data), model=ModelOptions(threads=1)
        )
        run_folder = RunFolder(folder)
        run_folder.write_request(to_json(config))
        run = prepare(run_folder, lambda event: None)
    training, found = run.training, []
    controller = training.rank
    assert controller is not None
    controller.checks = {training.steps + 1: lambda: None}  # looks, and decides nothing
    judged = next(iter(run.validation.values()))
    labels = torch.from_numpy(judged.labels)

    def losses() -> torch.Tensor:
        logits = predict_logits(run.model, judged, training.compute)
        return F.cross_entropy(torch.from_numpy(logits), labels, reduction="none")

    controller.losses = losses
    moments = {round(share * training.steps): share for share in MOMENTS}
    while not training.done:
        with training.compute.running(run.model):
            training.step()
        if training.step_number in moments:
            found += [
                {"task": task, "moment": moments[training.step_number], **point} for point in look(controller)
            ]
    return found


@torch.no_grad()
def look(controller: rank.RankController) -> list[dict[str, Any]]:
    """Share of worth removed, and harm as a share of the gain, at each size."""
    bases = controller.bases()
    order = controller.order(bases)
    total = sum(worth for worth, _ in order)
    whole = controller.look({})
    gain = (controller.look(rank.none_of(controller.layers)) - whole).mean().item()
    points = []
    for kept in KEPT:
        removed = order[: len(order) - kept]
        harm = controller.look(controller.matrices(bases, rank.without(bases, removed))) - whole
        mean, error = rank.mean_and_error(harm)
        share = sum(worth for worth, _ in removed) / total
        points.append(
            {"kept": kept, "worth": share, "harm": mean / gain, "error": error / gain, "gain": gain}
        )
    return points


def show(rows: list[dict[str, Any]]) -> None:
    """Markdown."""
    print(
        "| task, share of the training | components left of 192 | share of worth removed | harm, share of the gain |"
    )
    print("|---|---:|---:|---:|")
    for row in rows:
        print(
            f"| {row['task']}, {100 * row['moment']:.0f} % | {row['kept']} | {100 * row['worth']:.2f} % "
            f"| {100 * row['harm']:+.1f} ± {100 * row['error']:.1f} % |"
        )


if __name__ == "__main__":
    main()
