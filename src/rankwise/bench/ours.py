"""Our contenders: training by `engine.training.Training`, the loop of every run, packed where the model allows it."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from rankwise.bench import architectures
from rankwise.bench.config import BenchConfig
from rankwise.bench.lengths import length_grouped
from rankwise.config import LoraOptions, RunConfig, TrainOptions
from rankwise.engine.autotune import tune
from rankwise.engine.batch_schedule import GivenBatches
from rankwise.engine.batches import batch_order
from rankwise.engine.compute import Compute, Padding
from rankwise.engine.processes import ONE, Processes
from rankwise.engine.training import Training
from rankwise.rank.controller import RankController
from rankwise.runs.methods import METHODS
from rankwise.tasks.encoding import Encoded


def build_runner(
    config: BenchConfig,
    *,
    method: str,
    padding: Padding = "packed",
    memory: str = "fast",
    processes: Processes = ONE,
) -> "OurRunner":
    """Build the model as a run of `method` does.

    A frozen base is in the run's dtype; weights that are trained are in float32, under autocast.

    Args:
        config: resolved, so device and dtype are named.
        method: `lora`, `full` or `adaptive`. With `adaptive`, statistics are collected but every layer keeps its rank.
        padding: `packed` where the model allows it, or `longest`, the padded batches of the baselines.
        memory: as in `--memory`.
        processes: that train together.
    """
    dtype, frozen_base = getattr(torch, config.dtype), METHODS[method].frozen_base
    model: Any = architectures.build(config, dtype=dtype if frozen_base else torch.float32)
    request = RunConfig(method=method, seed=config.seed, lora=LoraOptions(rank=config.rank))
    METHODS[method].prepare(model, request, [])
    model.to(config.device)
    compute = Compute.for_model(
        model,
        dtype=dtype,
        frozen_base=frozen_base,
        padding=padding,
        max_length=architectures.longest(model.config, config.problem),
        pad_id=model.config.pad_token_id,
        threads=config.threads,
        processes=processes,
    )
    return OurRunner(config, model, compute, memory, collects_statistics=method == "adaptive")


@dataclass(frozen=True)
class OurRunner:
    """A model in our own loop; a `Runner`."""

    config: BenchConfig
    model: Any
    compute: Compute
    memory: str
    collects_statistics: bool = False

    def order(self, lengths: np.ndarray, seed: int) -> list[np.ndarray]:
        """Return batches in random order, as in a run, or the very batches of the baselines when rows are padded."""
        if self.compute.padding == "packed":
            return batch_order(lengths, self.config.batch_size, seed=seed)
        return length_grouped(lengths, self.config.batch_size, seed)

    def train(self, rows: Encoded, batches: list[np.ndarray], after_step: Callable[[], None]) -> None:
        """Take one step of a `Training` for each batch."""
        options = TrainOptions(
            batch_size=self.config.batch_size,
            lr=1e-4,
            optimizer="adamw",
            schedule="linear",
            warmup=0,
            weight_decay=0,
            clip=1,
            padding=self.compute.padding,
        )
        training = Training(
            self.model,
            rows,
            options=options,
            compute=self.compute,
            seed=self.config.seed,
            batches=GivenBatches(batches),
        )
        processes = self.compute.processes
        if self.collects_statistics:
            same = None if processes.count == 1 else processes.check_same
            training.rank = RankController(
                self.model, _never, sys.maxsize, training.update, same_everywhere=same
            )
        if processes.first:
            tune(training, memory=self.memory)
        training.compute = replace(training.compute, engine=processes.of_first(training.compute.engine))
        for _ in batches:
            with training.compute.running(self.model):
                training.step()
            after_step()


def _never() -> torch.Tensor:
    raise AssertionError("no rank check is due in so few steps")
