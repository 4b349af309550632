"""The sweeps behind the learning rates of recipes/rankwise.toml and of the studies: as many trials for full fine-tuning as for LoRA at any
rank and scale, judged on rows held out of the training split.

    python studies/learning_rates.py --data ../shared/data/glue          # runs what is missing, stores, prints
    python studies/learning_rates.py --show                              # prints what is stored

Each trial is `rankwise train` in a process of its own, with the recipe's other settings, on the rows of studies/trials.py. Stored as
studies/learning_rates.parquet, a row a trial; `--device cuda` stores apart.
"""

import argparse
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from scipy.stats import spearmanr

from rankwise.run_folder import method_slug
from trials import Row, run_missing, split, trial

STORED = Path(__file__).with_suffix(".parquet")
Rates = dict[str, tuple[float, ...]]
WIDE: Rates = {"full": (2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4), "lora": (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)}
NEAR: Rates = {"full": (1e-4, 2e-4, 4e-4), "lora": (1e-3, 2e-3, 4e-3)}
SCALED = {
    **{f"lora:rank={r},alpha=16": (1e-3, 2e-3, 4e-3) for r in (1, 4, 16, 64)},  # s = 16/r
    **{f"lora:rank={r},alpha={5.66 * r**0.5:.3g}": (1e-3, 2e-3, 4e-3) for r in (1, 64)},  # s = 5.66/√r
}
"""Fixed ranks at two rules for the scale that agree at rank 8."""
SLOWER = (5e-4, 1e-3, 2e-3)
OTHERS: Rates = {
    "full": (5e-5, 1e-4, 2e-4),
    "lora:rank=8,alpha=16,targets=all-linear": SLOWER,
    "adaptive": SLOWER,
}
BASELINES: Rates = {
    "peft:adalora,rank=4,targets=all-linear": (1e-3, 2e-3, 4e-3, 8e-3),
    "peft:eva,rank=4,targets=all-linear": (5e-4, 1e-3, 1.4e-3, 2e-3),
}
"""As many rates as adaptive had in all linear layers."""
AT_ITS_SIZE: Rates = {
    "peft:adalora,rank=1,targets=all-linear": (4e-3, 8e-3, 1.1e-2, 1.6e-2),
    "peft:eva,rank=1,targets=all-linear": (1e-3, 1.4e-3, 2e-3, 4e-3),
    "lora:rank=16,alpha=5.66,rslora=true,targets=all-linear": (7e-4, 1e-3, 1.4e-3, 2e-3),
}
"""What studies/equal_size.py compares with, at the rank and with the schedule that it has there, and with update clipping."""
AGAIN: Rates = {
    "adaptive": (2e-3, 1e-3),
    "lora:rank=8,alpha=16": (2e-3, 1e-3),
    "lora:rank=64,alpha=45.3": (2e-3, 1e-3),
    "full": (2e-4, 1e-4),
}
"""The rates in question once second moments decay by 0.98, the recipe's."""
BETWEEN: Rates = {
    "adaptive": (7e-4,),
    "lora:rank=8,alpha=16": (1.4e-3,),
    "lora:rank=64,alpha=45.3": (1.4e-3,),
    "full": (1.4e-4,),
}
"""Half-way between two rates that are near each other, for each."""
WITH_POOLER: Rates = {"adaptive": (1e-3, 1.4e-3, 2e-3)}
"""The same rates again once BERT's pooler has an adapter and the warm-up takes 50 steps at least."""
HEAD: Rates = {"head": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)}
"""A head alone, on a base that stays as it is: six rates, since the best of four was the last."""


class Sweep(NamedTuple):
    """A task, epochs, β₂, the rates of each method, as many for one as for another, seeds, and a schedule if it isn't linear."""

    task: str
    epochs: float
    beta2: float
    rates: Rates
    seeds: tuple[int, ...]
    pooler: bool = False
    schedule: str | None = None

    def trial(self, method: str, lr: float) -> Row:
        """What names a trial, whatever its seed."""
        which: Row = {
            "task": self.task,
            "epochs": self.epochs,
            "beta2": self.beta2,
            "method": method,
            "lr": lr,
        }
        named = {"pooler": self.pooler, "schedule": self.schedule}
        return which | {name: value for name, value in named.items() if value}

    def of(self, rows: Iterable[Row], method: str, lr: float) -> list[Row]:
        """Its trials with a rate among others."""
        asked = {"pooler": None, "schedule": None, **self.trial(method, lr)}.items()
        return [r for r in rows if asked <= {"pooler": None, "schedule": None, **r}.items()]


SWEEPS = [
    Sweep("movies", 3.0, 0.999, WIDE, (0, 1)),
    Sweep("movies", 2.0, 0.999, NEAR, (0, 1)),
    Sweep("sst2", 3.0, 0.999, SCALED | OTHERS, (0,)),
    Sweep(
        "mnli", 3.0, 0.999, {"lora:rank=8,alpha=16": SLOWER} | dict.fromkeys(SCALED, SLOWER) | OTHERS, (0,)
    ),
    Sweep("mnli", 3.0, 0.98, AGAIN, (0,)),
    Sweep("sst2", 3.0, 0.98, AGAIN, (0,)),
    Sweep("mnli", 3.0, 0.98, BETWEEN, (0,)),
    Sweep("sst2", 3.0, 0.98, BETWEEN, (0,)),
    Sweep("sst2", 3.0, 0.98, WITH_POOLER, (0,), pooler=True),
    Sweep("mnli", 3.0, 0.98, WITH_POOLER, (0,), pooler=True),
    Sweep("mnli", 3.0, 0.98, BASELINES, (0,)),
    Sweep("mnli", 3.0, 0.98, AT_ITS_SIZE, (0,), schedule="two-phase"),
    Sweep("mnli", 3.0, 0.98, HEAD, (0,)),
    Sweep("sst2", 3.0, 0.98, HEAD, (0,)),
]
"""`make compare` takes 2 epochs, the recipe 3."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with one sub-folder of Parquet files a task")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/learning-rates"), help="where trials are kept"
    )
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time, with one thread each")
    parser.add_argument("--beta2", type=float, help="only the sweeps with this decay of second moments")
    parser.add_argument("--pooler", action="store_true", help="only the sweeps with adapters in the pooler")
    parser.add_argument("--method", help="only this method's trials")
    parser.add_argument("--schedule", help="only the sweeps with this schedule, where it isn't linear")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda is stored apart")
    parser.add_argument("--show", action="store_true", help="print what is stored, run nothing")
    asked = parser.parse_args()
    stored = STORED if asked.device == "cpu" else STORED.with_stem(f"{STORED.stem}-{asked.device}")
    if not asked.show:
        wanted = [
            which
            for which in _trials()
            if asked.beta2 in (None, which["beta2"])
            and asked.method in (None, which["method"])
            and (which.get("pooler") or not asked.pooler)
            and asked.schedule in (None, which.get("schedule"))
        ]
        for task in dict.fromkeys(which["task"] for which in wanted):
            split(task, asked.data, asked.work)
        run_missing(stored, wanted, partial(_trial, asked.work, asked.device), asked.jobs)
    _print(pq.read_table(stored).to_pylist())


def _trials() -> Iterator[Row]:
    for sweep in SWEEPS:
        for seed in sweep.seeds:
            for trials in zip(*sweep.rates.values(), strict=True):
                for method, lr in zip(sweep.rates, trials, strict=True):
                    yield sweep.trial(method, lr) | {"seed": seed}


def _trial(work: Path, device: str, which: Row) -> Row:
    name = "{}-{lr:g}-{beta2:g}-{epochs:g}-epochs-s{seed}".format(method_slug(which["method"]), **which)
    name += "-pooler" * bool(which.get("pooler")) + (f"-{which['schedule']}" if "schedule" in which else "")
    settings = {key: which[key] for key in ("lr", "beta2", "epochs", "seed")}
    settings |= {"schedule": which.get("schedule", "linear"), "device": device}
    return which | trial(work / which["task"] / name, which["task"], which["method"], settings)


def _print(rows: list[dict[str, Any]]) -> None:
    """Means over seeds, a line a task, method and rate; the best held-out accuracy of each method is marked. Then how well a trial's loss,
    as it is and at the best temperature, tells its accuracy."""
    for sweep in SWEEPS:
        task, epochs, beta2 = sweep[:3]
        for method, rates in sweep.rates.items():
            means = {}
            for lr in rates:
                found = sweep.of(rows, method, lr)
                scores = [r["accuracy"] for r in found if r["accuracy"] is not None]
                losses = [r["loss"] for r in found if r["loss"] is not None]
                if found and len(scores) == len(found):
                    means[lr] = (sum(scores) / len(scores), sum(losses) / len(losses), len(found))
            best = max(means, key=lambda lr: means[lr][0], default=None)
            for lr, (accuracy, loss, n) in means.items():
                mark = "  ←" if lr == best else ""
                print(
                    f"{task:7} {epochs:g} epochs  β₂ {beta2:<5g}  {method:40} {'pooler' * sweep.pooler:6} {sweep.schedule or '':9} "
                    f"{lr:8.1e}  accuracy {accuracy:.4f}  loss {loss:.4f}  n = {n}{mark}"
                )
    for task in dict.fromkeys(sweep.task for sweep in SWEEPS):
        known = [r for r in rows if r["task"] == task and r.get("calibrated_loss") is not None]
        if len(known) > 2:
            accuracy, loss, calibrated = (
                np.array([r[name] for r in known], dtype=float)
                for name in ("accuracy", "loss", "calibrated_loss")
            )
            print(
                f"{task}: rank correlation with accuracy over {len(known)} trials: loss {spearmanr(loss, accuracy)[0]:+.2f}, "
                f"at the best temperature {spearmanr(calibrated, accuracy)[0]:+.2f}"
            )


if __name__ == "__main__":
    main()
