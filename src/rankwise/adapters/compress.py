"""Prunes a finished adapter, whoever trained it, by the evidence that adaptive rank uses during training.

labelled rows ─┬─ one half: forward and backward ─► statistics ─► components in order of importance
               └─ other half: losses at several sizes ─► the smallest that is tolerated
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.adapters import peft_format
from rankwise.adapters.predict import Trained
from rankwise.engine.batches import token_batches
from rankwise.engine.compute import Compute, predict_logits
from rankwise.engine.execution import Engine
from rankwise.errors import RankwiseError
from rankwise.files import cache_folder, check_folder
from rankwise.lora.layer import lora_layers
from rankwise.models import hub
from rankwise.rank.components import NoOptimizer
from rankwise.rank.compress import compress as prune_to_smallest
from rankwise.rank.controller import RankController
from rankwise.rank.decision import Decision
from rankwise.run_folder import RunFolder
from rankwise.tasks import objectives
from rankwise.tasks.encoding import Encoded, Rows, encode
from rankwise.tasks.objectives import Objective

FEWEST = 100
"""Labelled rows that are needed at least: fewer can't tell sizes apart."""
TOKENS = 2048
"""Tokens of a batch at most."""
Progress = Callable[[int, int], None]
"""Called with (rows done, all rows)."""


@dataclass(frozen=True)
class Point:
    """One size of the adapter, on held-out rows.

    Attributes:
        components: of all layers.
        adapter_params: entries of the LoRA matrices.
        loss_increase: mean held-out loss minus the whole adapter's.
        error: its standard error, paired by example.
        accepted: held-out rows and statistics together tolerate this size.
    """

    components: int
    adapter_params: int
    loss_increase: float
    error: float
    accepted: bool


def compress(
    trained: Trained, rows: Rows, out: Path, on_progress: Progress = lambda done, of: None
) -> dict[str, Any]:
    """Write the smallest adapter whose loss increase on held-out rows is tolerated.

    Args:
        trained: an adapter on its base; changed in place.
        rows: labelled, and not trained on.
        out: folder for the smaller adapter.
        on_progress: called while statistics are collected.

    Returns:
        `rank`: module path → r; `adapter_params` and `adapter_params_before`; `tolerance`: loss increase that is tolerated; `rows`: how
        many were used for what; `curve`: a `Point` as a dict for each size that was evaluated, largest first.

    Raises:
        RankwiseError: no adapter, too few labelled rows, or `out` can't be written.
    """
    layers = lora_layers(trained.model)
    is_adapter = (trained.folder / peft_format.CONFIG).is_file()
    if not layers or not is_adapter:
        if is_adapter:
            peft_format.read(trained.folder)  # says why it isn't W0 + s·B·A
        raise RankwiseError(f"{trained.folder} is a whole model; there is no adapter to compress.")
    check_folder(out, trained.folder, hub.CONFIG)
    if rows.labels is None or len(rows) < FEWEST:
        raise RankwiseError(f"Too few labelled rows to tell sizes apart: {len(rows)}. Give {FEWEST} or more.")
    encoded = encode(rows, trained.tokenizer, trained.compute.max_length, cache_folder())
    order = np.random.default_rng(0).permutation(len(encoded))
    seen, held_out = (encoded.select(np.sort(half)) for half in np.array_split(order, 2))
    before = _size(trained.model)
    model, compute = trained.model.eval(), trained.compute
    objective = objectives.named(trained.task.problem)

    def losses() -> Tensor:
        logits = torch.from_numpy(predict_logits(model, held_out, compute, objective=objective))
        return objective.calibrated_losses(logits, torch.from_numpy(cast(np.ndarray, held_out.labels)))

    controller = RankController(model, losses, 1, NoOptimizer())
    controller.statistics.sums = collect_statistics(model, seen, compute, objective, on_progress)
    decisions = prune_to_smallest(controller)
    controller.sort()
    for layer in layers.values():
        layer.collect_statistics(False)
    peft_format.save(model, out, base_model=peft_format.read(trained.folder).base_model)
    peft_format.copy_tokenizer(trained.folder, out)
    _copy_record(trained.folder, out)
    earlier = RunFolder(trained.folder).read_ranks()
    RunFolder(out).write_ranks([*earlier, *(decision.to_json() for decision in decisions)])
    points = [_point(decision, model) for decision in decisions]
    return {
        "rank": controller.ranks,
        "adapter_params": _size(model),
        "adapter_params_before": before,
        "tolerance": decisions[0].limit if decisions else 0.0,
        "rows": {"statistics": len(seen), "held_out": len(held_out)},
        "curve": [vars(point) for point in sorted(points, key=lambda p: -p.components)],
    }


def collect_statistics(
    model: nn.Module, rows: Encoded, compute: Compute, objective: Objective, on_progress: Progress
) -> dict[str, Tensor]:
    """Sum up the statistics of every LoRA layer over labelled rows. No parameter changes.

    Returns:
        Module path → statistics of the layer (see `lora.layer`).
    """
    layers = lora_layers(model)
    for layer in layers.values():
        layer.collect_statistics()
    statistics = {path: cast(Tensor, layer.statistics) for path, layer in layers.items() if layer.rank}
    sums = {path: torch.zeros_like(tensor) for path, tensor in statistics.items()}
    single, done = replace(compute, engine=Engine()), 0
    with single.running(model):
        for which in token_batches(rows.lengths, TOKENS, compute.forward_rows):
            (batch,) = single.batches(model, rows, which)
            logits = single.logits(model, batch)
            loss = objective.example_losses(logits, cast(Tensor, batch.labels)).sum()
            gradients = torch.autograd.grad(loss, list(statistics.values()), allow_unused=True)
            for path, gradient in zip(statistics, gradients, strict=True):
                if gradient is not None:
                    sums[path] += gradient
            done += len(which)
            on_progress(done, len(rows))
    return sums


def _size(model: nn.Module) -> int:
    return sum(layer.lora_A.numel() + layer.lora_B.numel() for layer in lora_layers(model).values())


def _point(decision: Decision, model: nn.Module) -> Point:
    widths = {path: x.in_features + x.out_features for path, x in lora_layers(model).items()}
    ranks = {path: after for path, (_, after) in decision.changes.items()}
    ranks = {path: ranks.get(path, decision.ranks[path]) for path in widths}
    return Point(
        components=sum(ranks.values()),
        adapter_params=sum(rank * widths[path] for path, rank in ranks.items()),
        loss_increase=decision.loss_increase,
        error=decision.error,
        accepted=decision.accepted,
    )


def _copy_record(source: Path, out: Path) -> None:
    """Copy what evaluation and prediction need of a run's record: columns, labels, dtype."""
    run = RunFolder(source)
    if run.has_run:
        record = copy.deepcopy(run.read_run())
        RunFolder(out).write_request(record["requested"], record.get("assigned"))
        RunFolder(out).update_run_json(
            **{k: v for k, v in record.items() if k in ("facts", "task", "resolved")}
        )
