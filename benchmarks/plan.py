"""What `rankwise plan` says beside what training takes: a whole epoch of the same lengths, followed step by step.

    python benchmarks/plan.py minilm roberta-base gpt2 llama        stored in benchmarks/results/plan; continues
    python benchmarks/plan.py --workers 2 minilm                    its batches in two parts side by side
    python benchmarks/plan.py                                       the table of what is stored, put into docs/memory.md

Weights are random: memory doesn't depend on them. Tensors are counted in bytes, on one thread; a batch in two parts side by side is
measured beside it with --workers 2, where how the parts lie to each other in time is up to the machine.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig

from rankwise import hardware
from rankwise.bench.lengths import draw, random_rows
from rankwise.bench.plan import Setting, Shapes, find_architecture, prepared
from rankwise.engine.batch_schedule import GivenBatches
from rankwise.engine.execution import Engine
from rankwise.engine.measure import megabytes
from rankwise.engine.packing import batch_order
from rankwise.rank.controller import START_RANK

RESULTS = Path(__file__).parent / "results/plan"
PAGE = Path(__file__).parents[1] / "docs/memory.md"
HEADING = "## Planned against measured"
SMALL_LLAMA = LlamaConfig(
    vocab_size=32000, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
    num_key_value_heads=4, max_position_embeddings=2048, pad_token_id=0,
)  # fmt: skip
METHODS = (("full", None), ("lora", 1), ("lora", 8), ("lora", 64), ("adaptive", START_RANK))
MODES = ("fast", "lean")
SHAPES = (("sst2", 16), ("qnli", 8), ("rte", 4))
BATCHES = 2
"""An epoch's: each is followed, the heaviest of them is planned for."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="minilm, roberta-base, gpt2, llama (a small one)")
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in asked.models:
        compare(name, asked.workers)
    table()


def compare(name: str, workers: int) -> None:
    """Every configuration of a model that isn't stored yet, planned, measured and stored."""
    torch.set_num_threads(1)
    file = RESULTS / f"{name}{f'-{workers}-workers' if workers > 1 else ''}.json"
    architecture = SMALL_LLAMA if name == "llama" else find_architecture(name)
    stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"rows": []}
    stored |= {"model": name, "workers": workers, "versions": hardware.versions()}
    stored |= {"hardware": hardware.hardware(torch.device("cpu"))}
    known = {
        tuple(row[key] for key in ("method", "rank", "lengths", "memory_mode")) for row in stored["rows"]
    }
    for method, rank in METHODS:
        setting = Setting(architecture, method, rank or 1, torch.bfloat16, "packed", workers)
        left = [
            (task, size, mode)
            for task, size in SHAPES
            for mode in MODES
            if (method, rank, task, mode) not in known
        ]
        if not left:
            continue
        planner, training = Shapes(setting), prepared(replace(setting, workers=1))
        for task, batch_size, mode in left:
            lengths = np.minimum(draw(task, BATCHES * batch_size, np.random.default_rng(7)), 512)
            lean = mode == "lean"
            peaks = [planner.peak(lengths[batch], recompute=lean) for batch in batches(lengths, batch_size)]
            planned = max(peaks, key=lambda peak: sum(peak.values()))
            measured = epoch(training, lengths, batch_size, Engine(workers, lean))
            off = sum(planned.values()) / sum(measured.values()) - 1
            stored["rows"].append(
                {"method": method, "rank": rank, "lengths": task, "batch_size": batch_size, "memory_mode": mode,
                 "planned_mb": megabytes(planned), "measured_mb": megabytes(measured), "off": off}
            )  # fmt: skip
            file.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
            done, of = len(stored["rows"]), len(METHODS) * len(SHAPES) * len(MODES)
            print(
                f"[{done}/{of}] {name} {method} {rank or ''} {task} {mode}: {100 * off:+.2f} %",
                file=sys.stderr,
            )


def batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """The epoch's, in order."""
    return batch_order(lengths, batch_size, seed=0)


def epoch(training: Any, lengths: np.ndarray, batch_size: int, engine: Engine) -> dict[str, int]:
    """Bytes by kind at the peak of an epoch, behind a step that makes the moments."""
    training.rows = random_rows(lengths, training.model.config, np.random.default_rng(0))
    training.compute = replace(training.compute, engine=engine, threads=engine.micro_batches)
    order = batches(lengths, batch_size)
    training.step_number, training.batches = 0, GivenBatches(order, 10**6)
    with training.compute.running(training.model):
        if not training.update.optimizer.state:
            training.step()
            training.step_number = 0
        with training.memory() as memory:
            for _ in order:
                training.step()
    return memory.peak


def table() -> None:
    """Puts what is stored into docs/memory.md and prints it: the range over batch shapes for each model, method and mode."""
    lines = ["| model | method | memory | measured MB | planned − measured |", "|---|---|---|---:|---:|"]
    worst = {1: 0.0, 2: 0.0}
    for file in sorted(RESULTS.glob("*.json")):
        stored = json.loads(file.read_text(encoding="utf-8"))
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in stored["rows"]:
            label = row["method"] if row["rank"] is None else f"{row['method']} r={row['rank']}"
            groups.setdefault((label, row["memory_mode"]), []).append(row)
        what = stored["model"] + (
            f", {stored['workers']} parts side by side" if stored["workers"] > 1 else ""
        )
        for (label, mode), rows in groups.items():
            totals, off = (
                [r["measured_mb"]["total"] for r in rows],
                [round(100 * r["off"], 2) + 0.0 for r in rows],
            )
            worst[stored["workers"]] = max(worst[stored["workers"]], *map(abs, off))
            lines.append(
                f"| {what} | {label} | {mode} | {min(totals):,.0f} – {max(totals):,.0f} | {min(off):+.2f} to {max(off):+.2f} % |"
            )
    intro = (
        f"Over three batch shapes each ({', '.join(f'{size} rows of {task}' for task, size in SHAPES)}), an epoch of {BATCHES} batches, "
        "random weights, one thread a part; made by `python benchmarks/plan.py minilm roberta-base gpt2 llama`, stored in "
        "`benchmarks/results/plan/`. "
        f"One part at a time the plan is off by {worst[1]:.2f} % at most, two side by side (`--workers 2`) by {worst[2]:.2f} %.\n\n"
    )
    page = PAGE.read_text(encoding="utf-8")
    before = page[: page.index(HEADING)]
    PAGE.write_text(f"{before}{HEADING}\n\n{intro}" + "\n".join(lines) + "\n", encoding="utf-8")
    print(intro + "\n".join(lines))


if __name__ == "__main__":
    main()
