"""Does adaptive rank find a rank that is known? A teacher gets an update of rank k in the value projections of some layers of the embedded
model; a student, the same model with adapters on every query and value, fits the teacher's logits. Only the adapters are trained.

    python studies/planted.py          # runs what is missing, stores, prints
    python studies/planted.py --show   # prints what is stored

`--fixed` trains students whose ranks stay: what a higher rank is worth where a high one is planted.

The head is random, the same for both, and frozen; texts are the embedded movie reviews; an example's loss is the mean squared difference of
its logits over the teacher's variance. Stored as studies/planted.parquet, a row a run.
"""

import argparse
import copy
import json
import math
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from rankwise.config import Preference
from rankwise.engine.batches import batch_order
from rankwise.engine.packed_mode import packed
from rankwise.engine.packing import pack
from rankwise.engine.pooling import packed_logits
from rankwise.files import cache_folder
from rankwise.lora.inject import adapt_at_start_rank
from rankwise.lora.layer import lora_layers
from rankwise.models import loading
from rankwise.models.hub import DEFAULT
from rankwise.rank.config import preferring
from rankwise.rank.controller import RankController
from rankwise.seeding import stream_seed
from rankwise.tasks import registry
from rankwise.tasks.encoding import Encoded, encode
from rankwise.tasks.load import load_split
from trials import earlier, prune_at, run_missing

STORED = Path(__file__).with_suffix(".parquet")
LAYERS = (1, 3, 4)
"""Whose value projections the teacher's update is in."""
RANKS = (0, 1, 2, 4, 8, 16)
SEEDS = (0, 1, 2)
ROWS, HELD_OUT, BATCH, STEPS, LR, CLASSES = 6000, 300, 32, 1200, 2e-3, 16
PLANTED_EVERYWHERE = ("1.attention.self.value", "3.attention.output.dense", "4.intermediate.dense")
"""Where the teacher's update is if the student has adapters in every linear layer."""
SIZE = 0.5
"""Frobenius norm of the planted update, relative to the weight's."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--show", action="store_true", help="print what is stored, run nothing")
    parser.add_argument(
        "--earlier", action="store_true", help="print what earlier versions gave, run nothing"
    )
    parser.add_argument("--ranks", type=int, nargs="*", default=RANKS, help="planted ranks")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS, help="seeds")
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time, with one thread each")
    parser.add_argument("--start", type=int, default=16, help="rank that the student starts from")
    parser.add_argument("--late", type=float, help="tolerance of the last prune, as a share of the gain")
    parser.add_argument("--steps", type=int, help=f"of a training, {STEPS:,} if not given")
    parser.add_argument(
        "--everywhere", action="store_true", help="adapters in all linear layers of the student"
    )
    parser.add_argument("--prefer", choices=("accuracy", "size"), default="size")
    parser.add_argument("--fixed", action="store_true", help="ranks stay as they start")
    asked = parser.parse_args()
    asked.show |= asked.earlier
    if not asked.show:
        wanted = [
            {"rank": rank, "seed": seed, "start": asked.start, "late": asked.late, "steps": asked.steps}
            | (
                {"everywhere": True, "prefer": asked.prefer}
                if asked.everywhere or asked.prefer != "size"
                else {}
            )
            | ({"fixed": True} if asked.fixed else {})
            for seed in asked.seeds
            for rank in asked.ranks
        ]
        one_thread = {"initializer": torch.set_num_threads, "initargs": (1,)}
        with ProcessPoolExecutor(asked.jobs, mp_context=get_context("spawn"), **one_thread) as pool:
            run_missing(STORED, wanted, lambda which: pool.submit(trial, **which).result(), asked.jobs)
    show(pq.read_table(earlier(STORED) if asked.earlier else STORED).to_pylist())


def trial(
    rank: int,
    seed: int,
    start: int,
    late: float | None,
    steps: int | None,
    everywhere: bool = False,
    prefer: Preference = "size",
    fixed: bool = False,
) -> dict[str, Any]:
    """Train one student; return a row of the study."""
    total = steps or STEPS
    config = preferring(prefer)
    if late is not None:
        config = prune_at({**config.prune_at, max(config.prune_at): late})
    if fixed:
        config = replace(preferring("accuracy"), least_rank=math.inf, grow_at=())
    begun = time.perf_counter()
    rows = _rows()
    teacher = _model(seed)
    student = copy.deepcopy(teacher)
    planted = PLANTED_EVERYWHERE if everywhere else [f"{layer}.attention.self.value" for layer in LAYERS]
    _plant(teacher, rank, seed, planted)
    targets = _logits(teacher, rows)
    scale = targets.var(dim=0).mean()
    adapt_at_start_rank(
        student,
        start,
        targets=("all-linear",) if everywhere else ("query", "value"),
        seed=stream_seed(seed, "adapter"),
    )
    student.requires_grad_(False)
    layers = lora_layers(student)
    trained = [
        p for layer in layers.values() for p in (layer.lora_A.requires_grad_(), layer.lora_B.requires_grad_())
    ]
    optimizer = torch.optim.AdamW(trained, lr=LR, betas=(0.9, 0.98), weight_decay=0.0)
    held_out, train = np.arange(HELD_OUT), np.arange(HELD_OUT, ROWS)

    def losses() -> Tensor:
        return (_logits(student.eval(), rows, held_out) - targets[held_out]).square().mean(dim=1) / scale

    controller = RankController(student, losses, total, optimizer, seed=seed, config=config)
    before = losses().mean().item()
    lengths = rows.lengths[train]
    batches = [
        train[b]
        for epoch in range(total * BATCH // len(train) + 1)
        for b in batch_order(lengths, BATCH, seed=stream_seed(seed, "order", epoch), group_by_length=False)
    ]
    for step in range(total):
        optimizer.param_groups[0]["lr"] = LR * min((step + 1) / 40, 1.0 - step / total)
        batch = pack(rows, batches[step], model=student)
        with packed(student):
            logits = packed_logits(student.train(), batch).float()
        loss = (logits - targets[batch.rows]).square().mean() / scale
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step()
    found = {path: layer.rank for path, layer in layers.items()}
    planted = {path for path in layers if rank and path.endswith(tuple(f"layer.{name}" for name in planted))}
    kept = {path for path, r in found.items() if r}
    return {
        "rank": rank,
        "seed": seed,
        "start": start,
        "late": late,
        "steps": steps,
        "everywhere": everywhere,
        "prefer": prefer,
        "fixed": fixed or None,
        "planted": rank * 3,
        "found": sum(found.values()),
        "precision": len(kept & planted) / len(kept) if kept else 1.0,
        "recall": len(kept & planted) / len(planted) if planted else 1.0,
        "loss_before": before,
        "loss_after": losses().mean().item(),
        "ranks": json.dumps(found),
        "decisions": json.dumps([decision.to_json() for decision in controller.decisions]),
        "seconds": time.perf_counter() - begun,
    }


def _rows() -> Encoded:
    source = loading.locate(DEFAULT)
    rows, _ = load_split(registry.named("movies"), "train")
    return encode(rows.select(np.arange(ROWS)), source.tokenizer, 128, cache_folder())


def _model(seed: int) -> Any:
    model, _ = loading.load(
        loading.locate(DEFAULT), [f"class {i}" for i in range(CLASSES)], dtype=torch.float32, seed=seed
    )
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # the student could not equal the teacher otherwise
    return model.eval().requires_grad_(False)


def _plant(model: nn.Module, rank: int, seed: int, planted: Sequence[str]) -> None:
    """Add U·Vᵀ with equal singular values, of `SIZE` of the weight's norm in all, to some linear layers of the encoder."""
    generator = torch.Generator().manual_seed(stream_seed(seed, "planted"))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(tuple(f"layer.{p}" for p in planted)) and rank:
            out, into = module.weight.shape
            U = torch.linalg.qr(torch.randn(out, rank, generator=generator)).Q
            V = torch.linalg.qr(torch.randn(into, rank, generator=generator)).Q
            module.weight += SIZE * module.weight.norm() / rank**0.5 * U @ V.t()


@torch.no_grad()
def _logits(model: nn.Module, rows: Encoded, which: np.ndarray | None = None) -> Tensor:
    which = np.arange(len(rows)) if which is None else which
    result = torch.empty(len(which), CLASSES)
    with packed(model):
        for start in range(0, len(which), 64):
            part = which[start : start + 64]
            batch = pack(rows, part, model=model)
            logits = packed_logits(model, batch).float()
            position = {row: i for i, row in enumerate(part)}
            result[start + torch.tensor([position[row] for row in batch.rows])] = logits
    return result


def show(rows: list[dict[str, Any]]) -> None:
    others = "late", "steps"  # than usual, where they are given
    for row in sorted(
        rows,
        key=lambda row: (row["start"], row["rank"], row["seed"], *(row.get(key) or 0.0 for key in others)),
    ):
        print(
            f"start {row['start']:2}  k = {row['rank']:2}  seed {row['seed']}  planted {row['planted']:3}  found {row['found']:3}  "
            f"precision {row['precision']:.2f}  recall {row['recall']:.2f}  "
            f"loss {row['loss_before']:.4f} → {row['loss_after']:.5f}"
            + (f"  {100 * row['late']:g} % tolerance" if row.get("late") else "")
            + (f"  {row['steps']:,} steps" if row.get("steps") else "")
            + (f"  all linear layers, {row['prefer']}" if row.get("everywhere") else "")
            + ("  ranks stay" if row.get("fixed") else "")
        )


if __name__ == "__main__":
    main()
