"""From a request of `rankwise plan` to its answer."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankwise import hardware
from rankwise.bench import architectures
from rankwise.bench.lengths import epoch, histogram
from rankwise.bench.plan.batch_sizes import BatchSizes, heaviest_batch
from rankwise.bench.plan.seconds import epoch_seconds
from rankwise.bench.plan.setup import Setting, can_be_packed, has_plain_head
from rankwise.bench.plan.step import MemoryPlanner
from rankwise.config import PlanConfig
from rankwise.engine.compute import Padding
from rankwise.engine.measure import MB, Spread, megabytes
from rankwise.errors import RankwiseError
from rankwise.limits import parse_memory
from rankwise.lora import quantized
from rankwise.lora.scaling import START_RANK
from rankwise.models import hub, loading
from rankwise.models.families import LONGER, SHORT
from rankwise.rank.config import RankConfig
from rankwise.runs.methods import names

OVERHEAD: dict[str, tuple[float, float, float, float]] = {
    "cpu": (0.3e9, 0.6e9, 0.0, 0.10),
    "cuda": (0.4e9, 1.0e9, 0.02, 0.15),
}
"""Memory that is not tensors: bytes that are always there (least, most), and the share of tensor bytes that the allocator loses (least,
most). On a CPU the first is Python and PyTorch; on a GPU it is the context, the kernels and the workspaces of its libraries."""

LARGEST_RANK = START_RANK * 2 ** len(RankConfig().grow_at)
"""The rank of adaptive LoRA if every layer grew at every check that allows it."""

Report = Callable[[int, int, str], None]
"""Called with the number of steps planned, the number in all, and what comes next."""


def plan(config: PlanConfig, on_progress: Report = lambda done, of, doing: None) -> dict[str, Any]:
    """Return what `rankwise plan --json` prints.

    Args:
        config: what to plan for.
        on_progress: called before each step that is planned.

    Returns:
        `configurations`, one object for each method and memory mode:

        - method, rank, batch_size, memory_mode
        - peak_memory_mb {total, weights, …}, overhead_mb [least, most]
        - verdict (`fits`, `doesn't`, `too close to call`), fits (true, false, null) and largest_batch_size; null without a limit
        - seconds_per_epoch, where it was asked for
        - bytes_sent_a_step by each of several processes
        - at_largest_rank {rank, peak_memory_mb} for adaptive LoRA, which is planned at its start rank: the peak if every layer
          grew at every check that allows it

        And what was planned for.

    Raises:
        RankwiseError: the model, the task or a size is unknown or malformed.
    """
    planned = names(planned=True)
    for method in config.methods:
        if method not in planned:
            raise RankwiseError(f"`methods=` takes {', '.join(planned)}, not {method!r}.")
    limit = None if config.memory is None else parse_memory(config.memory)
    if isinstance(limit, str):
        raise RankwiseError(f"`memory=` is a size to fit in, such as 8GB; {limit} is a `memory_mode=`.")
    if config.speed and config.processes > 1:
        raise RankwiseError("`speed=` measures one process. `rankwise bench` measures several.")
    if config.shard:
        _check_shard(config)
    if config.base_bits is not None:
        quantized.check(torch.device(config.device))
    writes = config.problem == "generation"
    model = config.model or ("smollm2" if writes else "minilm")
    name = config.lengths or config.task or ("e2e" if writes else "sst2")
    architecture = find_architecture(model, config.problem)
    architectures.check_problem(architecture, model, config.problem)
    lengths = find_lengths(name)
    with architectures.named(architecture, "planned"):
        longest = architectures.longest(architecture, config.problem)
        lengths = np.minimum(lengths, min(longest, config.max_length or (LONGER if writes else SHORT)))
        if writes and not (lengths := lengths[lengths > 1]).size:
            raise RankwiseError("A language model learns nothing from rows of one token.")
        planning = _Planning(config, architecture, lengths, name, limit, on_progress)
        configurations = [one for method in dict.fromkeys(config.methods) for one in planning.answers(method)]
    return {
        "problem": config.problem,
        "model": model,
        "lengths": name,
        "rows": len(lengths),
        "tokens_per_row": asdict(Spread.of(lengths.tolist())) | {"mean": float(lengths.mean())},
        "device": config.device,
        "dtype": str(_dtype(config)).removeprefix("torch."),
        "padding": planning.padding,
        "micro_batches": config.micro_batches,
        "processes": config.processes,
        "shard": config.shard,
        "memory_mb": None if limit is None else limit / MB,
        "configurations": configurations,
    }


def _check_shard(config: PlanConfig) -> None:
    if config.processes == 1:
        raise RankwiseError("`shard=` needs several processes to share weights: give `processes=`.")
    if config.base_bits is not None or config.micro_batches > 1:
        raise RankwiseError(
            "`shard=` doesn't go together with `base_bits=` or with several `micro_batches=`."
        )


class _Planning:
    """What all configurations of a request share."""

    def __init__(
        self,
        config: PlanConfig,
        architecture: Any,
        lengths: np.ndarray,
        name: str,
        limit: int | None,
        on_progress: Report,
    ) -> None:
        self.config, self.architecture, self.limit = config, architecture, limit
        self.lengths, self.name = lengths, name
        self.padding: Padding = "packed" if can_be_packed(architecture, config.problem) else "longest"
        if self.padding != "packed" and config.problem != "classification":
            raise RankwiseError(
                f"{architecture.model_type} models can't be packed, and only packed training is planned for {config.problem}."
            )
        self.plain_head = config.problem == "generation" and has_plain_head(architecture)
        self.modes = ("fast", "lean") if config.memory_mode == "both" else (config.memory_mode,)
        self._on_progress, self._done = on_progress, count()
        sizes = 1 if limit is None else 3  # that are planned for a configuration, mostly
        methods = dict.fromkeys(config.methods)
        self._steps = len(self.modes) * (
            sizes * len(methods) + ("adaptive" in methods) + config.speed * len(methods)
        )

    def _report(self, doing: str) -> None:
        self._on_progress(next(self._done), self._steps, doing)

    def answers(self, method: str) -> list[dict[str, Any]]:
        """Return the answers of one method, one for each memory mode."""
        rank = {"full": None, "adaptive": START_RANK}.get(method, self.config.rank)
        setting = Setting(
            self.architecture,
            method,
            rank or 1,
            _dtype(self.config),
            self.padding,
            self.config.micro_batches,
            self.config.targets,
            base_bits=self.config.base_bits,
            problem=self.config.problem,
            task=self.name,
            plain_head=self.plain_head,
            processes=self.config.processes,
            shard=self.config.shard,
        )
        planner = MemoryPlanner(setting, device=self.config.device)
        grown = (
            MemoryPlanner(replace(setting, rank=LARGEST_RANK), device=self.config.device)
            if method == "adaptive"
            else None
        )
        return [
            {"method": method, "rank": rank, "memory_mode": mode}
            | self._answer(setting, planner, grown, mode)
            for mode in self.modes
        ]

    def _answer(
        self, setting: Setting, planner: MemoryPlanner, grown: MemoryPlanner | None, mode: str
    ) -> dict[str, Any]:
        """Answer for one configuration."""
        config, lean = self.config, mode == "lean"
        sizes = BatchSizes(
            planner, self.lengths, lean, lambda: self._report(f"{setting.method}, {mode}"), config.device
        )
        answer = self._peaks(sizes)
        if setting.processes > 1:
            answer["bytes_sent_a_step"] = planner.bytes_sent
        if grown is not None:
            self._report("adaptive, at its largest rank")
            most = grown.peak(heaviest_batch(self.lengths, config.batch_size, setting), recompute=lean)
            answer["at_largest_rank"] = {"rank": LARGEST_RANK, "peak_memory_mb": megabytes(most)}
        if config.speed:
            self._report("measuring the speed")
            answer["seconds_per_epoch"] = epoch_seconds(setting, self.lengths, config.batch_size, lean)
        return answer

    def _peaks(self, sizes: BatchSizes) -> dict[str, Any]:
        """Answer whether the batch size fits, and which is the largest that does."""
        config, limit = self.config, self.limit
        peak = sizes(config.batch_size)
        least, most = overhead(peak, config.device)
        verdict = largest = None
        if limit is not None:
            verdict = judge(peak, limit, config.device)
            largest = sizes.largest(config.batch_size, lambda p: judge(p, limit, config.device) == "fits")
        return {
            "batch_size": config.batch_size,
            "peak_memory_mb": megabytes(peak),
            "overhead_mb": [least / MB, most / MB],
            "verdict": verdict,
            "fits": {"fits": True, "doesn't": False}.get(verdict or ""),
            "largest_batch_size": largest,
        }


def _dtype(config: PlanConfig) -> torch.dtype:
    if config.dtype == "auto" and config.device == "cuda":
        return torch.bfloat16
    return hardware.choose_dtype(config.dtype, torch.device("cpu"))[0]


def overhead(peak: Mapping[str, int], device: str) -> tuple[float, float]:
    """Return the least and the most bytes that a process takes beside tensors."""
    least, most, lost_least, lost_most = OVERHEAD[device]
    changing = sum(peak.values()) - peak["weights"]
    return least + lost_least * changing, most + lost_most * changing


def judge(peak: Mapping[str, int], limit: float, device: str) -> str:
    """Return `fits`, `doesn't`, or `too close to call`.

    On a CPU the limit is on tensor bytes, as in `rankwise train --memory`. On a GPU it includes the overhead.
    """
    tensors = sum(peak.values())
    if device == "cpu":
        return "fits" if tensors <= limit else "doesn't"
    least, most = overhead(peak, device)
    if tensors + most <= limit:
        return "fits"
    return "doesn't" if tensors + least > limit else "too close to call"


def find_architecture(name: str, problem: str = "classification") -> Any:
    """Return the Transformers config of a shipped architecture, a config.json or its folder, or a model by name.

    It has a padding token.

    Args:
        name: of the model.
        problem: that the model is for.

    Raises:
        RankwiseError: there is none.
    """
    path = Path(name)
    if path.suffix == ".json" and path.is_file():
        found = architectures.from_file(path)
    elif (path / hub.CONFIG).is_file():
        found = architectures.from_file(path / hub.CONFIG)
    elif name.rsplit("/", 1)[-1].lower() in architectures.known():
        found = architectures.architecture(name)
    else:
        found = loading.locate(name, task_type=architectures.task_type(problem)).config
    architectures.give_pad_token(found)
    return found


def find_lengths(name: str) -> np.ndarray:
    """Return the tokens of every row of an epoch.

    Args:
        name: a task, one number for all rows (1,000 of them), or a file with one number per line.

    Raises:
        RankwiseError: it is none of these.
    """
    file = Path(name)
    if file.is_file():
        try:
            found = np.array([int(word) for word in file.read_text(encoding="utf-8").split()], dtype=np.int64)
        except (OSError, ValueError, OverflowError) as error:
            raise RankwiseError(
                f"{file} should have one number of tokens per line: {error!s:.100}."
            ) from None
        if len(found) == 0 or found.min() < 1:
            raise RankwiseError(f"{file} should have one number of tokens per line, each 1 or more.")
        return found
    counts = histogram(name)
    return np.repeat(np.array([*counts]), 1000) if len(counts) == 1 else epoch(name, np.random.default_rng(0))
