"""How the peak grows with the batch: the heaviest batch of an epoch, and the largest that fits.

What is live at a given moment grows nearly in a line with the weight of a batch, so few sizes are gone through.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np

from rankwise.bench.plan.shapes import Setting, Shapes, largest
from rankwise.engine.compute import FORWARD_TOKENS
from rankwise.engine.measure import KINDS
from rankwise.engine.packing import batch_order, filling, length_groups, token_batches
from rankwise.models import families
from rankwise.seeding import stream_seed

EPOCHS = 3
"""Over which the heaviest batch is looked for: the order of rows is drawn anew in each."""
KEPT = 17
"""Numbers a layer keeps for backward, for each token and unit of width: what makes batches of long rows comparable with those of many."""
CHANGING = ("activations", "batch", "workspace")
"""Kinds that grow with the batch."""
CLOSE, GONE_THROUGH = 0.02, 6
"""The largest batch is named when a larger one that fits would be so near, in a share of it, or when so many were gone through."""
APART = 0.1
"""How far the second size is from the first at least, in a share of it."""


def heaviest(lengths: np.ndarray, batch_size: int, setting: Setting) -> np.ndarray:
    """Tokens of each row of an epoch's heaviest batch.

    Rows are shuffled as a run shuffles them, over `EPOCHS` epochs.
    """
    a_token, a_pair = _costs(setting)
    packed = setting.padding == "packed"
    each = a_token * lengths + a_pair * lengths.astype(float) ** 2
    best: tuple[float, np.ndarray] = (-1.0, lengths[:0])
    for i in range(EPOCHS):
        seed = stream_seed(0, "order", i)
        order = batch_order(lengths, batch_size, seed=seed, group_by_length=not packed)
        sizes = np.array([len(batch) for batch in order])
        begins, rows = np.cumsum(sizes) - sizes, np.concatenate(order)
        weights = (
            np.add.reduceat(each[rows], begins) if packed else sizes * np.maximum.reduceat(each[rows], begins)
        )
        heavy = int(weights.argmax())
        best = max(best, (float(weights[heavy]), lengths[order[heavy]]), key=lambda one: one[0])
    return best[1]


class Sizes:
    """Peaks by batch size, of an epoch's heaviest batch; or, where ranks are found, of the passes over held-out rows that decide them.

    What is live at a given moment grows nearly in a line with the weight of a batch. So few sizes are gone through: the one that is asked
    for, one that it names, and those that the line through two names.

    Args:
        shapes: of the training.
        lengths: tokens of every row.
        recompute: layers run again in backward.
        report: called before a step is gone through.
        device: `cpu` or `cuda`.
    """

    def __init__(
        self,
        shapes: Shapes,
        lengths: np.ndarray,
        recompute: bool,
        report: Callable[[], None] = lambda: None,
        device: str = "cpu",
    ) -> None:
        self.shapes, self.lengths, self.recompute, self._report = shapes, lengths, recompute, report
        self._known: dict[int, np.ndarray] = {}
        self._passes = np.empty((0, len(KINDS)))
        if shapes.setting.method == "adaptive":
            batches = (lengths[rows] for rows in token_batches(lengths, FORWARD_TOKENS[device]))
            self._passes = shapes.forward(max(batches, key=lambda batch: weight(batch, shapes.setting)))

    def __call__(self, batch_size: int) -> dict[str, int]:
        """Bytes by kind, gone through."""
        return largest(self._moments(batch_size))

    def _moments(self, batch_size: int) -> np.ndarray:
        if batch_size not in self._known:
            batch = heaviest(self.lengths, batch_size, self.shapes.setting)
            self._known[batch_size] = self._go_through(batch)
        return self._known[batch_size]

    def _go_through(self, batch: np.ndarray) -> np.ndarray:
        self._report()
        return np.vstack([self.shapes.moments(batch, self.recompute), self._passes])

    def largest(self, batch_size: int, limit: float, fits: Callable[[dict[str, int]], bool]) -> int:
        """The largest batch size that fits, to `CLOSE`; it has been gone through itself. 0 where one row doesn't fit.

        Args:
            batch_size: one to go out from.
            fits: judges a peak; what fits at a size does at smaller ones.
        """
        sizes = [batch_size]
        while True:
            good = max((n for n in sizes if fits(self(n))), default=0)
            bad = min((n for n in sizes if not fits(self(n))), default=len(self.lengths) + 1)
            law, between = self._law(sizes[-2:]), range(good + 1, bad)
            more = bisect_left(between, True, key=lambda n, law=law: not fits(largest(law(n))))
            near = len(sizes) > 1 and max(more, 1) <= CLOSE * good
            if not between or near or (len(sizes) >= GONE_THROUGH and good):
                return good
            size = between[max(0, more - 1)]
            if len(sizes) == 1 and abs(size - batch_size) < APART * batch_size:
                size = batch_size // 2 or 2  # for a line to go by
            sizes.append(size)

    def _law(self, sizes: Sequence[int]) -> Callable[[int], np.ndarray]:
        """Moments of any size by its weight: in a line through two sizes, or by one, as though all that a batch brings grew with it."""
        known, weight = self._moments(sizes[0]), self._weight(sizes[0])
        slope = known * np.isin(KINDS, CHANGING) / weight
        if len(sizes) == 2:
            slope = (self._moments(sizes[1]) - known) / (self._weight(sizes[1]) - weight or 1.0)
        return lambda n: known + (self._weight(n) - weight) * slope

    def _weight(self, size: int) -> float:
        return weight(heaviest(self.lengths, size, self.shapes.setting), self.shapes.setting)


def weight(batch: np.ndarray, setting: Setting) -> float:
    """What the memory of a batch grows with in a line, of the lengths it is computed with.

    A layer keeps some `KEPT` numbers a token and width, and one for each head and pair of a row's tokens.
    """
    if setting.padding == "packed":
        tokens = int(batch.sum())
        padded, tokens = length_groups(np.sort(batch)), tokens + filling(tokens)
    else:
        padded = np.full_like(batch, batch.max())
        tokens = int(padded.sum())
    a_token, a_pair = _costs(setting)
    return a_token * tokens + a_pair * float((padded.astype(float) ** 2).sum())


def _costs(setting: Setting) -> tuple[int, int]:
    return KEPT * families.width(setting.architecture), setting.architecture.num_attention_heads
