"""Rows, tokens and seconds of training steps, and the shares of those seconds."""

import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Spread:
    """A median and its range."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Return the median, minimum and maximum of values."""
        return cls(statistics.median(values), min(values), max(values))


class Speed:
    """Rows and tokens a second over training steps. The clock runs from construction or from the last `start`.

    Args:
        skip: first steps that don't count, because they also allocate, choose kernels and fill caches.
    """

    def __init__(self, skip: int = 0) -> None:
        self._skip = skip
        self._steps: list[tuple[float, int, int]] = []
        self._shares: dict[str, float] = {}
        self._pending: dict[str, float] = {}
        self._lock = threading.Lock()
        self._mark = time.perf_counter()

    def start(self) -> None:
        """Forget the time since the last step, with its shares: after an evaluation, a checkpoint, or a profiled step."""
        self._pending = {}
        self._mark = time.perf_counter()

    def begin(self) -> None:
        """Begin a step. Of the time since the last step, only named shares count (a rank decision, but no evaluation)."""
        self._mark = time.perf_counter() - sum(self._pending.values())

    def step(self, rows: int, tokens: int) -> None:
        """End a step.

        Args:
            rows: in the step's batch.
            tokens: in the step's batch, without padding.
        """
        now = time.perf_counter()
        if self._skip:
            self._skip -= 1
        else:
            self._steps.append((now - self._mark, rows, tokens))
            for name, seconds in self._pending.items():
                self._shares[name] = self._shares.get(name, 0.0) + seconds
        self._pending = {}
        self._mark = now

    @contextmanager
    def share(self, name: str, side_by_side: int = 1) -> Iterator[None]:
        """Count the time of a `with` block as a share of its step.

        Args:
            name: of the share.
            side_by_side: threads that run such a block at the same time; together they count once.
        """
        begun = time.perf_counter()
        try:
            yield
        finally:
            seconds = (time.perf_counter() - begun) / side_by_side
            with self._lock:
                self._pending[name] = self._pending.get(name, 0.0) + seconds

    @property
    def seconds(self) -> float:
        """Seconds of the steps that count."""
        return sum(seconds for seconds, _, _ in self._steps)

    @property
    def shares(self) -> dict[str, float]:
        """Shares of those seconds by name, with `other` for unnamed time; empty until a step counts."""
        if not self._steps:
            return {}
        named = {name: seconds / self.seconds for name, seconds in self._shares.items()}
        return {**named, "other": max(0.0, 1.0 - sum(named.values()))}

    @property
    def rows_per_second(self) -> float | None:
        """Rows a second; None until a step counts."""
        return sum(rows for _, rows, _ in self._steps) / self.seconds if self._steps else None

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens a second; None until a step counts."""
        return sum(tokens for _, _, tokens in self._steps) / self.seconds if self._steps else None

    @property
    def tokens_per_step(self) -> float | None:
        """Mean tokens of the steps that count; None until a step counts."""
        return statistics.fmean(tokens for _, _, tokens in self._steps) if self._steps else None

    @property
    def step_seconds(self) -> Spread | None:
        """Seconds of a step, over the steps that count; None until a step counts."""
        return Spread.of([seconds for seconds, _, _ in self._steps]) if self._steps else None
