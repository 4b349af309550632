"""The end of a run: scores, predictions, the saved adapter or model, and result.json."""

from dataclasses import asdict
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from rankwise import hardware
from rankwise.adapters import curve_file, peft_format
from rankwise.engine import sharding
from rankwise.engine.measure import allocated_peak_mb, product_rate
from rankwise.files import cache_folder
from rankwise.lora.layer import lora_layers
from rankwise.models import loading
from rankwise.run_folder import RunFolder
from rankwise.runs import curve, model_card, parent, texts
from rankwise.runs.evaluation import evaluate, labels
from rankwise.runs.events import Emit, optional
from rankwise.runs.prepare import Prepared
from rankwise.tasks import look, quality

Scores = dict[str, dict[str, float]]
"""Split → metric → score."""


def finish(run: Prepared, folder: RunFolder, emit: Emit, *, peak_rss_mb: float | None) -> dict[str, Any]:
    """Evaluate and save a trained run, and return what result.json holds.

    Where several processes evaluate it, the first one saves it; the others return nothing.

    Args:
        run: after its last step.
        folder: where everything is written.
        emit: told how far evaluation is.
        peak_rss_mb: the process's memory at its peak in training.
    """
    scores, measured = _evaluate(run, folder, emit)
    with sharding.whole(run.model, keep=folder.writes):
        if folder.writes:
            _save(run, folder, keep_model=run.assigned.keep_model)
    if folder.writes and not run.training.compute.sharded:
        with optional("The texts for a few prompts", emit):
            texts.write(run, folder)
    with optional("The curve of the adapter's sizes", emit):
        if (sizes := curve.measure(run)) is not None and folder.writes:
            curve_file.write(folder.path, sizes)
    if not folder.writes:
        return {}
    result = {
        **_scores(run, scores),
        "quality": measured and measured.to_json(),
        **_sizes(run),
        **_costs(run, folder, emit, peak_rss_mb=peak_rss_mb),
        **_ranks(run),
        "lr": run.config.train.lr,
        "padding": run.config.train.padding,
        "device": run.training.compute.device.type,
        "dtype": run.facts["dtype"],
        "threads": run.facts["threads"],
        **_processes(run),
    }
    if (folder.path / peft_format.CONFIG).is_file():
        with optional("The model card", emit):
            model_card.write(folder.path, folder.read_run(), result, curve_file.read(folder.path))
    folder.write_result(result)
    folder.remove_checkpoint()
    return result


def _evaluate(run: Prepared, folder: RunFolder, emit: Emit) -> tuple[Scores, quality.Quality | None]:
    """Return the scores on every split, and how good the headline split's predictions are, which are written."""
    scores: Scores = {}
    task, measured = run.rows.dataset.task, []
    for split, rows in run.rows.validation.items():
        logits, scores[split] = evaluate(
            run.training, rows, split=split, task=run.rows.dataset.task, emit=emit
        )
        if split == run.rows.headline:
            predictions = run.rows.objective.predict(logits)
            folder.write_predictions(rows.idx, labels(rows), predictions, logits)
            most_frequent = look.most_frequent(run.look, task.problem)
            measured.append(
                quality.measure(
                    run.rows.objective,
                    task.metrics[0],
                    task.label_names,
                    labels(rows),
                    logits,
                    most_frequent=most_frequent,
                )
            )
    return scores, measured[0]


def _save(run: Prepared, folder: RunFolder, *, keep_model: bool) -> None:
    """Write the adapter, or the whole model where the base was trained, too; and the tokenizer, so that the folder can travel."""
    if run.adapted is not None:
        run.adapted.save(folder.path, run.source.name)
    elif run.method.frozen_base:
        peft_format.save(run.model, folder.path, base_model=run.source.name)
    elif keep_model:
        with loading.quiet():
            cast(PreTrainedModel, run.model).save_pretrained(folder.path)
    if keep_model:  # the runs of a grid would each have a copy
        peft_format.save_tokenizer(run.source.tokenizer, folder.path)


def _scores(run: Prepared, scores: Scores) -> dict[str, Any]:
    task, headline = run.rows.dataset.task, run.rows.headline
    return {
        "task": task.name,
        "method": run.config.method,
        "seed": run.config.seed,
        "model": run.source.name,
        "metric": task.metrics[0],
        "score": scores[headline][task.metrics[0]],
        "scores": scores,
        "n_train": len(run.training.rows),
        "n_validation": len(run.rows.validation[headline]),
    }


def _sizes(run: Prepared) -> dict[str, Any]:
    """Return the numbers of parameters."""
    trained = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    layers = lora_layers(run.model).values()
    adapter = sum(layer.lora_A.numel() + layer.lora_B.numel() for layer in layers)
    if run.adapted is not None:
        adapter = trained - run.adapted.head_params
    return {
        "trainable_params": trained,
        "total_params": sum(p.numel() for p in run.model.parameters()),
        "adapter_params": adapter,
        "head_params": trained - adapter if adapter else None,
    }


def _costs(run: Prepared, folder: RunFolder, emit: Emit, *, peak_rss_mb: float | None) -> dict[str, Any]:
    """Return time, speed and memory; speed only if the run had the machine to itself."""
    shared = run.assigned.shared_machine or parent.shares_machine()
    training, speed = run.training, None if shared else run.training.speed
    memory = shares = None
    with optional("The speed and memory of a step", emit):
        profiled = [line for line in folder.read_steps() if "memory" in line]
        memory = max((line["memory"] for line in profiled), key=lambda m: m["total"], default=None)
        shares = speed and _speed(run, [line for line in profiled if "flops" in line])
    return {
        "steps": training.step_number,
        "skipped_steps": training.skipped_steps,
        "train_seconds": training.seconds,
        "samples_per_second": speed and speed.rows_per_second,
        "tokens_per_second": speed and speed.tokens_per_second,
        "speed": shares,
        "peak_memory_mb": memory,
        "peak_rss_mb": peak_rss_mb,
        "peak_cuda_mb": allocated_peak_mb(training.compute.device),
    }


def _processes(run: Prepared) -> dict[str, Any]:
    """Return how many processes trained, and the bytes that each sent a step; nothing of a single one."""
    processes = run.training.compute.processes
    return (
        {}
        if processes.count == 1
        else {"processes": processes.count, "bytes_sent_a_step": processes.bytes_sent}
    )


def _speed(run: Prepared, profiled: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return what a step took in this process, or None if no step was measured.

    Args:
        run: after its last step.
        profiled: lines of the steps whose operations were counted.

    Returns:
        `step_seconds` {median, min, max}; `shares` of the time; `flops_per_step` of matrix products; `flops_per_second`; and
        `product_share`: the fraction of what large matrix products alone reach on this machine.
    """
    training, speed = run.training, run.training.speed
    if speed.step_seconds is None or speed.tokens_per_step is None or not profiled:
        return None
    flops_a_token = sum(line["flops"] for line in profiled) / sum(line["tokens"] for line in profiled)
    flops_a_step = flops_a_token * speed.tokens_per_step
    flops_a_second = flops_a_token * cast(float, speed.tokens_per_second)
    device = training.compute.device
    key = f"{hardware.hardware(device)['processor']}, {device.type}, {run.facts['threads']} threads"
    rate = product_rate(device, getattr(torch, run.facts["dtype"]), key, cache_folder())
    return {
        "step_seconds": asdict(speed.step_seconds),
        "shares": speed.shares,
        "flops_per_step": flops_a_step,
        "flops_per_second": flops_a_second,
        "product_share": flops_a_second / (rate * training.compute.processes.count),
    }


def _ranks(run: Prepared) -> dict[str, Any]:
    """Return the rank of each layer, and what finding them took."""
    training, ranks = run.training, {path: layer.rank for path, layer in lora_layers(run.model).items()}
    return {
        "rank": ranks,
        "mean_rank": sum(ranks.values()) / len(ranks) if ranks else None,
        "rank_summary": training.rank.summary if training.rank and training.rank.done else None,
        "rank_seconds": training.rank_seconds if training.rank else None,
        "held_out_passes_rows": training.rank.held_out.rows_seen if training.rank else None,
    }
