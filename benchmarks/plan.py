"""Compare the memory that `rankwise plan` predicts with the memory that training takes, over an epoch of the same lengths.

    python benchmarks/plan.py minilm roberta-base gpt2 llama        stores results in benchmarks/results/plan; continues
    python benchmarks/plan.py --micro-batches 2 minilm              two micro-batches side by side
    python benchmarks/plan.py                                       writes the table of docs/memory.md from what is stored

Weights are random, because memory does not depend on them. Tensors are counted in bytes, with one thread per micro-batch. How two
micro-batches interleave in time is up to the machine.
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
from rankwise.bench.plan import MemoryPlanner, Setting, build_training, find_architecture
from rankwise.engine.batch_schedule import GivenBatches
from rankwise.engine.batches import batch_order
from rankwise.engine.execution import Engine
from rankwise.engine.measure import megabytes
from rankwise.lora.scaling import START_RANK

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
"""Batches of an epoch. Each is measured; the heaviest is planned for."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="minilm, roberta-base, gpt2, llama (a small one)")
    parser.add_argument("--micro-batches", type=int, default=1, help="side by side [%(default)s]")
    asked = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in asked.models:
        compare(name, asked.micro_batches)
    table()


def compare(name: str, micro_batches: int) -> None:
    """Plan, measure and store every configuration of a model that is not stored yet."""
    torch.set_num_threads(1)
    file = RESULTS / f"{name}{f'-{micro_batches}-micro-batches' if micro_batches > 1 else ''}.json"
    architecture = SMALL_LLAMA if name == "llama" else find_architecture(name)
    stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"rows": []}
    stored |= {"model": name, "micro_batches": micro_batches, "versions": hardware.versions()}
    stored |= {"hardware": hardware.hardware(torch.device("cpu"))}
    known = {
        tuple(row[key] for key in ("method", "rank", "lengths", "memory_mode")) for row in stored["rows"]
    }
    for method, rank in METHODS:
        setting = Setting(architecture, method, rank or 1, torch.bfloat16, "packed", micro_batches)
        left = [
            (task, size, mode)
            for task, size in SHAPES
            for mode in MODES
            if (method, rank, task, mode) not in known
        ]
        if not left:
            continue
        planner, training = MemoryPlanner(setting), build_training(replace(setting, micro_batches=1))
        for task, batch_size, mode in left:
            lengths = np.minimum(draw(task, BATCHES * batch_size, np.random.default_rng(7)), 512)
            lean = mode == "lean"
            peaks = [planner.peak(lengths[batch], recompute=lean) for batch in batches(lengths, batch_size)]
            planned = max(peaks, key=lambda peak: sum(peak.values()))
            measured = epoch(training, lengths, batch_size, Engine(micro_batches, lean))
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
    """Return the batches of the epoch, in order."""
    return batch_order(lengths, batch_size, seed=0)


def epoch(training: Any, lengths: np.ndarray, batch_size: int, engine: Engine) -> dict[str, int]:
    """Return bytes by kind at the peak of an epoch, after a step that makes the optimizer's state."""
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
    """Write what is stored into docs/memory.md and print it: the range over batch shapes for each model, method and mode."""
    lines = ["| model | method | memory | measured MB | planned − measured |", "|---|---|---|---:|---:|"]
    worst = {1: 0.0, 2: 0.0}
    for file in sorted(RESULTS.glob("*.json")):
        stored = json.loads(file.read_text(encoding="utf-8"))
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in stored["rows"]:
            label = row["method"] if row["rank"] is None else f"{row['method']} r={row['rank']}"
            groups.setdefault((label, row["memory_mode"]), []).append(row)
        what = stored["model"] + (
            f", {stored['micro_batches']} micro-batches side by side" if stored["micro_batches"] > 1 else ""
        )
        for (label, mode), rows in groups.items():
            totals, off = (
                [r["measured_mb"]["total"] for r in rows],
                [round(100 * r["off"], 2) + 0.0 for r in rows],
            )
            side_by_side = stored["micro_batches"]
            worst[side_by_side] = max(worst[side_by_side], *map(abs, off))
            lines.append(
                f"| {what} | {label} | {mode} | {min(totals):,.0f} – {max(totals):,.0f} | {min(off):+.2f} to {max(off):+.2f} % |"
            )
    intro = (
        f"Each row covers three batch shapes ({', '.join(f'{size} rows of {task}' for task, size in SHAPES)}), in an epoch of "
        f"{BATCHES} batches with random weights and one thread per micro-batch. "
        "`python benchmarks/plan.py minilm roberta-base gpt2 llama` measures it and stores it in `benchmarks/results/plan/`. "
        f"The plan is off by at most {worst[1]:.2f} % with one micro-batch at a time, and by at most {worst[2]:.2f} % with two side by "
        "side (`--micro-batches 2`).\n\n"
    )
    page = PAGE.read_text(encoding="utf-8")
    before = page[: page.index(HEADING)]
    PAGE.write_text(f"{before}{HEADING}\n\n{intro}" + "\n".join(lines) + "\n", encoding="utf-8")
    print(intro + "\n".join(lines))


if __name__ == "__main__":
    main()
