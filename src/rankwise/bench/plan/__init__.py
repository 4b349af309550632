"""The peak of training before there is any, from shapes alone.

    shapes.py    a step of the training, on tensors without values: its peak by kind
    sizes.py     how that grows with the batch: the heaviest of an epoch, the largest that fits
    seconds.py   how long an epoch takes on this machine
    answer.py    what is asked and answered: which configurations fit, at which batch

What isn't a tensor comes on top: Python and PyTorch themselves, and on a card its context and what its allocator can't use. Both are stated
as ranges, so an answer near the limit is "too close to call".
"""

from rankwise.bench.plan.answer import find_architecture, find_lengths, judge, plan
from rankwise.bench.plan.seconds import epoch_seconds
from rankwise.bench.plan.shapes import Setting, Shapes, packs, prepared, reduced
from rankwise.bench.plan.sizes import Sizes, heaviest

__all__ = [
    "Setting",
    "Shapes",
    "Sizes",
    "epoch_seconds",
    "find_architecture",
    "find_lengths",
    "heaviest",
    "judge",
    "packs",
    "plan",
    "prepared",
    "reduced",
]
