"""One run from its request to its result: rows, model, method, training, score. The grid and `rankwise train` both come here.

A run tells what it does through events (plain dicts: start, step, evaluate, result), and keeps what it makes in its run folder.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from sklearn.model_selection import train_test_split
from torch import nn
from transformers import PreTrainedModel

from rankwise import hardware
from rankwise.adapters import peft_format
from rankwise.config import RunConfig, from_json, to_json
from rankwise.engine import checkpoint
from rankwise.engine.autotune import tune
from rankwise.engine.compute import Compute, predict_logits
from rankwise.engine.execution import Engine
from rankwise.engine.measure import PeakRss, allocated_peak_mb, product_rate
from rankwise.engine.profiling import profiled_steps
from rankwise.engine.training import Training
from rankwise.errors import RankwiseError
from rankwise.files import cache_folder, damaged
from rankwise.lora import quantized
from rankwise.lora.layer import lora_layers
from rankwise.models import families, loading
from rankwise.models.loading import Source
from rankwise.rank.decision import start_line
from rankwise.run_folder import RunFolder
from rankwise.runs import methods, model_card, recipes, warm_start
from rankwise.runs.methods import parse
from rankwise.runs.tensorboard import Board
from rankwise.seeding import stream_seed
from rankwise.tasks.encoding import Encoded, encode
from rankwise.tasks.load import load_dataset
from rankwise.tasks.losses import class_weights, mean_loss
from rankwise.tasks.metrics import score
from rankwise.tasks.problems import Labels, problem_of, strata
from rankwise.tasks.splits import Dataset

if TYPE_CHECKING:
    from rankwise.runs.peft_methods import Peer

Emit = Callable[[dict[str, Any]], None]

CHECKPOINT_SECONDS = 20.0
"""Time between checkpoints at least."""
CHECKPOINT_SHARE = 0.02
"""Share of a run's time that checkpoints may take."""
HELD_OUT = 0.1
"""Share of the training rows that early stopping is decided on, 1,000 rows at most."""


@dataclass
class Prepared:
    """Everything a run works with once its model is loaded."""

    config: RunConfig
    method: str
    dataset: Dataset
    source: Source
    model: nn.Module
    peer: "Peer | None"
    """What saves the model, where PEFT does."""
    training: Training
    validation: dict[str, Encoded]
    held_out: Encoded | None
    rss: PeakRss
    facts: dict[str, Any]
    notes: list[str]
    board: Board = field(default_factory=Board)


def execute(folder: RunFolder, emit: Emit) -> dict[str, Any]:
    """Runs what `folder` asks for, from its checkpoint if it has one, and returns the result it wrote there.

    Raises:
        RankwiseError: bad input, or a loss that is not a number.
    """
    run = prepare(folder, emit)
    config, training = run.config, run.training
    folder.update_run_json(
        resolved=to_json(config),
        facts=run.facts,
        task=to_json(run.dataset.task),
        versions=hardware.versions(),
        hardware=hardware.hardware(training.compute.device),
    )
    stored = folder.checkpoint
    if stored is not None:
        try:
            checkpoint.load(training, stored)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise damaged(stored, error, "Remove it to begin this run anew.") from None
        run.notes.append(f"Continued from step {training.step_number}.")
    stopping = Stopping(config.train.patience)
    stopping.load(folder, training.step_number)
    emit(
        {
            "event": "start",
            "task": run.dataset.task.name,
            "method": config.method,
            "seed": config.seed,
            "steps": training.steps,
            "notes": run.notes,
        }
    )
    folder.truncate_steps(training.step_number)
    if (folder.read_run().get("assigned") or {}).get("tensorboard"):
        run.board = Board(folder.path, training.step_number)
    _train(run, folder, stopping, emit)
    peak_rss_mb = run.rss.mb
    result = _finish(run, folder, peak_rss_mb, emit)
    run.board.close(training.step_number, result["scores"])
    emit({"event": "result", **result})
    return result


def prepare(folder: RunFolder, emit: Emit) -> Prepared:
    """Loads rows and model and makes the method's `Training`, without a step taken."""
    record = folder.read_run()
    config = from_json(RunConfig, record["requested"])
    assigned = record.get("assigned") or {}
    method_name, lora, lr = parse(config.method, config.lora)
    options = config.train if lr is None else replace(config.train, lr=lr)
    config = recipes.resolve(replace(config, lora=lora, train=options), method_name)
    method = methods.named(method_name)
    facts = record.get("facts") or {}

    threads = facts.get("threads") or config.model.threads or assigned.get("threads") or hardware.cores()
    torch.set_num_threads(threads)
    device = hardware.choose_device(config.model.device)
    dtype, why = hardware.choose_dtype(facts.get("dtype") or config.model.dtype, device)
    why = "as this run began" if facts else why

    if config.model.base_bits is not None:
        _check_base_bits(config, method_name, device)
    dataset = load_dataset(config)
    source = warm_start.locate(config)
    cache = cache_folder()
    train = encode(dataset.train, source.tokenizer, source.max_length, cache)
    validation = {
        s: encode(rows, source.tokenizer, source.max_length, cache) for s, rows in dataset.validation.items()
    }
    held_out = None
    if config.train.patience is not None:
        train, held_out = hold_out(train, config.seed)

    rss = PeakRss()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    model, new_modules, started = warm_start.load(
        config,
        source,
        dataset.task,
        dtype=dtype if method.frozen_base else torch.float32,
    )
    peer = methods.prepare(model, method_name, config, new_modules, train)
    model.to(device)  # pyright: ignore[reportArgumentType]
    if config.model.base_bits is not None:
        quantized.quantize(model, config.model.base_bits)
    trained: nn.Module = model if peer is None else peer.model.to(device)
    lr = recipes.resolve_lr(config, method_name, families.width(source.config))
    compute = Compute.for_model(
        trained,
        dtype=dtype,
        frozen_base=method.frozen_base,
        padding=facts.get("padding") or config.train.padding or "packed",
        max_length=source.max_length,
        pad_id=loading.pad_id(source.tokenizer),
        threads=threads,
    )
    config = replace(
        config,
        train=replace(config.train, lr=lr.value, padding=compute.padding),
        model=replace(config.model, model=source.name),
    )
    weights = None
    if config.train.class_weights is not None:
        weights = class_weights(config.train.class_weights, dataset.task.label_names, _labels(train))
    training = Training(
        trained,
        train,
        options=config.train,
        compute=compute,
        seed=config.seed,
        hooks=None if peer is None else peer.act,
        class_weights=weights,
    )
    if facts.get("engine"):
        training.compute = replace(compute, engine=Engine.from_json(facts["engine"]))
        engine_why = "run as this run began"
    else:
        engine_why = tune(training, memory=config.model.memory, cache=cache)
    dtype_name = str(dtype).removeprefix("torch.")
    notes = [
        f"{source.name} on {device.type}, {threads} thread{'s' * (threads != 1)}, {dtype_name} ({why}); "
        f"{_bits(config.model.base_bits)}"
        f"{'; '.join(filter(None, [compute.padding_reason, engine_why]))}.",
        f"Learning rate {lr.value:g} ({lr.why}); {training.steps} steps of {training.batches.batch_size} rows.",
        f"{len(train):,} training rows, {len(next(iter(validation.values()))):,} validation rows.",
        *filter(None, [started, training.rank_note, _said(weights, dataset.task.label_names)]),
        *dataset.notes,
    ]
    cut = train.n_truncated + sum(v.n_truncated for v in validation.values())
    if cut:
        were = "text was" if cut == 1 else "texts were"
        notes.append(f"{cut:,} {were} longer than {source.max_length} tokens and truncated.")
    facts = {
        "threads": threads,
        "dtype": dtype_name,
        "padding": compute.padding,
        "max_length": source.max_length,
        "engine": training.compute.engine.to_json(),
        "learning_rate_from": lr.why,
    }
    if config.model.base_bits is not None:
        facts["base_bits"] = config.model.base_bits
    if weights is not None:
        facts["class_weights"] = dict(zip(dataset.task.label_names, weights.tolist(), strict=True))
    return Prepared(
        config, method_name, dataset, source, trained, peer, training, validation, held_out, rss, facts, notes
    )


def _check_base_bits(config: RunConfig, method: str, device: torch.device) -> None:
    """Refuses quantized weights where they would be trained, or can't be had."""
    if method not in ("lora", "adaptive"):
        raise RankwiseError(
            f"--base-bits {config.model.base_bits} is for lora and adaptive, whose base is frozen; {method} is neither."
        )
    quantized.check(device)


def _bits(base_bits: int | None) -> str:
    return "" if base_bits is None else f"frozen linear layers in {base_bits} bits; "


def _said(weights: torch.Tensor | None, names: Sequence[str]) -> str:
    """The class weights in a sentence; nothing where there are none."""
    if weights is None:
        return ""
    each = ", ".join(f"{name} {weight:.3g}" for name, weight in zip(names, weights.tolist(), strict=True))
    return f"Class weights in the training loss: {each}."


def hold_out(rows: Encoded, seed: int) -> tuple[Encoded, Encoded]:
    """Splits off `HELD_OUT` of the rows, stratified by label, the same for every method with this seed."""
    n = min(1000, max(1, round(len(rows) * HELD_OUT)))
    kept, held = train_test_split(
        np.arange(len(rows)),
        test_size=n,
        random_state=stream_seed(seed, "held out") % 2**32,
        stratify=strata(_labels(rows)),
    )
    return rows.select(np.sort(kept)), rows.select(np.sort(held))


class Stopping:
    """Early stopping on held-out loss: over when it hasn't improved for `patience` checks, one an epoch."""

    def __init__(self, patience: int | None) -> None:
        self.patience = patience
        self.losses: list[tuple[int, float]] = []

    def add(self, step: int, loss: float) -> None:
        self.losses.append((step, loss))

    @property
    def stop(self) -> bool:
        if self.patience is None or not self.losses:
            return False
        values = [loss for _, loss in self.losses]
        return len(values) - 1 - values.index(min(values)) >= self.patience

    def load(self, folder: RunFolder, step: int) -> None:
        """Takes up the checks made up to `step` from the run's log."""
        for line in folder.read_steps():
            if "held_out_loss" in line and line["step"] <= step:
                self.add(line["step"], line["held_out_loss"])


def _train(run: Prepared, folder: RunFolder, stopping: Stopping, emit: Emit) -> None:
    training, config = run.training, run.config.train
    profiled = profiled_steps(
        training.batches, training.rows, training.compute
    )  # first: the time it takes has nothing that a checkpoint would save
    pace = _Pace()
    told = len(training.decisions)
    if training.rank is not None and not folder.read_ranks():
        folder.append_ranks([start_line(training.rank.ranks)])
    while not training.done and not stopping.stop:
        with training.compute.running(run.model):
            step = training.step(profile=training.step_number in profiled)
        line: dict[str, Any] = {
            "step": step.step,
            "loss": step.loss,
            "lr": step.lr,
            "grad_norm": step.grad_norm,
            "rows": step.rows,
            "tokens": step.tokens,
            "seconds": round(step.seconds, 6),
        }
        if step.memory is not None:
            line["memory"] = step.memory
        if step.flops is not None:
            line["flops"] = step.flops
        if config.evaluate_every and step.step % config.evaluate_every == 0:
            line["validation"] = _evaluate(run, next(iter(run.validation)), emit)[1]
        if run.held_out is not None and step.step % training.batches.steps_per_epoch == 0:
            logits = predict_logits(run.model, run.held_out, training.compute)
            line["held_out_loss"] = mean_loss(logits, _labels(run.held_out))
            stopping.add(step.step, line["held_out_loss"])
        folder.append_steps([line])
        for decision in training.decisions[told:]:
            folder.append_ranks([decision.to_json()])
            emit({"event": "rank", "text": str(decision)})
        told = len(training.decisions)
        run.board.step(line)
        if pace.report(training.done):
            emit(_progress(training, step.loss))
        if pace.checkpoint() and not training.done:
            pace.spent(_checkpoint(training, folder))


def _progress(training: Training, loss: float) -> dict[str, Any]:
    a_step = training.seconds / training.step_number
    return {
        "event": "step",
        "step": training.step_number,
        "steps": training.steps,
        "loss": loss,
        "rows_per_second": training.speed.rows_per_second,
        "tokens_per_second": training.speed.tokens_per_second,
        "seconds_left": a_step * (training.steps - training.step_number),
    }


def _checkpoint(training: Training, folder: RunFolder) -> float:
    started = time.perf_counter()
    folder.replace_checkpoint(partial(checkpoint.save, training))
    return time.perf_counter() - started


class _Pace:
    """When to report (twice a second) and when to write a checkpoint (each `CHECKPOINT_SECONDS`, or less often where it takes long)."""

    def __init__(self) -> None:
        self._reported = 0.0
        self._written = time.perf_counter()
        self._interval = CHECKPOINT_SECONDS

    def report(self, last: bool) -> bool:
        now = time.perf_counter()
        if now - self._reported < 0.5 and not last:
            return False
        self._reported = now
        return True

    def checkpoint(self) -> bool:
        return time.perf_counter() - self._written >= self._interval

    def spent(self, seconds: float) -> None:
        self._written, self._interval = (
            time.perf_counter(),
            max(CHECKPOINT_SECONDS, seconds / CHECKPOINT_SHARE),
        )


def _labels(rows: Encoded) -> Labels:
    if rows.labels is None:
        raise RankwiseError("These rows have no labels to score against. Name their column with --label.")
    return rows.labels


def _evaluate(run: Prepared, split: str, emit: Emit) -> tuple[np.ndarray, dict[str, float]]:
    rows = run.validation[split]
    logits = predict_logits(
        run.model,
        rows,
        run.training.compute,
        on_progress=lambda done, of: emit({"event": "evaluate", "split": split, "done": done, "of": of}),
    )
    scores = score(run.dataset.task.metrics, _labels(rows), logits)
    loss = mean_loss(logits, _labels(rows))
    if not math.isfinite(loss):
        raise RankwiseError(
            f"The loss on the {split} rows is {loss} after step {run.training.step_number} of {run.training.steps}. "
            f"Lower --lr (now {run.training.peak_lr:g}), or use --dtype float32."
        )
    return logits, scores | {"loss": loss}


def _finish(run: Prepared, folder: RunFolder, peak_rss_mb: float | None, emit: Emit) -> dict[str, Any]:
    scores: dict[str, dict[str, float]] = {}
    for i, split in enumerate(run.validation):
        logits, scores[split] = _evaluate(run, split, emit)
        if i == 0:
            rows = run.validation[split]
            labels = _labels(rows)
            folder.write_predictions(rows.idx, labels, problem_of(labels).predict(logits), logits)
    if run.peer is not None:
        run.peer.save(folder.path, run.source.name)
    elif methods.named(run.method).frozen_base:
        peft_format.save(run.model, folder.path, base_model=run.source.name)
    elif (folder.read_run().get("assigned") or {}).get("keep_model", True):
        with loading.quiet():
            cast(PreTrainedModel, run.model).save_pretrained(folder.path)
            run.source.tokenizer.save_pretrained(folder.path)
    result = _result(
        run,
        scores,
        peak_rss_mb,
        followed=[line for line in folder.read_steps() if "memory" in line],
        shared=(folder.read_run().get("assigned") or {}).get("shared_machine", False),
    )
    if (folder.path / peft_format.CONFIG).is_file():
        model_card.write(folder.path, folder.read_run(), result)
    folder.write_result(result)
    folder.remove_checkpoint()
    return result


def _result(
    run: Prepared,
    scores: dict[str, dict[str, float]],
    peak_rss_mb: float | None,
    *,
    followed: list[dict[str, Any]],
    shared: bool,
) -> dict[str, Any]:
    config, training, task = run.config, run.training, run.dataset.task
    headline = next(iter(scores))
    layers = lora_layers(run.model)
    trained = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    adapter = sum(layer.lora_A.numel() + layer.lora_B.numel() for layer in layers.values())
    if run.peer is not None:
        adapter = trained - run.peer.head_params
    ranks = {path: layer.rank for path, layer in layers.items()}
    return {
        "task": task.name,
        "method": config.method,
        "seed": config.seed,
        "model": run.source.name,
        "metric": task.metrics[0],
        "score": scores[headline][task.metrics[0]],
        "scores": scores,
        "n_train": len(training.rows),
        "n_validation": len(run.validation[headline]),
        "trainable_params": trained,
        "total_params": sum(p.numel() for p in run.model.parameters()),
        "adapter_params": adapter,
        "head_params": trained - adapter if adapter else None,
        "steps": training.step_number,
        "train_seconds": training.seconds,
        "samples_per_second": None if shared else training.speed.rows_per_second,
        "tokens_per_second": None if shared else training.speed.tokens_per_second,
        "speed": None if shared else _speed(run, [line for line in followed if "flops" in line]),
        "peak_memory_mb": max((line["memory"] for line in followed), key=lambda m: m["total"], default=None),
        "peak_rss_mb": peak_rss_mb,
        "peak_cuda_mb": allocated_peak_mb(training.compute.device),
        "rank": ranks,
        "mean_rank": sum(ranks.values()) / len(ranks) if ranks else None,
        "rank_seconds": training.rank_seconds if training.rank else None,
        "held_out_passes_rows": training.rank.held_out.rows_seen if training.rank else None,
        "lr": config.train.lr,
        "padding": config.train.padding,
        "device": training.compute.device.type,
        "dtype": run.facts["dtype"],
        "threads": run.facts["threads"],
    }


def _speed(run: Prepared, followed: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What the steps of this process took and went into; None where none counts.

    Returns:
        `step_seconds` {median, min, max}; `shares` of the time; `flops_per_step` of matrix products, from the steps in which they were
        counted; `flops_per_second`; and `product_share`: of what large matrix products alone reach on this machine.
    """
    training, speed = run.training, run.training.speed
    if speed.step_seconds is None or speed.tokens_per_step is None or not followed:
        return None
    a_token = sum(line["flops"] for line in followed) / sum(line["tokens"] for line in followed)
    a_step = a_token * speed.tokens_per_step
    a_second = a_token * cast(float, speed.tokens_per_second)
    device = training.compute.device
    key = f"{hardware.hardware(device)['processor']}, {device.type}, {run.facts['threads']} threads"
    rate = product_rate(device, getattr(torch, run.facts["dtype"]), key, cache_folder())
    return {
        "step_seconds": asdict(speed.step_seconds),
        "shares": speed.shares,
        "flops_per_step": a_step,
        "flops_per_second": a_second,
        "product_share": a_second / rate,
    }


def describe(event: dict[str, Any]) -> str:
    """An event as the line of JSON a worker prints."""
    return json.dumps(event, allow_nan=True)  # ASCII, whatever encoding the worker's stdout has
