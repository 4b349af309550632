"""Choose how a training's batches are run, by measuring: micro-batches side by side, gradient checkpointing, and a memory limit.

    a typical batch ─► gradients with 1, 2, 4 … micro-batches side by side ─► the fastest
    a memory limit  ─► three small probes ─► `Cost`, with and without checkpointing ─► the fastest engine within the limit

Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174) takes less memory and more time.
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from rankwise import hardware
from rankwise.engine.execution import Cost, Engine
from rankwise.engine.measure import MB, TensorMemory
from rankwise.engine.processes import ONE
from rankwise.engine.profiling import heaviest_batch
from rankwise.engine.training import Training
from rankwise.errors import RankwiseError
from rankwise.files import remembered
from rankwise.limits import parse_memory


def tune(training: Training, *, memory: str = "fast", cache: Path | None = None) -> str:
    """Choose a training's engine by measuring; return what was taken, for the first lines of a run.

    Args:
        training: its `compute` gets the engine. No step is taken, and no state changes. Of several processes, this one alone measures,
            with its share of a batch.
        memory: `fast`, `lean` (gradient checkpointing), or a size such as `2GB`; see `limits.parse_memory`.
        cache: folder that keeps what was measured on this machine; None measures anew.

    Raises:
        RankwiseError: the size is too small for the longest row.
    """
    compute, rows = training.compute, training.rows
    engine, step = Engine(), partial(_compute_gradients, training)
    if compute.device.type == "cpu" and compute.padding == "packed":
        threads, batch = compute.threads or torch.get_num_threads(), training.batch()
        typical = batch[:: compute.processes.count]
        engine = fastest(step, typical, threads, cache, _cache_key(training, typical, threads))
    limit = parse_memory(memory)
    if isinstance(limit, str):
        engine = replace(engine, recompute=limit == "lean")
    else:
        engine = within(
            limit,
            step,
            padded=partial(compute.lengths, rows),
            lengths=rows.lengths,
            heaviest=heaviest_batch(training.batches, rows, compute),
            fixed=fixed_bytes(training),
            micro_batches=engine.micro_batches,
            memory=training.memory,
        )
    training.compute = replace(compute, engine=engine)
    return _in_words(training, memory)


def fixed_bytes(training: Training) -> float:
    """Return the bytes that are always in memory: weights, their copies, and of what is trained a gradient and two moments."""
    tensors = [*training.model.parameters(), *training.model.buffers()]
    weights = sum(t.nbytes for t in {t.data_ptr(): t for t in tensors}.values())
    return weights + 3 * training.trained_bytes + training.copies.nbytes


def _compute_gradients(training: Training, engine: Engine, rows: np.ndarray) -> None:
    """Compute the gradients of some rows with an engine, and forget them."""
    compute = replace(training.compute, engine=engine, processes=ONE)
    model, copies = training.model.train(), training.copies
    labels = training.rows.count_labels(rows)
    with compute.running(model), copies.in_place():
        copies.refresh()
        batches = compute.batches(model, training.rows, rows, key=(0, 0))
        for _, gradients in compute.micro_batch_threads.map(
            lambda micro_batch: training.gradients(micro_batch, labels, compute=compute), batches
        ):
            training.update.add(gradients[: len(training.update.parameters)])
    training.update.forget()


def _cache_key(training: Training, typical: np.ndarray, threads: int) -> str:
    """Return what names the machine, the model and the size of a batch, up to a factor of two."""
    compute, model = training.compute, training.model
    dtype = compute.autocast or next(p for p in model.parameters() if p.ndim >= 2).dtype
    octave = int(training.rows.lengths[typical].sum()).bit_length()
    return (
        f"{hardware.hardware(compute.device)['processor']}, {threads} threads, torch {torch.__version__}: "
        f"{type(model).__name__} of {sum(p.numel() for p in model.parameters())}, "
        f"{sum(p.numel() for p in training.update.parameters)} trained, {dtype}, 2^{octave} tokens"
    )


def _in_words(training: Training, memory: str) -> str:
    engine, compute = training.compute.engine, training.compute
    words = [f"{engine.micro_batches} micro-batches side by side"] if engine.micro_batches > 1 else []
    words += ["layers recomputed in backward"] if engine.recompute else []
    if engine.cost is not None:
        heaviest = heaviest_batch(training.batches, training.rows, compute)
        pieces = engine.least_micro_batches(compute.lengths(training.rows, heaviest))
        words.append(
            f"the heaviest batch in {max(pieces, engine.micro_batches)} micro-batches to stay below {memory}"
        )
    return "; ".join(words)


Step = Callable[[Engine, np.ndarray], None]
"""Computes the gradients of some rows (by number) with an engine, and forgets them."""


def fastest(step: Step, rows: np.ndarray, threads: int, cache: Path | None, key: str) -> Engine:
    """Return the engine with the number of micro-batches (1, 2, 4 …) that runs a typical batch fastest.

    Args:
        step: runs a batch.
        rows: of a typical batch.
        threads: CPU threads shared by micro-batches side by side.
        cache: folder that keeps what was measured on this machine; None measures anew.
        key: names machine, model and size in the cache.
    """
    if threads == 1 or len(rows) == 1:
        return Engine()
    file = None if cache is None else cache / "engine.json"
    count = remembered(file, key, lambda: _measured(step, rows, threads), largest=threads)
    return Engine(micro_batches=max(1, int(count)))


def _measured(step: Step, rows: np.ndarray, threads: int, rounds: int = 4) -> int:
    counts = [n for n in (1, 2, 4, 8, 16, 32) if n <= min(threads, len(rows))]
    seconds: dict[int, float] = dict.fromkeys(counts, math.inf)
    for i in range(rounds):
        for n in counts:  # in turn, so that what drifts on the machine meets all alike
            taken = _seconds(step, Engine(micro_batches=n), rows)
            if i:  # the first round also pays for allocation and for compiling kernels
                seconds[n] = min(seconds[n], taken)
    return min(counts, key=lambda n: seconds[n])


def _seconds(step: Step, engine: Engine, rows: np.ndarray) -> float:
    started = time.perf_counter()
    step(engine, rows)
    return time.perf_counter() - started


PaddedLengths = Callable[[np.ndarray], np.ndarray]
"""Row numbers of a batch → tokens of each row as the model sees them, padding included."""


def within(
    limit: int,
    step: Step,
    *,
    padded: PaddedLengths,
    lengths: np.ndarray,
    heaviest: np.ndarray,
    fixed: float,
    micro_batches: int,
    memory: Callable[[], TensorMemory],
) -> Engine:
    """Return the fastest engine whose peak stays below a limit.

    Args:
        limit: bytes of tensors.
        step: runs rows.
        padded: gives the lengths that rows are padded to.
        lengths: tokens of every row.
        heaviest: row numbers of the run's heaviest batch.
        fixed: bytes of weights, moments and gradients.
        micro_batches: side by side, at most.
        memory: makes what follows the tensors of a step.

    Raises:
        RankwiseError: the longest row alone takes more than the limit.
    """
    longest = padded(np.array([lengths.argmax()]))
    possible: list[tuple[float, Engine]] = []
    least = math.inf
    for recompute in (False, True):
        cost = _cost(step, padded, lengths, recompute, memory)
        single = cost.base + float(cost.rows(longest)[0])
        least = min(least, fixed + single)
        for n in {1, micro_batches}:
            budget = (limit - fixed) / n - cost.base
            if budget < single - cost.base:
                continue
            engine, tokens = Engine(n, recompute, cost, budget), padded(heaviest)
            count = max(n, engine.least_micro_batches(tokens))
            possible.append(((count * cost.seconds + tokens.sum() * cost.token_seconds) / n, engine))
    if not possible:
        raise RankwiseError(
            f"memory={limit / MB:,.0f}MB is too little: a text of {longest[0]} tokens alone takes {math.ceil(least / MB):,} MB "
            "with this model and method. Give more, or a smaller max_length=."
        )
    return min(possible, key=lambda one: one[0])[1]


def _cost(
    step: Step,
    padded: PaddedLengths,
    lengths: np.ndarray,
    recompute: bool,
    memory: Callable[[], TensorMemory],
) -> Cost:
    """Fit the cost to three probes: the longest row, the four longest, and as many tokens in short rows."""
    by_length = np.argsort(-lengths, kind="stable")
    long = by_length[:4]
    short = by_length[::-1]
    short = short[: max(1, int(np.searchsorted(np.cumsum(lengths[short]), lengths[long].sum())))]
    engine, probes = Engine(recompute=recompute), []
    for rows in (long[:1], long, short):
        _seconds(step, engine, rows)
        with memory() as followed:
            level = followed.live_mb
            step(engine, rows)
        peak = (followed.peak_mb - level) * MB
        probes.append((padded(rows), peak, min(_seconds(step, engine, rows) for _ in range(2))))
    return Cost.fit(probes)
