"""Finished run folders whose every figure is planted: what reports are tested on."""

import json
from pathlib import Path

import numpy as np

from rankwise.config import RunConfig, TrainOptions
from rankwise.config_json import to_json
from rankwise.run_folder import RunFolder, run_name
from rankwise.runs.recipes import resolve

N = 20
"""Validation rows of each run."""


def request(task: str, method: str, seed: int, **train) -> RunConfig:
    return resolve(
        RunConfig(task=task, method=method, seed=seed, train=TrainOptions(recipe="poster", lr=2e-5, **train)),
        method.partition(":")[0],
    )


def finished(out, task="sst2", method="lora", seed=0, *, wrong=(0,), idx=None, config=None, n=N, **entries):
    """A finished run that is wrong on the rows `wrong`."""
    folder = RunFolder(out / run_name(task, method, seed))
    config = config or request(task, method, seed)
    folder.write_request(to_json(RunConfig(task=task, method=method, seed=seed)))
    folder.update_run_json(
        resolved=to_json(config),
        facts={"dtype": "bfloat16", "padding": "packed", "threads": 2},
        versions={"torch": "2.13.0"},
        hardware={"processor": "a processor", "cores": 2, "device": "cpu"},
        task={"label_names": ["negative", "positive"]},
    )
    label = np.arange(n) % 2
    prediction = label.copy()
    prediction[list(wrong)] = 1 - prediction[list(wrong)]
    folder.write_predictions(np.arange(n) if idx is None else idx, label, prediction, np.eye(2)[prediction])
    score = 1 - len(wrong) / n
    lora = method.startswith("lora")
    result = {
        "task": task,
        "method": method,
        "seed": seed,
        "model": "minilm",
        "metric": "accuracy",
        "score": score,
        "scores": {"validation": {"accuracy": score, "loss": 0.4}},
        "n_train": 1234,
        "n_validation": n,
        "trainable_params": 30_000 if lora else 1_000_000,
        "total_params": 1_020_000 if lora else 1_000_000,
        "adapter_params": 20_000 if lora else 0,
        "head_params": 10_000 if lora else None,
        "train_seconds": 60.0,
        "samples_per_second": 100.0,
        "tokens_per_second": 2000.0,
        "peak_rss_mb": 500.0,
        "rank": {"query": 8} if lora else {},
    }
    folder.write_result(result | entries)
    return folder


def decide(folder: RunFolder, *decisions: dict) -> None:
    """Writes ranks.jsonl."""
    text = "".join(json.dumps(decision) + "\n" for decision in decisions)
    (Path(folder.path) / "ranks.jsonl").write_text(text, encoding="utf-8")
