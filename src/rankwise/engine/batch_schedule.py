"""Which rows each step trains on: an order drawn anew every epoch, and replacement examples for held-out rows.

    epoch e:  stream_seed(seed, "order", e) ─► a permutation of all rows ─► batches
    until the held-out rows are released:       held-out row i → its replacement
    for as many steps afterwards:               a replacement → its held-out row i, which catches up

A batch is a function of the seed, the step and the step of release alone. So every method sees the same rows at the same step, and a
resumed run continues with the batch it would have seen.
"""

import math
from collections.abc import Iterator
from typing import cast

import numpy as np
from jaxtyping import Int64

from rankwise.config import TrainOptions
from rankwise.engine.batches import batch_order
from rankwise.seeding import stream_seed


def total_steps(rows: int, options: TrainOptions) -> int:
    """Return the optimizer steps of a run over `rows` rows."""
    return max(1, round(cast(float, options.epochs) * math.ceil(rows / cast(int, options.batch_size))))


class BatchSchedule:
    """The batches of a training, by step.

    Args:
        lengths: tokens of each row.
        batch_size: rows a batch; the last of an epoch may have fewer.
        steps: optimizer steps in all.
        seed: of the order, and of the choice of held-out rows.
        group_by_length: batches hold rows of similar length, as padded training wants.
    """

    def __init__(
        self,
        lengths: Int64[np.ndarray, "rows"],
        *,
        batch_size: int,
        steps: int,
        seed: int,
        group_by_length: bool = False,
    ) -> None:
        self.rows, self.batch_size, self.steps = len(lengths), batch_size, steps
        self.steps_per_epoch = math.ceil(len(lengths) / batch_size)
        self.held_out: np.ndarray | None = None
        """Row numbers kept out of training, until they come back."""
        self._lengths, self._seed, self._group_by_length = lengths, seed, group_by_length
        self._replacement, self._returning = np.arange(len(lengths)), np.arange(len(lengths))
        self._kept: tuple[int, list[np.ndarray]] = (-1, [])

    def hold_out(self, n: int, strata: Int64[np.ndarray, "rows"] | None = None) -> None:
        """Draw `n` rows to hold out. A batch without them has a replacement example in the place of each.

        So every method takes as many steps of as many rows, and the rows that aren't held out are the same. Afterwards the held-out rows
        stand in for their replacements as long: if a training has time for that, it sees every row as often as any other.

        Args:
            n: at most half of the rows.
            strata: group of each row; the held-out rows have the groups' shares. Default: one group.
        """
        order = np.random.default_rng(stream_seed(self._seed, "held out")).permutation(self.rows)
        by_group = order if strata is None else order[np.argsort(strata[order], kind="stable")]
        self.held_out = by_group[((np.arange(n) + 0.5) * self.rows // n).astype(np.int64)]
        others = order[~np.isin(order, self.held_out)]
        self._replacement[self.held_out] = others[:n]
        self._returning[others[:n]] = self.held_out

    def batch(self, step: int, *, released: int | None = 0) -> np.ndarray:
        """Return the row numbers of a step.

        Args:
            step: from 0.
            released: the step from which held-out rows are trained on, too; None where they are held out still.
        """
        epoch = step // self.steps_per_epoch
        if self._kept[0] != epoch:
            self._kept = (epoch, self.epoch(epoch))
        batch = self._kept[1][step % self.steps_per_epoch]
        if released is None or step < released:
            return self._replacement[batch]
        return self._returning[batch] if step < 2 * released else batch

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """Return the batches of an epoch (from 0), held-out rows among them."""
        return batch_order(
            self._lengths,
            self.batch_size,
            seed=stream_seed(self._seed, "order", epoch),
            group_by_length=self._group_by_length,
        )

    def epochs(self) -> Iterator[list[np.ndarray]]:
        """Yield the batches of every epoch of the run."""
        return (self.epoch(epoch) for epoch in range(math.ceil(self.steps / self.steps_per_epoch)))


class GivenBatches(BatchSchedule):
    """Batches that are given, not drawn: for measuring.

    Args:
        batches: row numbers of each step; after the last comes the first again.
        steps: optimizer steps in all. Default: one a batch.
    """

    def __init__(self, batches: list[np.ndarray], steps: int | None = None) -> None:
        rows = 1 + max(int(batch.max()) for batch in batches)
        super().__init__(
            np.ones(rows, dtype=np.int64),
            batch_size=max(map(len, batches)),
            steps=steps or len(batches),
            seed=0,
        )
        self.steps_per_epoch, self._batches = len(batches), batches

    def hold_out(self, n: int, strata: Int64[np.ndarray, "rows"] | None = None) -> None:
        """Hold nothing out: the batches stay as they were given."""
        self.held_out = np.empty(0, dtype=np.int64)

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """Return the batches given."""
        return self._batches
