"""What each part of adaptive rank is good for: the same training with one part left out, or with another in its place.

    python studies/ablations.py --data ../shared/data/glue      # runs what is missing, stores, prints
    python studies/ablations.py --show                          # prints what is stored

Rows, rates and judging are those of studies/trials.py: sst2 and qqp with 8,000 rows to train on and 8,000 to judge on, mnli with 832 to
judge on. Each trial is `rankwise train` in a process of its own, in which a `Variant` is in force. Fixed ranks, for comparison, have a rate
of 2e-3. Stored as studies/ablations.parquet, a row a trial; `--device cuda` stores apart; `--earlier` prints what earlier versions gave.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from torch import Tensor

from rankwise.engine import optim, training
from rankwise.lora.layer import lora_layers
from rankwise.lora.low_rank import LowRankLayer
from rankwise.rank import defaults
from rankwise.rank.components import Basis, identity_basis
from rankwise.rank.config import RankConfig
from rankwise.rank.controller import RankController
from rankwise.rank.decision import Decision
from rankwise.rank.pruning_rule import ImportanceRule, ScoreRule
from rankwise.tasks.objectives import Classification
from trials import (
    NEVER_PRUNED,
    Row,
    earlier,
    prune_at,
    replaced_in,
    run_missing,
    split,
    training_with,
    trial,
)

STORED = Path(__file__).with_suffix(".parquet")
TASKS, SEEDS, LR, EPOCHS, BETA2, SCHEDULE = ("sst2", "mnli", "qqp"), (0, 1), 1.4e-3, 3.0, 0.98, "two-phase"
"""The recipe's for adaptive. Earlier trials without a rate were at 1e-3 with the linear schedule. The first of them had second moments that
decay by 0.999, and most had no adapter in the pooler. `clipped`: with update clipping (`optim.Update`)."""


@dataclass(frozen=True)
class Variant:
    """What a trial differs in.

    Attributes:
        method: as in a grid.
        rank: what takes the place of `rank.defaults`: config, rule, controller.
        training: arguments of `Training`.
        also: what else is replaced while it runs.
    """

    method: str = "adaptive"
    rank: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    also: Callable[[], AbstractContextManager[None]] = nullcontext

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Have every training of this process be this variant, for a block of code."""
        with ExitStack() as stack:
            stack.enter_context(defaults.replaced(**self.rank))
            stack.enter_context(training_with(**self.training))
            stack.enter_context(self.also())
            yield


def with_config(config: RankConfig, method: str = "adaptive", **more: Any) -> Variant:
    """Return a variant with other constants."""
    return Variant(method, rank={"config": config}, **more)


def pruned_at(tolerances: Mapping[float, float], method: str = "adaptive", **more: Any) -> Variant:
    """Return a variant with other tolerances and no noise tolerance."""
    exponent = more.pop("scaling_exponent", 1.0)
    return with_config(replace(prune_at(tolerances), scaling_exponent=exponent), method, **more)


class TrustingController(RankController):
    """Believes the statistics: what they allow is pruned, whatever held-out rows show."""

    def decision(self, kind: str, accepted: bool, *more: Any, **named: Any) -> Decision:
        decision = super().decision(kind, accepted, *more, **named)
        if decision.expected is None:
            return decision
        return replace(decision, accepted=True, loss_increase=decision.expected, error=0.0)


CERTAIN = 1e-9
"""A `prior_sd` so small that no measurement moves the factor away from 1."""


# Other scores in the place of importance


class Energy(ScoreRule):
    """The energy of a component's output: E[z²]·‖B's column‖²."""

    def score(self, layer: LowRankLayer, basis: Basis, statistics: Tensor) -> Tensor:
        zz = basis.statistics(statistics)[: len(basis.importance)].diagonal().double()
        return zz * basis.matrices(layer)[1].double().square().sum(dim=0)


class Magnitude(ScoreRule):
    """The squared norm of a component: ‖A's row‖²·‖B's column‖²."""

    def score(self, layer: LowRankLayer, basis: Basis, statistics: Tensor) -> Tensor:
        A, B = basis.matrices(layer)
        return (A.double().norm(dim=1) * B.double().norm(dim=0)).square()


State = dict[str, Tensor]
"""What is kept of a layer's gradients, a row a component."""


class GradientRule(ImportanceRule):
    """Scores components as they are, in no other basis, by the gradients of A and B at every step.

    Args:
        follow: (layer, state before) → state now, a row a component; called before each optimizer step.
        score: state → the score of each component.
    """

    def __init__(
        self, follow: Callable[[LowRankLayer, State], State], score: Callable[[State], Tensor]
    ) -> None:
        self.follow, self.score = follow, score
        self.states: dict[LowRankLayer, State] = {}

    def components(self, layer: LowRankLayer, statistics: Tensor) -> Basis:
        basis = identity_basis(layer)
        scores = self.score(self.states[layer]).double()
        order = scores.argsort(descending=True, stable=True)
        return Basis(basis.T[order], basis.inverse[:, order], scores[order])

    def resized(self, layer: LowRankLayer, basis: Basis, added: int) -> None:
        kept = basis.T.argmax(dim=1)
        self.states[layer] = {
            name: torch.cat([rows[kept], rows.new_zeros(added, *rows.shape[1:])])
            for name, rows in self.states[layer].items()
        }

    @contextmanager
    def following(self) -> Iterator[None]:
        """Have it see the gradients before each optimizer step of this process's trainings."""
        step, begin = optim.Update.step, RankController.__init__

        def follow_and_step(update: optim.Update, lr: float, then: Callable[[], None] | None = None) -> None:
            with torch.no_grad():
                found = {
                    layer: self.follow(layer, state) for layer, state in self.states.items() if layer.rank
                }
                self.states.update(found)
            step(update, lr, then)

        def begin_with(controller: RankController, model: Any, *given: Any, **named: Any) -> None:
            self.states = {layer: {} for layer in lora_layers(model).values()}
            begin(controller, model, *given, **named)

        with (
            replaced_in(optim.Update, step=follow_and_step),
            replaced_in(RankController, __init__=begin_with),
        ):
            yield


def by_gradients(follow: Callable[[LowRankLayer, State], State], score: Callable[[State], Tensor]) -> Variant:
    rule = GradientRule(follow, score)
    return Variant(rank={"rule": rule}, also=rule.following)


def products(layer: LowRankLayer) -> State:
    """Return w·∂w of every weight, a row a component; and of a factor on each component's output, the sum over either matrix."""
    assert layer.lora_A.grad is not None
    assert layer.lora_B.grad is not None
    A, B = layer.lora_A * layer.lora_A.grad, (layer.lora_B * layer.lora_B.grad).t()
    return {"A": A, "B": B, "factor": A.sum(dim=1, keepdim=True)}


def first_order(layer: LowRankLayer, before: State) -> State:
    """Return squares of the factors' derivatives (Molchanov et al. 2019), with the decay of the other statistics."""
    square = products(layer)["factor"].square().squeeze(1)
    return {"square": square + RankConfig().decay * before.get("square", 0.0)}


def sensitivity(layer: LowRankLayer, before: State) -> State:
    """Return |w·∂w| smoothed, and the mean deviation from it (Zhang et al. 2023, equations 9 and 10, both betas 0.85)."""
    state: State = {}
    for name, product in products(layer).items():
        now, old = product.abs(), before.get(name, torch.zeros_like(product))
        state[name] = 0.85 * old + 0.15 * now
        state[f"{name} off"] = 0.85 * before.get(f"{name} off", 0.0) + 0.15 * (now - state[name]).abs()
    return state


def of_triplet(state: State) -> Tensor:
    """Return the importance of a singular value and its two vectors (Zhang et al. 2023, equation 8); here the value is a factor of 1."""
    A, B, factor = ((state[name] * state[f"{name} off"]).mean(dim=1) for name in ("A", "B", "factor"))
    return factor + A + B


# Other learning rates


def full_rate_again() -> AbstractContextManager[None]:
    """Have the learning rate fall from its peak to zero after the last prune, not from half of the peak."""
    factor = optim.schedule_factor

    def again(
        schedule: optim.Schedule, steps: int, warmup: float, warmup_steps: int = 0
    ) -> Callable[[int], float]:
        usual, pruned = factor(schedule, steps, warmup, warmup_steps), max(RankConfig().prune_at) * steps
        return lambda step: usual(step) if step < pruned else (steps - step) / (steps - pruned)

    return replaced_in(training, schedule_factor=again)


def first_phase(share: float) -> AbstractContextManager[None]:
    """Have the two phases of the schedule meet after another share of the steps."""
    return replaced_in(optim, FIRST_PHASE=share)


def both_at(first: float, last: float) -> Variant:
    """Return a variant that prunes after other shares of the steps; the phases of the schedule meet at the last."""
    early, late = RankConfig().prune_at.values()
    return with_config(RankConfig(prune_at={first: early, last: late}), also=partial(first_phase, last))


TOLERANCE = RankConfig().tolerance
DEEP = {0.5: 0.05, 0.8: 0.1}
AS_LONG = RankConfig(memory=1e-9)
"""No prune is left out, and no noise tolerance smaller, because there are few steps."""
RATE = "adaptive:lr=2e-3"
VARIANTS: dict[str, Variant] = {
    "as it is": Variant(),
    "never cut": with_config(NEVER_PRUNED),
    "query and value only": Variant("adaptive:targets=query+value"),
    "judged by plain cross-entropy": Variant(
        also=partial(replaced_in, Classification, calibrated_losses=Classification.example_losses)
    ),
    "without the held-out test": Variant(
        rank={"config": RankConfig(prior_sd=CERTAIN), "controller": TrustingController}
    ),
    "0.3 and 3 % of the gain": pruned_at({0.5: 0.003, 0.8: 0.03}),
    "0.1 and 1 % of the gain": pruned_at({0.5: 0.001, 0.8: 0.01}),
    "in three steps, 0.3, 1 and 1 %": pruned_at({0.5: 0.003, 0.65: 0.01, 0.8: 0.01}),
    "cut to the knee half-way": pruned_at({0.5: TOLERANCE, 0.8: TOLERANCE}),
    "one cut, at 80 %": pruned_at({0.8: TOLERANCE}),
    "without growth": with_config(RankConfig(grow_at=())),
    "start at rank 4, without growth": with_config(RankConfig(grow_at=()), "adaptive:rank=4"),
    "ordered by the output's energy": Variant(rank={"rule": Energy()}),
    "ordered by magnitude": Variant(rank={"rule": Magnitude()}),
    "ordered by the first order": by_gradients(first_order, lambda state: state["square"]),
    "ordered by AdaLoRA's sensitivity": by_gradients(sensitivity, of_triplet),
    "2 % of the gain however little the rows tell": pruned_at({0.5: TOLERANCE / 10, 0.8: TOLERANCE}),
    "2 and 10 % of the gain": pruned_at({0.5: 0.02, 0.8: 0.1}),
    "5 and 20 % of the gain": pruned_at({0.5: 0.05, 0.8: 0.2}),
    "5 and 10 % of the gain": pruned_at(DEEP),
    "5 and 10 % of the gain, s as at the start": pruned_at(DEEP, scaling_exponent=0.0),
    "5 and 10 % of the gain, s = alpha/√r": pruned_at(DEEP, scaling_exponent=0.5),
    "2 and 10 % of the gain, s as at the start": pruned_at({0.5: 0.02, 0.8: 0.1}, scaling_exponent=0.0),
    "5 and 10 % of the gain, at a rate of 2e-3": pruned_at(DEEP, RATE),
    "5 and 10 % of the gain, back to the full rate after it": pruned_at(DEEP, also=full_rate_again),
    "5 and 10 % of the gain, s as at the start, back to the full rate after it": pruned_at(
        DEEP, scaling_exponent=0.0, also=full_rate_again
    ),
    "cut at 40 and 70 % of the steps, the knee there": both_at(0.4, 0.7),
    "as a long training, however short": with_config(AS_LONG),
    "that, cut at 80 % of the steps only": with_config(replace(AS_LONG, prune_at={0.8: TOLERANCE})),
    "cut at 50 and 80 % of the steps": both_at(0.5, 0.8),
    **{f"statistics times {n:g}": with_config(RankConfig(least_factor=n)) for n in (2.0, 2.5, 3.0, 4.0)},
    "what rows see, however little": with_config(RankConfig(least_factor=0.0)),
    "s as at the start": with_config(RankConfig(scaling_exponent=0.0)),
    "at a rate of 2e-3": Variant(RATE),
    "at a rate of 2e-3, updates not clipped": Variant(RATE, training={"update_clipping": False}),
    **{
        f"rank {r} on query and value{at}": Variant(f"lora:rank={r},alpha=5.66,rslora=true,lr={lr}")
        for r in (8, 64)
        for lr, at in (("2e-3", ""), ("2.8e-3", ", at a rate of 2.8e-3"))
    },
    **{f"start at rank {r}": Variant(f"adaptive:rank={r}") for r in (4, 8, 32)},
    **{
        f"start at rank {r}, s = √(32 / r)": Variant(f"adaptive:rank={r},alpha={(32 * r) ** 0.5:.4g}")
        for r in (4, 8, 32)
    },
}
"""Name → what a trial differs in. The names are those in the stored files, so they keep the words of their time: cut is prune, the knee is
where the two phases of the schedule meet, and "statistics times n" is a least factor of n."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with one sub-folder of Parquet files a task")
    parser.add_argument("--work", type=Path, default=Path("runs/ablations"), help="where trials are kept")
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time, with one thread each")
    parser.add_argument("--tasks", nargs="*", default=TASKS, help="some of the tasks")
    parser.add_argument("--variants", nargs="*", default=tuple(VARIANTS), help="some of the variants")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS, help="seeds")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda is stored apart")
    parser.add_argument("--show", action="store_true", help="print what is stored, run nothing")
    parser.add_argument(
        "--earlier", action="store_true", help="print what earlier versions gave, run nothing"
    )
    parser.add_argument("--rows", type=int, help="train on so few, judge on three times as many at most")
    asked = parser.parse_args()
    asked.show |= asked.earlier
    stored = STORED if asked.device == "cpu" else STORED.with_stem(f"{STORED.stem}-{asked.device}")
    stored = earlier(stored) if asked.earlier else stored
    if not asked.show:
        work = asked.work if asked.rows is None else asked.work / f"{asked.rows}"
        for task in asked.tasks:
            split(task, asked.data, work, asked.rows)
        wanted = [w | {"rows": asked.rows} for w in _trials(asked.tasks, asked.variants, asked.seeds)]
        run_missing(stored, wanted, partial(_trial, work, asked.device), asked.jobs)
    _print(pq.read_table(stored).to_pylist())


def _trials(tasks: Sequence[str], variants: Sequence[str], seeds: Sequence[int]) -> list[Row]:
    return [
        {"task": task, "variant": variant, "seed": seed}
        | {
            "lr": LR,
            "schedule": SCHEDULE,
            "beta2": BETA2,
            "pooler": True,
            "clipped": VARIANTS[variant].training.get("update_clipping", True),
        }
        for seed in seeds
        for task in tasks
        for variant in variants
    ]


def trial_name(variant: str, seed: int) -> str:
    """Return the name of a trial's folder, which is in one for its task."""
    return f"{variant.replace(' ', '-').replace('%', 'percent')}-{LR:g}-{SCHEDULE}-{BETA2:g}-s{seed}"


def _trial(work: Path, device: str, which: Row) -> Row:
    program = [str(Path(__file__)), "--as", which["variant"]]
    name = trial_name(which["variant"], which["seed"])
    settings = {"lr": LR, "epochs": EPOCHS, "beta2": BETA2, "schedule": SCHEDULE, "seed": which["seed"]}
    settings["device"] = device
    return which | trial(
        work / which["task"] / name, which["task"], VARIANTS[which["variant"]].method, settings, program
    )


def _conditions(row: Row) -> tuple[str, ...]:
    """Return task; learning rate, schedule and update clipping; β₂; and whether the pooler had an adapter."""
    rate = f"{row.get('lr') or 1e-3:g}, {row.get('schedule') or 'linear'}{', clipped' if row.get('clipped') else ''}"
    task = row["task"] if row.get("rows") is None else f"{row['task']}, {row['rows']:,} rows"
    return task, rate, f"{row['beta2']}", "adapted" if row.get("pooler") else ""


def _print(rows: list[Row]) -> None:
    """Print means over seeds as Markdown."""
    print(
        "| task | rate | β₂ | pooler | variant | accuracy | loss at the best temperature | components | parameters | seeds |\n"
        "|---|---|---:|---|---|---:|---:|---:|---:|---:|"
    )
    for key in dict.fromkeys(_conditions(row) for row in rows):
        for variant in dict.fromkeys([*VARIANTS, *(row["variant"] for row in rows)]):
            found = [
                r
                for r in rows
                if (_conditions(r), r["variant"]) == (key, variant) and r["accuracy"] is not None
            ]
            if found:
                accuracy, loss, count, size = (
                    statistics.fmean(r[name] for r in found)
                    for name in ("accuracy", "calibrated_loss", "components", "adapter_params")
                )
                print(
                    f"| {' | '.join(key)} | {variant} | {100 * accuracy:.2f} | {loss:.4f} | {count:.0f} | {size:,.0f} | {len(found)} |"
                )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as"]:
        from rankwise.cli import main as rankwise

        with VARIANTS[sys.argv[2]].in_force():
            rankwise(sys.argv[3:])
    main()
