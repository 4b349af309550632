"""What training takes: time and its shares, floating-point operations, and memory by kind.

speed.py       rows and tokens a second, seconds a step and their shares
memory.py      bytes of live tensors by kind; resident memory
operations.py  what the device is given to do, and the memory that it reads and writes
flops.py       arithmetic, and the rates of this machine's matrix products and copies
"""

from rankwise.engine.measure.flops import copy_rate, product_rate
from rankwise.engine.measure.memory import (
    KINDS,
    MB,
    PeakRss,
    TensorMemory,
    allocated_peak_mb,
    label,
    megabytes,
    recomputed,
    resized,
)
from rankwise.engine.measure.operations import Operations
from rankwise.engine.measure.speed import Speed, Spread

__all__ = [
    "KINDS",
    "MB",
    "Operations",
    "PeakRss",
    "Speed",
    "Spread",
    "TensorMemory",
    "allocated_peak_mb",
    "copy_rate",
    "label",
    "megabytes",
    "product_rate",
    "recomputed",
    "resized",
]
