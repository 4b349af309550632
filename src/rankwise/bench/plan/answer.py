"""What `rankwise plan` is asked, and what it answers."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig

from rankwise import hardware
from rankwise.bench import architectures
from rankwise.bench.lengths import epoch, histogram
from rankwise.bench.plan.seconds import epoch_seconds
from rankwise.bench.plan.shapes import Setting, Shapes, packs
from rankwise.bench.plan.sizes import Sizes, heaviest
from rankwise.config import PlanConfig, parse_memory
from rankwise.engine.compute import Padding
from rankwise.engine.measure import MB, Spread, megabytes
from rankwise.errors import RankwiseError
from rankwise.lora import quantized
from rankwise.models import hub, loading
from rankwise.rank.controller import GROW_AT, START_RANK

OUTSIDE: dict[str, tuple[float, float, float, float]] = {
    "cpu": (0.3e9, 0.6e9, 0.0, 0.10),
    "cuda": (0.4e9, 1.0e9, 0.02, 0.15),
}
"""What isn't tensors: bytes that are always there (least, most), and a share of the tensors lost to the allocator (least, most). On a CPU
the first is Python and PyTorch, on a card its context, kernels and the workspaces of its libraries."""

LARGEST_RANK = START_RANK * 2 ** len(GROW_AT)
"""What adaptive LoRA could grow to, if held-out rows asked for it in every layer at every check."""

Report = Callable[[int, int, str], None]
"""Told how many steps were gone through, of how many, and what comes."""


def plan(config: PlanConfig, on_progress: Report = lambda done, of, doing: None) -> dict[str, Any]:
    """Answers what `rankwise plan` asks.

    Args:
        config: what to plan for.
        on_progress: told what is being worked out.

    Returns:
        `configurations`: method, rank, batch_size, memory_mode, peak_memory_mb {total, weights, …}, outside_mb [least, most],
        verdict (`fits`, `doesn't`, `too close to call`) and fits (true, false, null), largest_batch_size (the last three null without a
        limit); seconds_an_epoch, where this machine was measured; of adaptive LoRA, which is planned at its start rank, `at_most`: rank and
        peak_memory_mb if every layer grew as often as it may. And what was planned for.

    Raises:
        RankwiseError: no such model, task or method; a size that is none.
    """
    limit = None if config.memory is None else parse_memory(config.memory)
    if isinstance(limit, str):
        raise RankwiseError(f"--memory is a size to fit in, such as 8GB; {limit} is a --memory-mode.")
    if config.base_bits is not None:
        quantized.check(torch.device(config.device))
    architecture = find_architecture(config.model)
    lengths = find_lengths(config.lengths or config.task)
    lengths = np.minimum(lengths, min(architectures.longest(architecture), config.max_length or 512))
    padding: Padding = "packed" if packs(architecture) else "longest"
    modes = ("fast", "lean") if config.memory_mode == "both" else (config.memory_mode,)
    methods = tuple(dict.fromkeys(config.methods))
    every = len(modes) * (1 if limit is None else 3)  # steps gone through for a method, mostly
    steps = every * len(methods) + len(modes) * (("adaptive" in methods) + config.speed * len(methods))
    gone = count()
    found = []
    for method in methods:
        rank = {"full": None, "adaptive": START_RANK}.get(method, config.rank)
        setting = Setting(
            architecture,
            method,
            rank or 1,
            _dtype(config),
            padding,
            config.workers,
            base_bits=config.base_bits,
        )
        shapes = Shapes(setting)
        grown = Shapes(replace(setting, rank=LARGEST_RANK)) if method == "adaptive" else None
        for mode in modes:
            lean = mode == "lean"

            def report(doing: str = f"{method}, {mode}") -> None:
                on_progress(next(gone), steps, doing)

            one: dict[str, Any] = {"method": method, "rank": rank, "memory_mode": mode}
            one |= _answer(Sizes(shapes, lengths, lean, report, config.device), config, limit)
            if grown is not None:
                report("adaptive, at its largest")
                most = grown.peak(heaviest(lengths, config.batch_size, setting), recompute=lean)
                one["at_most"] = {"rank": LARGEST_RANK, "peak_memory_mb": megabytes(most)}
            if config.speed:
                report("measuring")
                one["seconds_an_epoch"] = epoch_seconds(setting, lengths, config.batch_size, lean)
            found.append(one)
    return {
        "model": config.model,
        "lengths": config.lengths or config.task,
        "rows": len(lengths),
        "tokens_a_row": asdict(Spread.of(lengths.tolist())) | {"mean": float(lengths.mean())},
        "device": config.device,
        "dtype": str(_dtype(config)).removeprefix("torch."),
        "padding": padding,
        "workers": config.workers,
        "memory_mb": None if limit is None else limit / MB,
        "configurations": found,
    }


def _dtype(config: PlanConfig) -> torch.dtype:
    if config.dtype == "auto" and config.device == "cuda":
        return torch.bfloat16
    return hardware.choose_dtype(config.dtype, torch.device("cpu"))[0]


def _answer(sizes: Sizes, config: PlanConfig, limit: int | None) -> dict[str, Any]:
    peak = sizes(config.batch_size)
    least, most = outside(peak, config.device)
    verdict = None if limit is None else judge(peak, limit, config.device)
    largest = None
    if limit is not None:
        room = limit - (most if config.device == "cuda" else 0.0)
        largest = sizes.largest(config.batch_size, room, lambda p: judge(p, limit, config.device) == "fits")
    return {
        "batch_size": config.batch_size,
        "peak_memory_mb": megabytes(peak),
        "outside_mb": [least / MB, most / MB],
        "verdict": verdict,
        "fits": {"fits": True, "doesn't": False}.get(verdict or ""),
        "largest_batch_size": largest,
    }


def outside(peak: dict[str, int], device: str) -> tuple[float, float]:
    """What a process takes that isn't tensors, in bytes: at least, and at most."""
    least, most, lost_least, lost_most = OUTSIDE[device]
    changing = sum(peak.values()) - peak["weights"]
    return least + lost_least * changing, most + lost_most * changing


def judge(peak: dict[str, int], limit: float, device: str) -> str:
    """`fits`, `doesn't`, or `too close to call`.

    On a CPU the limit is on tensor bytes, as in `rankwise train --memory`; a card has to hold the rest too.
    """
    tensors = sum(peak.values())
    if device == "cpu":
        return "fits" if tensors <= limit else "doesn't"
    least, most = outside(peak, device)
    if tensors + most <= limit:
        return "fits"
    return "doesn't" if tensors + least > limit else "too close to call"


def find_architecture(name: str) -> Any:
    """The Transformers config of a shipped architecture, a config.json or its folder, or a model by name, with a padding token.

    Raises:
        RankwiseError: there is none.
    """
    path = Path(name)
    if path.suffix == ".json" and path.is_file():
        found = _read(path)
    elif (path / hub.CONFIG).is_file():
        found = _read(path / hub.CONFIG)
    elif name.rsplit("/", 1)[-1].lower() in architectures.known():
        found = architectures.architecture(name)
    else:
        found = loading.locate(name).config
    if found.pad_token_id is None:  # GPT-2, Llama: any token will do, attention never sees it
        eos = found.eos_token_id
        found.pad_token_id = eos[0] if isinstance(eos, list) else (eos or 0)
    return found


def _read(path: Path) -> Any:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return AutoConfig.for_model(fields.pop("model_type"), **fields)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RankwiseError(
            f"{path} is no config.json of a Transformers model: {type(error).__name__}: {error}. "
            "It needs a model_type and the sizes that go with it."
        ) from None


def find_lengths(name: str) -> np.ndarray:
    """Tokens of every row of an epoch: of a task by name, one number for all rows (1,000 of them), or a file with one number a line.

    Raises:
        RankwiseError: it is none of these.
    """
    file = Path(name)
    if file.is_file():
        try:
            found = np.array([int(word) for word in file.read_text(encoding="utf-8").split()], dtype=np.int64)
        except (OSError, ValueError) as error:
            raise RankwiseError(f"{file} should have one number of tokens a line: {error}.") from None
        if len(found) == 0 or found.min() < 1:
            raise RankwiseError(f"{file} should have one number of tokens a line, each 1 or more.")
        return found
    counts = histogram(name)
    return np.repeat(np.array([*counts]), 1000) if len(counts) == 1 else epoch(name, np.random.default_rng(0))
