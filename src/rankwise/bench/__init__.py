"""`rankwise bench`: on this machine, this model and these lengths, ours beside PEFT + Trainer, full fine-tuning and the
floor. Each contender is a process of its own, taking turns in one run.

    config.py  what is measured          coordinator.py  whose turn it is         ours.py peers.py floor.py
    contenders.py  who takes part        worker.py  one contender's process       measurement.py results.py
"""

from rankwise.bench.config import BenchConfig

__all__ = ["BenchConfig"]
