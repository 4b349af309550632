"""How a batch is divided into micro-batches and run, within a memory budget.

    peak bytes of a micro-batch = base + token · tokens + score · Σ length²      beside weights, moments and gradients

Everything a step keeps for backward grows with its tokens or with the square of its rows' lengths. `autotune` fits this line and
chooses an `Engine`. An engine is stored with the run, because a resumed run divides its batches in the same way.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from rankwise.engine.packing import PackedBatch

MARGIN = 1.08
"""Rows are taken to cost this much more than the fitted line, because rows of other lengths fill their groups differently."""


@dataclass(frozen=True)
class Cost:
    """Peak bytes and seconds of a micro-batch, beside what is always in memory.

    Attributes:
        base, token, score: bytes of a micro-batch, of each token, and of each square of a row's length.
        seconds, token_seconds: seconds of a micro-batch, and of each token.
    """

    base: float
    token: float
    score: float
    seconds: float
    token_seconds: float

    def rows(self, lengths: np.ndarray) -> np.ndarray:
        """Return the bytes of each row by its length, without the base."""
        return MARGIN * (self.token * lengths + self.score * lengths.astype(np.float64) ** 2)

    @classmethod
    def fit(cls, probes: list[tuple[np.ndarray, float, float]]) -> "Cost":
        """Return the least-squares line through probes: (lengths of the rows, peak bytes, seconds)."""
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
        micro_batches: how many run side by side, each on its share of the cores.
        recompute: gradient checkpointing: layers keep their input only and run again in backward.
        cost: of a micro-batch, where memory is limited.
        budget: bytes that the rows of a micro-batch may cost, where memory is limited.
    """

    micro_batches: int = 1
    recompute: bool = False
    cost: Cost | None = None
    budget: float = math.inf

    def divide(self, batch: PackedBatch, at_least: int = 1) -> list[PackedBatch]:
        """Divide a batch into micro-batches that stay within the budget, or have a single row.

        Args:
            batch: packed rows.
            at_least: micro-batches asked for; there are never fewer than run side by side.
        """
        equal = batch.divide(max(at_least, self.micro_batches))
        if self.cost is None or all(self.cost.rows(m.layout.padded).sum() <= self.budget for m in equal):
            return equal
        return batch.split(self.budget, self.cost.rows(batch.layout.padded))

    def least_micro_batches(self, lengths: np.ndarray) -> int:
        """Return how many micro-batches the budget asks for, at least, for rows of these lengths.

        Rows of one length, as padding makes them, stay within the budget in as many micro-batches of equal size.
        """
        if self.cost is None:
            return 1
        costs = self.cost.rows(lengths)
        if costs.min() == costs.max():
            return math.ceil(len(costs) / max(1, int(self.budget / costs[0])))
        return math.ceil(float(costs.sum()) / self.budget)

    def forward_tokens(self, most: int) -> int:
        """Return the tokens of a micro-batch that keeps nothing for backward: `most`, or fewer within the budget."""
        return most if self.cost is None else max(1, min(most, int(self.budget / (MARGIN * self.cost.token))))

    def with_extra_bytes(self, extra: float) -> "Engine":
        """Return the same engine where `extra` more bytes are always in memory, taken from the micro-batches' budgets."""
        if self.cost is None:
            return self
        return replace(self, budget=max(1.0, self.budget - extra / self.micro_batches))

    def to_json(self) -> dict[str, Any]:
        """Return plain values for run.json."""
        return {**asdict(self), "budget": None if math.isinf(self.budget) else self.budget}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "Engine":
        """Return the engine that `to_json` described."""
        cost = None if stored["cost"] is None else Cost(**stored["cost"])
        budget = math.inf if stored["budget"] is None else stored["budget"]
        return cls(stored["micro_batches"], stored["recompute"], cost, budget)
