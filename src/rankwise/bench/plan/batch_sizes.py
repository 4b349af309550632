"""How the peak grows with the batch: the heaviest batch of an epoch, and the largest batch that fits.

At any moment of a step, memory grows almost linearly with the weight of the batch (`weight`). So few batch sizes have to be
planned.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np

from rankwise.bench.plan.setup import Setting
from rankwise.bench.plan.step import MemoryPlanner, largest
from rankwise.bench.plan.weight import costs, shares, weight
from rankwise.engine.batches import batch_order, token_batches
from rankwise.engine.compute import FORWARD_TOKENS
from rankwise.engine.measure import KINDS
from rankwise.seeding import stream_seed

EPOCHS = 3
"""Epochs that are searched for the heaviest batch. Each has its own order of rows."""
CHANGING = ("activations", "batch", "workspace")
"""Kinds of tensors that grow with the batch."""
CLOSE, MOST_PLANNED = 0.02, 6
"""The search for the largest batch ends when a larger one could be larger by this share at most, or after so many sizes."""
APART = 0.1
"""Least distance between the first size and the second, as a share of the first."""


def heaviest_batch(lengths: np.ndarray, batch_size: int, setting: Setting) -> np.ndarray:
    """Return the tokens of each row of the heaviest batch in `EPOCHS` epochs, with rows shuffled as a run shuffles them."""
    per_token, per_pair = costs(setting)
    packed = setting.padding == "packed"
    each = per_token * lengths + per_pair * lengths.astype(float) ** 2
    best: tuple[float, np.ndarray] = (-1.0, lengths[:0])
    for i in range(EPOCHS):
        seed = stream_seed(0, "order", i)
        order = batch_order(lengths, batch_size, seed=seed, group_by_length=not packed)
        sizes = np.array([len(batch) for batch in order])
        starts, rows = np.cumsum(sizes) - sizes, np.concatenate(order)
        weights = (
            np.add.reduceat(each[rows], starts) if packed else sizes * np.maximum.reduceat(each[rows], starts)
        )
        heavy = int(weights.argmax())
        best = max(best, (float(weights[heavy]), lengths[order[heavy]]), key=lambda one: one[0])
    return best[1]


class BatchSizes:
    """The peak of training by batch size, for the heaviest batch of an epoch.

    With adaptive rank, a pass over held-out rows counts too, where it takes more than a step.

    Args:
        planner: of the training.
        lengths: tokens of every row.
        recompute: with gradient checkpointing.
        report: called before a size is planned.
        device: `cpu` or `cuda`.
    """

    def __init__(
        self,
        planner: MemoryPlanner,
        lengths: np.ndarray,
        recompute: bool,
        report: Callable[[], None] = lambda: None,
        device: str = "cpu",
    ) -> None:
        self.planner, self.lengths, self.recompute, self._report = planner, lengths, recompute, report
        self._known: dict[int, np.ndarray] = {}
        self._held_out = np.empty((0, len(KINDS)))
        if planner.setting.method == "adaptive":
            most = FORWARD_TOKENS[device] // (1 if planner.setting.problem == "classification" else 4)
            batches = (lengths[rows] for rows in token_batches(lengths, most))
            self._held_out = planner.forward(max(batches, key=lambda batch: weight(batch, planner.setting)))

    def __call__(self, batch_size: int) -> dict[str, int]:
        """Return bytes by kind at the peak."""
        return largest(self._phases(batch_size))

    def _phases(self, batch_size: int) -> np.ndarray:
        if batch_size not in self._known:
            self._report()
            batch = heaviest_batch(self.lengths, batch_size, self.planner.setting)
            phases = self.planner.phases(batch, self.recompute)
            self._known[batch_size] = np.vstack([phases, self._held_out])
        return self._known[batch_size]

    def largest(self, batch_size: int, fits: Callable[[dict[str, int]], bool]) -> int:
        """Return the largest batch size that fits, or 0 where a single row does not fit.

        The size returned has been planned itself. A larger one that fits would be larger by a share of `CLOSE` at most.

        Args:
            batch_size: where the search starts.
            fits: judges a peak. What fits at a size must fit at smaller sizes.
        """
        sizes = [batch_size]
        while True:
            good = max((n for n in sizes if fits(self(n))), default=0)
            bad = min((n for n in sizes if not fits(self(n))), default=len(self.lengths) + 1)
            line, between = self._line(sizes[-2:]), range(good + 1, bad)
            more = bisect_left(between, True, key=lambda n, line=line: not fits(largest(line(n))))
            near = len(sizes) > 1 and max(more, 1) <= CLOSE * good
            if not between or near or (len(sizes) >= MOST_PLANNED and good):
                return good
            size = between[max(0, more - 1)]
            if len(sizes) == 1 and abs(size - batch_size) < APART * batch_size:
                size = batch_size // 2 or 2  # far enough away to fit a line
            sizes.append(size)

    def _line(self, sizes: Sequence[int]) -> Callable[[int], np.ndarray]:
        """Return a function from batch size to phases, linear in the weight of the batch.

        It goes through two sizes, or through one, as though all that grows with the batch were proportional to it.
        """
        known, weight = self._phases(sizes[0]), self._weight(sizes[0])
        slope = known * np.isin(KINDS, CHANGING) / weight
        if len(sizes) == 2:
            slope = (self._phases(sizes[1]) - known) / (self._weight(sizes[1]) - weight or 1.0)
        return lambda n: known + (self._weight(n) - weight) * slope

    def _weight(self, size: int) -> float:
        setting = self.planner.setting
        batch = heaviest_batch(self.lengths, size, setting)
        return max(weight(share, setting) for share in shares(batch, setting.processes))
