"""Measure how long the report of many runs takes, and how long its page takes to load in a browser.

    python benchmarks/report.py > report.json

The grid has 500 finished runs: 5 tasks × 10 methods × 10 seeds, each with 1,000 validation rows and 500 logged steps. Adaptive runs
have 60 rank decisions each. `rankwise report` is timed as a process, imports included. Headless Chromium opens the page with an empty
cache. `interactive` is the time until its table has sorted after a click, `drawn` the time until the last figure is drawn. The result
is one JSON object on stdout.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from rankwise.config import RunConfig
from rankwise.config_json import to_json
from rankwise.engine.measure import Spread
from rankwise.run_folder import RunFolder, run_name, write_grid
from rankwise.runs.recipes import resolve

TASKS = ("sst2", "rte", "mrpc", "qnli", "movies")
METHODS = (
    "full",
    *(f"lora:rank={2**k}" for k in range(6)),
    "lora:rslora=true",
    "lora:lora_dropout=0.1",
    "lora",
)
LAYERS = [
    f"roberta.encoder.layer.{i}.attention.self.{name}" for i in range(12) for name in ("query", "value")
]
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10, help="each has 50 runs [%(default)s]")
    parser.add_argument("--rows", type=int, default=1000, help="validation rows per run [%(default)s]")
    parser.add_argument("--steps", type=int, default=500, help="logged steps per run [%(default)s]")
    parser.add_argument("--repeats", type=int, default=5, help="timed reports [%(default)s]")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "grid"
        make(out, asked.seeds, asked.rows, asked.steps)
        reports = [report(out) for _ in range(asked.repeats)]
        page = out / "report.html"
        result: dict[str, Any] = {
            "runs": len(TASKS) * len(METHODS) * asked.seeds,
            "report_seconds": asdict(Spread.of(reports)),
            "page_mb": round(page.stat().st_size / 1e6, 3),
        }
        chromium = shutil.which("chromium")
        if chromium:
            opened = [open_page(chromium, page) for _ in range(asked.repeats)]
            for name in opened[0]:
                result[f"{name}_seconds"] = asdict(Spread.of([times[name] for times in opened]))
    print(json.dumps(result, ensure_ascii=False))


def make(out: Path, seeds: int, rows: int, steps: int) -> None:
    """Write run folders as a grid leaves them, with random figures."""
    chance = np.random.default_rng(0)
    for task in TASKS:
        label = chance.integers(0, 2, rows)
        for place, method in enumerate(METHODS):
            for seed in range(seeds):
                folder = RunFolder(out / run_name(task, method, seed))
                finish(
                    folder,
                    RunConfig(task=task, method=method, seed=seed),
                    label,
                    0.85 - 0.005 * place,
                    chance,
                )
                folder.append_steps(
                    [
                        {
                            "step": s,
                            "loss": 0.7 / s**0.2 + 0.05 * chance.random(),
                            "lr": 1e-3,
                            "grad_norm": 1.0,
                        }
                        | {"rows": 32, "tokens": 1600, "seconds": 0.1}
                        for s in range(1, steps + 1)
                    ]
                )
                if method == "lora":
                    decide(folder, steps, chance)
    write_grid(out, {"tasks": TASKS, "methods": METHODS, "seeds": seeds, "command": "rankwise compare"})


def finish(
    folder: RunFolder, config: RunConfig, label: np.ndarray, rate: float, chance: np.random.Generator
) -> None:
    """Write one run's record, predictions and result."""
    full, rows = config.method == "full", len(label)
    folder.write_request(to_json(config), {"threads": 2})
    settled = resolve(config, config.method.partition(":")[0])
    folder.update_run_json(
        resolved=to_json(replace(settled, train=replace(settled.train, lr=1e-3))),
        facts={"dtype": "bfloat16", "padding": "packed", "threads": 2},
        versions={"torch": "2.13.0"},
        hardware={"processor": "a processor", "cores": 2, "device": "cpu"},
    )
    prediction = np.where(chance.random(rows) < rate, label, 1 - label)
    folder.write_predictions(np.arange(rows), label, prediction, np.eye(2, dtype=np.float32)[prediction])
    score = float((prediction == label).mean())
    kinds = dict.fromkeys(("weights", "gradients", "optimizer", "activations", "batch", "workspace"), 50.0)
    folder.write_result(
        {
            "task": config.task,
            "method": config.method,
            "seed": config.seed,
            "model": "minilm",
            "metric": "accuracy",
        }
        | {"score": score, "scores": {"validation": {"accuracy": score, "loss": 0.4}}, "steps": 500}
        | {"n_train": 16_000, "n_validation": rows, "trainable_params": 22_700_000 if full else 75_000}
        | {"total_params": 22_700_000 if full else 22_775_000, "adapter_params": 0 if full else 74_000}
        | {
            "train_seconds": 60.0,
            "samples_per_second": 250 + 10 * chance.random(),
            "tokens_per_second": 9000.0,
        }
        | {"peak_rss_mb": 500.0, "peak_memory_mb": {"total": 300.0, **kinds}}
        | {"rank": dict.fromkeys(LAYERS, 8), "mean_rank": 8.0}
    )


def decide(folder: RunFolder, steps: int, chance: np.random.Generator) -> None:
    """Write rank decisions as adaptive rank logs them."""
    ranks = dict.fromkeys(LAYERS, 16)
    lines = [{"step": 0, "kind": "start", "accepted": True, "ranks": ranks}]
    for step in np.linspace(1, steps, 60, dtype=int).tolist():
        layer = LAYERS[int(chance.integers(len(LAYERS)))]
        after = int(chance.integers(0, 33))
        text = f"step {step}: {layer}: {ranks[layer]} → {after}; held-out loss without the rest: +0.0004 ± 0.0011"
        changes = {layer: [ranks[layer], after]}
        ranks = ranks | {layer: after}
        lines.append(
            {
                "step": step,
                "kind": "prune" if after < changes[layer][0] else "grow",
                "accepted": True,
                "ranks": ranks,
                "changes": changes,
                "text": text,
            }
        )
    (folder.path / "ranks.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )


def report(out: Path) -> float:
    """Return the seconds that `rankwise report` takes."""
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "rankwise", "report", str(out)], stdout=subprocess.DEVNULL, check=True
    )
    return time.perf_counter() - started


def open_page(chromium: str, file: Path) -> dict[str, float]:
    """Return the seconds from opening the page until it can be used, and until all figures are drawn."""
    from playwright.sync_api import sync_playwright  # a dependency of development

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        started = time.perf_counter()
        page.goto(file.as_uri(), wait_until="commit")
        page.locator("#results th button", has_text="Score").click()
        page.wait_for_selector("#results th[aria-sort=descending]")
        times = {"interactive": time.perf_counter() - started}
        page.wait_for_selector("html[data-drawn=all]")
        times["drawn"] = time.perf_counter() - started
        browser.close()
    return times


if __name__ == "__main__":
    main()
