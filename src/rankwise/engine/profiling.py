"""Which steps of a run have their memory and operations followed.

Following a step makes it slower by a tenth to two thirds. So it is done for the steps where memory can peak, and for a few more
over the run that draw the curve.
"""

import numpy as np

from rankwise.engine.batch_schedule import BatchSchedule
from rankwise.engine.compute import Compute
from rankwise.tasks.encoding import Encoded

CURVE_POINTS = 20
"""Steps of a run whose memory is followed for the curve, about evenly spaced."""
LEAST_SPACING = 100
"""Steps between two of them, at least."""


def profiled_steps(batches: BatchSchedule, rows: Encoded, compute: Compute) -> frozenset[int]:
    """Return the steps (from 0) whose memory to follow.

    They are the batches with most tokens and with most attention scores, the last step, and up to `CURVE_POINTS` over the run.
    The first step is none of the heaviest, because the optimizer has no moments yet. They depend on the run alone, so a resumed
    run follows the same steps.

    Args:
        batches: of the run.
        rows: token ids of all rows.
        compute: pads them.
    """
    sums: list[tuple[int, int]] = []
    for epoch in batches.epochs():
        lengths = (compute.lengths(rows, batch) for batch in epoch)
        sums += [(int(n.sum()), int((n.astype(np.int64) ** 2).sum())) for n in lengths]
    first = min(1, batches.steps - 1)
    heaviest = {first + int(np.argmax([one[i] for one in sums[first : batches.steps]])) for i in (0, 1)}
    spacing = max(batches.steps // CURVE_POINTS, LEAST_SPACING)
    return frozenset(heaviest | {*range(1, batches.steps, spacing), batches.steps - 1})


def heaviest_batch(batches: BatchSchedule, rows: Encoded, compute: Compute) -> np.ndarray:
    """Return the row numbers of the batch with most tokens, padding included, over the epochs of a run."""
    every = (batch for epoch in batches.epochs() for batch in epoch)
    return max(every, key=lambda batch: compute.lengths(rows, batch).sum())
