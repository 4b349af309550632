"""`rankwise bench`: the speed and memory of training on this machine, ours beside PEFT + Trainer or TRL and full fine-tuning.

Each contender is a process of its own. They take turns within one measurement.

    config.py       what is measured                     coordinator.py  starts the processes, gives them their turns
    contenders.py   who takes part, what is compared     worker.py       one contender's process
    ours.py  baselines.py  trl.py  lower_bound.py  ablation.py   build the contenders
    measurement.py  from a request to its result         results.py      medians, ratios, the table
    plan/           the peak of memory before training   families.py     what `rankwise models` lists
"""

from rankwise.bench.config import BenchConfig

__all__ = ["BenchConfig"]
