"""What training takes: time and its shares, floating-point operations, and memory by kind.

speed.py    rows and tokens a second, seconds a step and their shares
memory.py   bytes of live tensors by kind; resident memory
flops.py    operations, and the rate of this machine's matrix products
"""

from rankwise.engine.measure.flops import product_rate
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
from rankwise.engine.measure.speed import Speed, Spread

__all__ = [
    "KINDS",
    "MB",
    "PeakRss",
    "Speed",
    "Spread",
    "TensorMemory",
    "allocated_peak_mb",
    "label",
    "megabytes",
    "product_rate",
    "recomputed",
    "resized",
]
