"""One contender's process: `python -m rankwise.bench.worker`, controlled by `coordinator.py` through lines of JSON.

    stdin                       stdout
    {"contender", "config"}  ►  {"ready"}                                    after warm-up
    go                       ►  {"rows_per_second", "tokens_per_second", …}  after each repeat
    go                       ►  {"peak_memory_mb", "memory_by_kind_mb", …}   after the heaviest batches of a whole epoch
    go                       ►  {"started", "products", "traffic_gb", …}     of a step, counted over some of the first repeat

Between turns the process waits for its next line and computes nothing.
"""

import json
import os
import sys
from collections.abc import Generator
from dataclasses import asdict, replace
from importlib import import_module
from typing import Any, TextIO

import numpy as np
import torch

from rankwise import hardware
from rankwise.bench import architectures, lengths
from rankwise.bench.config import BenchConfig
from rankwise.bench.contenders import CONTENDERS, Runner, alone
from rankwise.config_json import from_json
from rankwise.engine.measure import (
    Operations,
    PeakRss,
    Speed,
    TensorMemory,
    copy_rate,
    label,
    megabytes,
    product_rate,
)
from rankwise.engine.processes import ONE, Processes, joined
from rankwise.errors import ProcessLost, RankwiseError
from rankwise.seeding import stream_seed
from rankwise.tasks.encoding import Encoded

WARMUP_STEPS = 3
HEAVIEST = 2
"""Batches kept for each measure of a batch's memory."""
COUNTED = 4
"""Batches of the first repeat that are trained on again to count what they have the device do."""


def main() -> None:
    """Read the request from stdin, and send reports to what was stdout; what libraries print goes to the log."""
    reports = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    asked = json.loads(sys.stdin.readline())
    try:
        with joined() as processes:
            compete(
                asked["contender"],
                from_json(BenchConfig, asked["config"]),
                sys.stdin,
                reports,
                processes,
            )
    except (RankwiseError, ProcessLost) as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


def compete(
    name: str, config: BenchConfig, stdin: TextIO, stdout: TextIO, processes: Processes = ONE
) -> None:
    """Train as contender `name`: each line of `stdin` starts a turn, and one JSON object on `stdout` ends it.

    Args:
        name: of the contender.
        config: of the measurement.
        stdin, stdout: of this process.
        processes: that train together. Each of them gets the same lines, and reports.
    """
    several: dict[str, Any] = {}
    if processes.count > 1:
        hardware.device_of_process(torch.device(config.device))
        several = {"processes": processes}
    if config.threads:
        threads = max(1, config.threads // processes.count)
        config = replace(config, threads=threads)
        torch.set_num_threads(threads)
    contender = CONTENDERS[alone(name)]
    build_runner = import_module(contender.module).build_runner
    rss = PeakRss()
    runner: Runner = build_runner(config, **contender.settings, **several)
    schedule = make_schedule(runner, config, contender.max_length)
    model = getattr(runner, "model", None)
    if model is not None:  # whatever the model is called with counts as the batch
        model.register_forward_pre_hook(lambda _, *inputs: label("batch", inputs), with_kwargs=True)
    steps = _turns(schedule, config, rss, runner, processes, stdin, stdout)
    next(steps)
    runner.train(schedule.rows, schedule.batches, lambda: next(steps, None))


class Schedule:
    """The batches one contender trains on, in this order: warm-up, repeats, the heaviest of a whole epoch, those that are counted."""

    def __init__(self, rows: Encoded, turns: list[list[np.ndarray]]) -> None:
        self.rows = rows
        self.warmup, *self.repeats, self.heaviest = turns
        self.counted = self.repeats[0][:COUNTED]
        self.batches = [batch for turn in [*turns, self.counted] for batch in turn]


def make_schedule(runner: Runner, config: BenchConfig, max_length: int | None = None) -> Schedule:
    """Draw the rows, which are the same for all contenders, and have the runner divide them into batches."""
    model_config = architectures.model_config(config)
    longest = min(architectures.longest(model_config, config.problem), max_length or 10**9)
    name = config.lengths_name
    per_repeat = -(-config.rows // config.batch_size) * config.batch_size
    sizes = [WARMUP_STEPS * config.batch_size, *[per_repeat] * config.repeats]
    drawn = [
        lengths.draw(name, size, np.random.default_rng(stream_seed(config.seed, "lengths", i)))
        for i, size in enumerate(sizes)
    ]
    whole = lengths.epoch(name, np.random.default_rng(stream_seed(config.seed, "epoch")))
    drawn.append(np.resize(whole, max(len(whole), per_repeat)))

    drawn = [np.minimum(turn, longest) for turn in drawn]
    turns, start = [], 0
    for i, turn in enumerate(drawn):
        batches = runner.order(turn, stream_seed(config.seed, "order", i))
        if i == len(drawn) - 1:
            batches = heaviest([b for b in batches if len(b) == config.batch_size], turn)
        turns.append([start + batch for batch in batches])
        start += len(turn)
    rng = np.random.default_rng(stream_seed(config.seed, "ids"))
    every = np.concatenate(drawn)
    labels = lengths.labelled(name, every) if config.problem == "generation" else None
    return Schedule(lengths.random_rows(every, model_config, rng, labels), turns)


def heaviest(batches: list[np.ndarray], row_lengths: np.ndarray) -> list[np.ndarray]:
    """Return the batches of an epoch in which memory can peak: most tokens or most attention, padded or not."""
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
    schedule: Schedule,
    config: BenchConfig,
    rss: PeakRss,
    runner: Runner,
    processes: Processes,
    stdin: TextIO,
    stdout: TextIO,
) -> Generator[None, None, None]:
    """Do what happens around the training steps. At each `yield`, one step is trained."""

    def report(**values: Any) -> None:
        stdout.write(json.dumps(values) + "\n")
        stdout.flush()

    def wait() -> None:
        if not stdin.readline():  # the coordinator has ended
            raise SystemExit(1)

    def synchronize() -> None:
        if config.device == "cuda":
            torch.cuda.synchronize()

    for _ in schedule.warmup:
        yield
    report(ready=True)
    for repeat in schedule.repeats:
        wait()
        synchronize()
        speed, waited = Speed(), processes.seconds
        for batch in repeat:
            yield
            synchronize()
            speed.step(len(batch), int(schedule.rows.lengths[batch].sum()))
        assert speed.step_seconds
        communication = {}
        if processes.count > 1:
            share = (processes.seconds - waited) / speed.seconds
            communication = {
                "bytes_sent_a_step": processes.bytes_sent,
                "communication_share": share,
            }
        report(
            rows_per_second=speed.rows_per_second,
            tokens_per_second=speed.tokens_per_second,
            step_seconds=asdict(speed.step_seconds),
            seconds=speed.seconds,
            **communication,
        )
    wait()
    with TensorMemory(config.device) as memory:
        memory.label("weights", runner)  # weights that no module holds, as in the lower bound
        for _ in schedule.heaviest:
            yield
    kinds = megabytes(memory.peak)
    report(peak_memory_mb=kinds["total"], memory_by_kind_mb=kinds, peak_rss_mb=rss.mb)
    wait()
    with Operations() as done:
        for _ in schedule.counted:
            yield
    report(**_a_step(done, len(schedule.counted), config))


def _a_step(done: Operations, steps: int, config: BenchConfig) -> dict[str, float]:
    """Return what a step has the device do, and how long its arithmetic takes as large products and its traffic as a copy."""
    device = torch.device(config.device)
    return {
        "started": done.started / steps,
        "products": done.products / steps,
        "gflop": done.flops / steps / 1e9,
        "traffic_gb": done.traffic / steps / 1e9,
        "products_seconds": done.flops / steps / product_rate(device, getattr(torch, config.dtype), ""),
        "traffic_seconds": done.traffic / steps / copy_rate(device),
    }


if __name__ == "__main__":
    main()
