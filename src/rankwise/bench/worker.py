"""One contender in a process of its own, taking turns: `python -m rankwise.bench.worker`, spoken to by `coordinator.py`.

    stdin   {"contender", "config"}     go      go      …  go
    stdout            ready ◄───────────┘       │          │
                      {"rows", "tokens", ...} ◄─┘          │      after each repeat
                      {"peak_memory_mb", "memory_by_kind_mb", "peak_rss_mb"} ◄──┘      after the heaviest batches of a whole epoch

Between its turns a process waits for its next line and computes nothing.
"""

import json
import os
import sys
from collections.abc import Generator
from dataclasses import asdict
from importlib import import_module
from typing import Any, TextIO

import numpy as np
import torch

from rankwise.bench import architectures, lengths
from rankwise.bench.config import BenchConfig
from rankwise.bench.contenders import CONTENDERS, Runner
from rankwise.config import from_json
from rankwise.engine.measure import PeakRss, Speed, TensorMemory, label, megabytes
from rankwise.errors import RankwiseError
from rankwise.seeding import stream_seed

WARMUP_STEPS = 3
HEAVIEST = 2


def main() -> None:
    wire = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes to the log
    asked = json.loads(sys.stdin.readline())
    try:
        compete(asked["contender"], from_json(BenchConfig, asked["config"]), sys.stdin, wire)
    except RankwiseError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


def compete(name: str, config: BenchConfig, stdin: TextIO, stdout: TextIO) -> None:
    """Trains as contender `name`, one line of `stdin` a turn, one JSON object on `stdout` behind each."""
    if config.threads:
        torch.set_num_threads(config.threads)
    contender = CONTENDERS[name]
    enter = import_module(contender.module).enter
    rss = PeakRss()
    runner: Runner = enter(config, **contender.settings)
    plan = make_plan(runner, config, contender.max_length)
    model = getattr(runner, "model", None)
    if model is not None:  # what a model is called with is its batch, whoever calls it
        model.register_forward_pre_hook(lambda _, *inputs: label("batch", inputs), with_kwargs=True)
    steps = _turns(plan, config, rss, runner, stdin, stdout)
    next(steps)
    runner.train(plan.rows, plan.batches, lambda: next(steps, None))


class Plan:
    """What one contender trains on: warm-up, repeats, and the heaviest batches of a whole epoch, one after the other."""

    def __init__(self, rows: Any, parts: list[list[np.ndarray]]) -> None:
        self.rows = rows
        self.warmup, *self.repeats, self.heaviest = parts
        self.batches = [batch for part in parts for batch in part]


def make_plan(runner: Runner, config: BenchConfig, max_length: int | None = None) -> Plan:
    """The rows of every repeat are the same for all contenders; each makes batches of them by its own protocol."""
    model_config = architectures.model_config(config)
    longest = min(architectures.longest(model_config), max_length or 10**9)
    per_repeat = -(-config.rows // config.batch_size) * config.batch_size
    sizes = [WARMUP_STEPS * config.batch_size, *[per_repeat] * config.repeats]
    drawn = [
        lengths.draw(config.lengths, size, np.random.default_rng(stream_seed(config.seed, "lengths", i)))
        for i, size in enumerate(sizes)
    ]
    whole = lengths.epoch(config.lengths, np.random.default_rng(stream_seed(config.seed, "epoch")))
    drawn.append(np.resize(whole, max(len(whole), per_repeat)))

    drawn = [np.minimum(part, longest) for part in drawn]
    parts, start = [], 0
    for i, part in enumerate(drawn):
        batches = runner.order(part, stream_seed(config.seed, "order", i))
        if i == len(drawn) - 1:
            batches = heaviest([b for b in batches if len(b) == config.batch_size], part)
        parts.append([start + batch for batch in batches])
        start += len(part)
    rng = np.random.default_rng(stream_seed(config.seed, "ids"))
    return Plan(lengths.random_rows(np.concatenate(drawn), model_config, rng), parts)


def heaviest(batches: list[np.ndarray], row_lengths: np.ndarray) -> list[np.ndarray]:
    """The batches of an epoch in which memory can peak: with most tokens and most attention, padded or not."""
    costs = (
        lambda n: n.sum(),
        lambda n: (n**2).sum(),
        lambda n: len(n) * n.max(),
        lambda n: len(n) * n.max() ** 2,
    )
    kept: dict[int, None] = {}
    for cost in costs:
        ranked = np.argsort([-cost(row_lengths[batch]) for batch in batches], kind="stable")
        kept |= dict.fromkeys(ranked[:HEAVIEST].tolist())
    return [batches[i] for i in kept]


def _turns(
    plan: Plan, config: BenchConfig, rss: PeakRss, runner: Runner, stdin: TextIO, stdout: TextIO
) -> Generator[None, None, None]:
    """What happens around training steps; at each `yield` one step is trained."""

    def say(**words: Any) -> None:
        stdout.write(json.dumps(words) + "\n")
        stdout.flush()

    def wait() -> None:
        if not stdin.readline():  # the other side is gone
            raise SystemExit(1)

    def synchronize() -> None:
        if config.device == "cuda":
            torch.cuda.synchronize()

    for _ in plan.warmup:
        yield
    say(ready=True)
    for repeat in plan.repeats:
        wait()
        synchronize()
        speed = Speed()
        for batch in repeat:
            yield
            synchronize()
            speed.step(len(batch), int(plan.rows.lengths[batch].sum()))
        assert speed.step_seconds
        say(
            rows_per_second=speed.rows_per_second,
            tokens_per_second=speed.tokens_per_second,
            step_seconds=asdict(speed.step_seconds),
            seconds=speed.seconds,
        )
    wait()
    with TensorMemory(config.device) as memory:
        memory.label("weights", runner)  # those that no module holds: the floor's
        for _ in plan.heaviest:
            yield
    kinds = megabytes(memory.peak)
    say(peak_memory_mb=kinds["total"], memory_by_kind_mb=kinds, peak_rss_mb=rss.mb)


if __name__ == "__main__":
    main()
