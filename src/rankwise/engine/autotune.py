"""How a step is run, chosen by measuring: parts side by side, and what is cut or computed twice to keep a memory limit.

    bytes of a part = base + token · tokens + score · Σ length²        beside weights, moments and gradients, which are always there

Everything a step keeps grows with its tokens or with the square of its rows' lengths, so three small probes fix that line, and a batch
is cut so that its parts stay below it. Recomputing layers in backward (Chen et al. 2016, arXiv 1604.06174) lowers the line and takes
more time; what is fastest within the limit is taken. Choices are stored with the run, because resuming is exact.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from rankwise.engine.measure import MB, TensorMemory
from rankwise.engine.packing import PackedBatch
from rankwise.errors import RankwiseError

MARGIN = 1.08
"""What rows are taken to cost above the measured line, since rows of other lengths fill their groups differently."""


@dataclass(frozen=True)
class Cost:
    """What a part of a batch takes at its peak in bytes, beside what is always there, and in seconds.

    Attributes:
        base, token, score: of the part, of each token, of each square of a row's length.
        seconds, token_seconds: of the part, and of each token.
    """

    base: float
    token: float
    score: float
    seconds: float
    token_seconds: float

    def rows(self, lengths: np.ndarray) -> np.ndarray:
        """Bytes of rows by their lengths, without the part's base."""
        return MARGIN * (self.token * lengths + self.score * lengths.astype(np.float64) ** 2)

    @classmethod
    def fit(cls, probes: list[tuple[np.ndarray, float, float]]) -> "Cost":
        """The line through probes: lengths of the rows, bytes, seconds."""
        terms = np.array([[1.0, n.sum(), (n.astype(np.float64) ** 2).sum()] for n, _, _ in probes])
        scale = terms.max(axis=0)

        def through(values: list[float], columns: int) -> list[float]:
            found = np.linalg.lstsq(terms[:, :columns] / scale[:columns], values, rcond=None)[0]
            return np.maximum(found / scale[:columns], 0.0).tolist()

        return cls(*through([peak for _, peak, _ in probes], 3), *through([t for _, _, t in probes], 2))


@dataclass(frozen=True)
class Engine:
    """How a batch is run.

    Attributes:
        workers: parts that run side by side, each with its share of the cores.
        recompute: layers keep their input only and run again in backward.
        cost: of a part, where there is a limit.
        room: bytes the rows of a part may cost then.
    """

    workers: int = 1
    recompute: bool = False
    cost: Cost | None = None
    room: float = math.inf

    def cut(self, batch: PackedBatch, parts: int = 1) -> list[PackedBatch]:
        """A batch as `parts` parts at least, one a worker at least, none above the limit unless it is a single row."""
        equal = batch.divide(max(parts, self.workers))
        if self.cost is None or all(self.cost.rows(p.layout.padded).sum() <= self.room for p in equal):
            return equal
        return batch.split(self.room, self.cost.rows(batch.layout.padded))

    def pieces(self, lengths: np.ndarray) -> int:
        """How many parts rows of such lengths are cut into, at least."""
        return 1 if self.cost is None else math.ceil(float(self.cost.rows(lengths).sum()) / self.room)

    def tokens(self, most: int) -> int:
        """Tokens of a part where nothing is kept for backward: at most `most`."""
        return most if self.cost is None else max(1, min(most, int(self.room / (MARGIN * self.cost.token))))

    def to_json(self) -> dict[str, Any]:
        """Plain values for run.json."""
        return {**asdict(self), "room": None if math.isinf(self.room) else self.room}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "Engine":
        """The inverse of `to_json`."""
        cost = None if stored["cost"] is None else Cost(**stored["cost"])
        room = math.inf if stored["room"] is None else stored["room"]
        return cls(stored["workers"], stored["recompute"], cost, room)


Step = Callable[[Engine, np.ndarray], None]
"""Computes the gradients of some rows (by number) with an engine, and forgets them."""


def fastest(step: Step, rows: np.ndarray, threads: int, cache: Path | None, key: str) -> Engine:
    """As many workers as make a typical batch fastest: 1, 2, 4 … up to the threads.

    Args:
        step: runs it.
        rows: of a typical batch.
        threads: to be shared by the workers.
        cache: folder where what was measured on this machine is kept; None measures anew.
        key: names machine, model and size.
    """
    if threads == 1 or len(rows) == 1:
        return Engine()
    file = None if cache is None else cache / "engine.json"
    if file is None:
        return Engine(workers=_measured(step, rows, threads))
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):
        try:
            known: dict[str, int] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        if key not in known:
            known[key] = _measured(step, rows, threads)
            partial = file.with_suffix(".partial")
            partial.write_text(json.dumps(known, indent=1), encoding="utf-8")
            partial.replace(file)
    return Engine(workers=known[key])


def _measured(step: Step, rows: np.ndarray, threads: int, rounds: int = 4) -> int:
    counts = [n for n in (1, 2, 4, 8, 16, 32) if n <= min(threads, len(rows))]
    seconds: dict[int, float] = dict.fromkeys(counts, math.inf)
    for i in range(rounds):
        for n in counts:  # in turn, so that what drifts on the machine meets all alike
            taken = _seconds(step, Engine(workers=n), rows)
            if i:  # the first round also pays for allocation and for compiling kernels
                seconds[n] = min(seconds[n], taken)
    return min(counts, key=lambda n: seconds[n])


def _seconds(step: Step, engine: Engine, rows: np.ndarray) -> float:
    started = time.perf_counter()
    step(engine, rows)
    return time.perf_counter() - started


Seen = Callable[[np.ndarray], np.ndarray]
"""Tokens of each row of a batch (row numbers) as the model sees them, padding included."""


def within(
    limit: int,
    step: Step,
    seen: Seen,
    lengths: np.ndarray,
    heaviest: np.ndarray,
    fixed: float,
    workers: int,
    device: str,
) -> Engine:
    """The fastest engine whose peak stays below a limit.

    Args:
        limit: bytes of tensors.
        step: runs rows.
        seen: what they are padded to.
        lengths: tokens of every row.
        heaviest: rows of the run's heaviest batch.
        fixed: bytes of weights, moments and gradients.
        workers: parts side by side at most.
        device: where tensors are counted.

    Raises:
        RankwiseError: not even the longest row alone stays below it.
    """
    longest = seen(np.array([lengths.argmax()]))
    possible: list[tuple[float, Engine]] = []
    least = math.inf
    for recompute in (False, True):
        cost = _cost(step, seen, lengths, recompute, device)
        single = cost.base + float(cost.rows(longest)[0])
        least = min(least, fixed + single)
        for n in {1, workers}:
            room = (limit - fixed) / n - cost.base
            if room < single - cost.base:
                continue
            engine, tokens = Engine(n, recompute, cost, room), seen(heaviest)
            parts = max(n, engine.pieces(tokens))
            possible.append(((parts * cost.seconds + tokens.sum() * cost.token_seconds) / n, engine))
    if not possible:
        raise RankwiseError(
            f"--memory {limit / MB:,.0f}MB is too little: a text of {longest[0]} tokens alone takes {math.ceil(least / MB):,} MB "
            "with this model and method. Give more, or a smaller --max-length."
        )
    return min(possible, key=lambda one: one[0])[1]


def _cost(step: Step, seen: Seen, lengths: np.ndarray, recompute: bool, device: str) -> Cost:
    """Probes of one long row, of four, and of as many tokens in short rows."""
    by_length = np.argsort(-lengths, kind="stable")
    long = by_length[:4]
    short = by_length[::-1]
    short = short[: max(1, int(np.searchsorted(np.cumsum(lengths[short]), lengths[long].sum())))]
    engine, probes = Engine(recompute=recompute), []
    for rows in (long[:1], long, short):
        _seconds(step, engine, rows)
        with TensorMemory(device) as memory:
            level = memory.live_mb
            step(engine, rows)
        peak = (memory.peak_mb - level) * MB
        probes.append((seen(rows), peak, min(_seconds(step, engine, rows) for _ in range(2))))
    return Cost.fit(probes)
