"""The contenders of `rankwise bench`, one entry a row of the table, and the ratios that are taken between them.

A contender names a module of this package. The module's `build_runner(config, **settings)` builds the model and returns a
`Runner`. Turns, clocks and memory are the same for all contenders; `worker.py` has them.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from rankwise.tasks.encoding import Encoded


@runtime_checkable
class Runner(Protocol):
    """A contender that has built its model and is ready to train."""

    def order(self, lengths: np.ndarray, seed: int) -> list[np.ndarray]:
        """Divide rows, given by their lengths in tokens, into batches of row numbers by the contender's own protocol."""
        ...

    def train(self, rows: Encoded, batches: list[np.ndarray], after_step: Callable[[], None]) -> None:
        """Train one step for each batch, in order, and call `after_step` after each."""
        ...


@dataclass(frozen=True)
class Contender:
    """One row of the table.

    Attributes:
        module: has `build_runner`.
        settings: keyword arguments of `build_runner`.
        max_length: longer rows are truncated to this many tokens.
        needs: packages it needs beyond rankwise's own dependencies.
        optional: takes part only when it is named.
        problems: whose models it trains.
        several: can also be measured in several processes that train together.
    """

    module: str
    settings: dict[str, Any] = field(default_factory=dict)
    max_length: int | None = None
    needs: tuple[str, ...] = ()
    optional: bool = False
    problems: tuple[str, ...] = ("classification",)
    several: bool = False


_OURS = {"module": "rankwise.bench.ours", "problems": ("classification", "generation"), "several": True}
_BASELINE = {"module": "rankwise.bench.baselines", "needs": ("peft", "accelerate")}
_TRL = {"module": "rankwise.bench.trl", "needs": ("trl",), "problems": ("generation",)}

ABLATIONS = (
    "packing",
    "grouped attention",
    "fused LoRA function",
    "fast dropout masks",
    "bfloat16 base",
    "flat optimizer buffer",
    "parallel micro-batches",
    "bucketed token counts",
)
"""Optimizations of the engine that can be taken out, one at a time; `ablation.DISABLE` has how."""

CONTENDERS: dict[str, Contender] = {
    "rankwise lora": Contender(settings={"method": "lora"}, **_OURS),
    "rankwise lora lean": Contender(settings={"method": "lora", "memory": "lean"}, **_OURS),
    "rankwise adaptive": Contender(settings={"method": "adaptive"}, **_OURS),
    "rankwise full": Contender(settings={"method": "full"}, **_OURS),
    "peft lora sdpa": Contender(settings={"lora": True, "attention": "sdpa"}, **_BASELINE),
    "peft lora eager": Contender(settings={"lora": True, "attention": "eager"}, **_BASELINE),
    "peft lora pad128": Contender(settings={"lora": True, "pad_to": 128}, max_length=128, **_BASELINE),
    "trainer full": Contender(settings={"lora": False}, **_BASELINE),
    "trl lora": Contender(settings={"lora": True}, **_TRL),
    "trl lora padding-free": Contender(settings={"lora": True, "padding_free": True}, **_TRL),
    "trl lora low-precision base": Contender(settings={"lora": True, "float32_base": False}, **_TRL),
    "trl lora low-precision base padding-free": Contender(
        settings={"lora": True, "float32_base": False, "padding_free": True}, **_TRL
    ),
    "trl full": Contender(settings={"lora": False}, **_TRL),
    "trl full padding-free": Contender(settings={"lora": False, "padding_free": True}, **_TRL),
    "gemm lower bound": Contender("rankwise.bench.lower_bound", problems=("classification", "generation")),
    "rankwise lora padded": Contender(
        settings={"method": "lora", "padding": "longest"}, optional=True, **_OURS
    ),
} | {
    f"without {name}": Contender("rankwise.bench.ablation", {"without": name}, optional=True)
    for name in ABLATIONS
}


def standard(problem: str = "classification") -> tuple[str, ...]:
    """Return the names of the contenders that take part when none is named."""
    return tuple(
        name
        for name, contender in CONTENDERS.items()
        if not contender.optional and problem in contender.problems
    )


IN_SEVERAL = ("rankwise lora", "rankwise adaptive", "rankwise full")
"""Who is measured in several processes when none is named."""
_NAME = re.compile(r"(?P<alone>.+) in (?P<processes>\d+) processes")


def beside_several(names: Sequence[str], processes: int) -> list[str]:
    """Return contenders, each followed by itself in several processes, where it can be and there are several."""
    return [
        one
        for name in names
        for one in (name, f"{name} in {processes} processes")
        if one == name or (processes > 1 and CONTENDERS[name].several)
    ]


def alone(name: str) -> str:
    """Return the name of a contender without its number of processes."""
    found = _NAME.fullmatch(name)
    return found["alone"] if found else name


def processes_of(name: str) -> int:
    """Return how many processes a contender has by its name."""
    found = _NAME.fullmatch(name)
    return int(found["processes"]) if found else 1


TRL_LORA = tuple(name for name in CONTENDERS if name.startswith("trl lora"))
TRL_FULL = tuple(name for name in CONTENDERS if name.startswith("trl full"))

RATIOS: dict[str, tuple[str, tuple[str, ...]]] = {
    "lora_vs_peft_best": ("rankwise lora", ("peft lora sdpa", "peft lora eager")),
    "lora_vs_peft_pad128": ("rankwise lora", ("peft lora pad128",)),
    "lora_padded_vs_peft_best": ("rankwise lora padded", ("peft lora sdpa", "peft lora eager")),
    "lora_vs_trl_best": ("rankwise lora", TRL_LORA),
    "full_vs_trl_full_best": ("rankwise full", TRL_FULL),
    "adaptive_vs_lora": ("rankwise adaptive", ("rankwise lora",)),
    "lora_vs_full": ("rankwise lora", ("rankwise full",)),
    "full_vs_trainer_full": ("rankwise full", ("trainer full",)),
    "lean_vs_lora": ("rankwise lora lean", ("rankwise lora",)),
    # The rates are swapped, so this is the time of our step in units of the lower bound's.
    "step_vs_lower_bound": ("gemm lower bound", ("rankwise lora",)),
}
"""Rows per second of the first over the second. Of several seconds, the one with the best median counts."""

MEMORY_RATIOS: dict[str, tuple[str | tuple[str, ...], str]] = {
    "trainer_full_vs_lora": ("trainer full", "rankwise lora"),
    "trainer_full_vs_lean": ("trainer full", "rankwise lora lean"),
    "peft_sdpa_vs_lora": ("peft lora sdpa", "rankwise lora"),
    "peft_eager_vs_lora": ("peft lora eager", "rankwise lora"),
    "trl_best_vs_lora": (TRL_LORA, "rankwise lora"),
    "trl_best_vs_lean": (TRL_LORA, "rankwise lora lean"),
    "trl_full_best_vs_full": (TRL_FULL, "rankwise full"),
}
"""Peak tensor memory of the first over the second. Of several firsts, the fastest counts, as in `RATIOS`."""
