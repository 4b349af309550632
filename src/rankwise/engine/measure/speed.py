"""Rows, tokens and seconds of training steps, and what those seconds go into."""

import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Spread:
    """A median and the range it was taken over."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        return cls(statistics.median(values), min(values), max(values))


class Speed:
    """Rows and tokens per second over training steps; the clock runs from construction, or from the last
    `start`.

    Args:
        skip: first steps left out: they allocate, choose kernels and fill caches.
    """

    def __init__(self, skip: int = 0) -> None:
        self._skip = skip
        self._steps: list[tuple[float, int, int]] = []
        self._shares: dict[str, float] = {}
        self._pending: dict[str, float] = {}
        self._lock = threading.Lock()
        self._mark = time.perf_counter()

    def start(self) -> None:
        """Forgets the time since the last step, shares included; called after what is no training (an evaluation, a
        checkpoint, a step that was slowed down by measuring its memory)."""
        self._pending = {}
        self._mark = time.perf_counter()

    def begin(self) -> None:
        """Begins a step: of the time since the last one only what was named counts (a rank decision, not an evaluation)."""
        self._mark = time.perf_counter() - sum(self._pending.values())

    def step(self, rows: int, tokens: int) -> None:
        """Ends a step.

        Args:
            rows: sequences in the step's batch.
            tokens: their tokens, padding not counted.
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
        """Counts the time of a block as a share of the step it lies in.

        Args:
            name: of the share.
            side_by_side: how many threads run such a block at once, so that together they count once.
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
        """Time in the steps that count."""
        return sum(seconds for seconds, _, _ in self._steps)

    @property
    def shares(self) -> dict[str, float]:
        """Of the time in the steps that count, by name; what no name was given to is `other`. Empty until a step counts."""
        if not self._steps:
            return {}
        named = {name: seconds / self.seconds for name, seconds in self._shares.items()}
        return {**named, "other": max(0.0, 1.0 - sum(named.values()))}

    @property
    def rows_per_second(self) -> float | None:
        """None until a step counts."""
        return sum(rows for _, rows, _ in self._steps) / self.seconds if self._steps else None

    @property
    def tokens_per_second(self) -> float | None:
        """None until a step counts."""
        return sum(tokens for _, _, tokens in self._steps) / self.seconds if self._steps else None

    @property
    def tokens_per_step(self) -> float | None:
        """The mean, over the steps that count; None until one does."""
        return statistics.fmean(tokens for _, _, tokens in self._steps) if self._steps else None

    @property
    def step_seconds(self) -> Spread | None:
        """Seconds a step, over the steps that count."""
        return Spread.of([seconds for seconds, _, _ in self._steps]) if self._steps else None
