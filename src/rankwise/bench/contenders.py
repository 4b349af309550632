"""Who takes part: one entry a row of the table, and what is compared with what.

A contender is a function of a module in this package, `enter(config, **settings)`, which builds its model and returns a
`Runner`. Everything else (turns, clocks, memory) is the worker's.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from rankwise.tasks.encoding import Encoded


@runtime_checkable
class Runner(Protocol):
    """A contender that has its model and is ready to train."""

    def order(self, lengths: np.ndarray, seed: int) -> list[np.ndarray]:
        """Rows (by their lengths) into batches, by the contender's own protocol."""
        ...

    def train(self, rows: Encoded, batches: list[np.ndarray], after_step: Callable[[], None]) -> None:
        """Trains one step a batch, in order, and calls `after_step` behind each."""
        ...


@dataclass(frozen=True)
class Contender:
    """One row of the table.

    Attributes:
        module: where its `enter` is.
        settings: keyword arguments of its `enter`.
        max_length: rows are cut to this many tokens.
        needs: packages it can't do without, beyond rankwise's own dependencies.
        optional: it takes part only where it is asked for by name (a variant of ours, one part of the engine left out).
    """

    module: str
    settings: dict[str, Any] = field(default_factory=dict)
    max_length: int | None = None
    needs: tuple[str, ...] = ()
    optional: bool = False


_PEER = {"module": "rankwise.bench.baselines", "needs": ("peft", "accelerate")}

CONTENDERS: dict[str, Contender] = {
    "rankwise lora": Contender("rankwise.bench.ours", {"method": "lora"}),
    "rankwise lora lean": Contender("rankwise.bench.ours", {"method": "lora", "memory": "lean"}),
    "rankwise adaptive": Contender("rankwise.bench.ours", {"method": "adaptive"}),
    "rankwise full": Contender("rankwise.bench.ours", {"method": "full"}),
    "peft lora sdpa": Contender(settings={"lora": True, "attention": "sdpa"}, **_PEER),
    "peft lora eager": Contender(settings={"lora": True, "attention": "eager"}, **_PEER),
    "peft lora pad128": Contender(settings={"lora": True, "pad_to": 128}, max_length=128, **_PEER),
    "trainer full": Contender(settings={"lora": False}, **_PEER),
    "floor": Contender("rankwise.bench.lower_bound"),
    "rankwise lora padded": Contender(
        "rankwise.bench.ours", {"method": "lora", "padding": "longest"}, optional=True
    ),
} | {
    f"without {part}": Contender("rankwise.bench.ablation", {"without": part}, optional=True)
    for part in (
        "packing",
        "grouped attention",
        "one function for LoRA",
        "cheap dropout",
        "a bfloat16 base",
        "a flat optimizer",
        "parts side by side",
        "filling",
    )
}


def standard() -> tuple[str, ...]:
    """Who takes part where nobody is named."""
    return tuple(name for name, contender in CONTENDERS.items() if not contender.optional)


RATIOS: dict[str, tuple[str, tuple[str, ...]]] = {
    "lora_vs_peft_best": ("rankwise lora", ("peft lora sdpa", "peft lora eager")),
    "lora_vs_peft_pad128": ("rankwise lora", ("peft lora pad128",)),
    "lora_padded_vs_peft_best": ("rankwise lora padded", ("peft lora sdpa", "peft lora eager")),
    "adaptive_vs_lora": ("rankwise adaptive", ("rankwise lora",)),
    "lora_vs_full": ("rankwise lora", ("rankwise full",)),
    "full_vs_trainer_full": ("rankwise full", ("trainer full",)),
    "lean_vs_lora": ("rankwise lora lean", ("rankwise lora",)),
    "step_vs_floor": ("floor", ("rankwise lora",)),  # rates turned over: the step's time over the floor's
}
"""Rows per second of the first over the second; of several, over the one with the best median."""

MEMORY_RATIOS: dict[str, tuple[str, str]] = {
    "trainer_full_vs_lora": ("trainer full", "rankwise lora"),
    "trainer_full_vs_lean": ("trainer full", "rankwise lora lean"),
    "peft_sdpa_vs_lora": ("peft lora sdpa", "rankwise lora"),
    "peft_eager_vs_lora": ("peft lora eager", "rankwise lora"),
}
"""Peak tensor memory of the first over the second."""
