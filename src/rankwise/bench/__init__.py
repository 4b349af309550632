"""`rankwise bench`: on this machine, this model and these lengths, ours beside PEFT + Trainer, full
fine-tuning and the floor.

Each contender is a process of its own, taking turns in one run; see `contenders.py` for who takes part.
"""

from rankwise.bench.config import BenchConfig
from rankwise.bench.coordinator import Progress
from rankwise.bench.measurement import bench
from rankwise.bench.results import tables

__all__ = ["BenchConfig", "Progress", "bench", "tables"]
