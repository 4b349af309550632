"""`rankwise plan`: the peak of training memory before any training, from shapes alone.

    setup.py         the training to plan for
    fake_tensors.py  tensors that have shapes and no values
    step.py          one training step on them: its peak by kind of tensor
    weight.py        how heavy a batch is, and the shares of several processes
    batch_sizes.py   how the peak grows with the batch: the heaviest of an epoch, the largest that fits
    seconds.py       the time an epoch takes on this machine
    answer.py        from a request to its answer: which configurations fit, at which batch size

Memory that is not tensors comes on top: Python and PyTorch, and on a GPU its context and what its allocator loses. Both are
given as ranges, so an answer near the limit is "too close to call".
"""

from rankwise.bench.plan.answer import find_architecture, find_lengths, judge, plan
from rankwise.bench.plan.batch_sizes import BatchSizes, heaviest_batch
from rankwise.bench.plan.seconds import epoch_seconds
from rankwise.bench.plan.setup import (
    Setting,
    build_training,
    can_be_packed,
    draw_rows,
    has_plain_head,
    with_layers,
)
from rankwise.bench.plan.step import MemoryPlanner

__all__ = [
    "BatchSizes",
    "MemoryPlanner",
    "Setting",
    "build_training",
    "can_be_packed",
    "draw_rows",
    "epoch_seconds",
    "find_architecture",
    "find_lengths",
    "has_plain_head",
    "heaviest_batch",
    "judge",
    "plan",
    "with_layers",
]
