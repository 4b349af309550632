"""What each part of adaptive rank is good for: the same training with one part left out or another in its place.

    python studies/ablations.py --data ../shared/data/glue      # runs what is missing, stores, prints
    python studies/ablations.py --show                          # prints what is stored

Rows, rates and judging are those of studies/trials.py: sst2 and qqp with 8,000 rows to train on and 8,000 to judge on, mnli with 832 to
judge on. Each trial is `rankwise train` in a process of its own in which `VARIANTS` has put something else in place of a constant or a
function. Fixed ranks, for comparison, have a rate of 2e-3. Stored as studies/ablations.parquet, a row a trial; `--device cuda` stores
apart; `--earlier` prints what earlier versions gave.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from rankwise.engine import optim, training
from rankwise.lora.layer import LoRALinear
from rankwise.rank import components, controller
from rankwise.tasks.objectives import OBJECTIVES, Classification
from trials import Row, cut_at, earlier, run_missing, split, trial

STORED = Path(__file__).with_suffix(".parquet")
TASKS, SEEDS, LR, EPOCHS, BETA2, SCHEDULE = ("sst2", "mnli", "qqp"), (0, 1), 1.4e-3, 3.0, 0.98, "knee"
"""The recipe's for adaptive. Of the earlier trials those without a rate were at 1e-3 and with the linear schedule; the first of them had
second moments that decay by 0.999, and most no adapter in the pooler. `clipped`: with update clipping (`optim.Update`)."""


State = dict[str, torch.Tensor]
"""What was noted of a layer's gradients, a row a component."""


def _constant(name: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(controller, name, value)


def _both(one: Callable[[], None], other: Callable[[], None]) -> Callable[[], None]:
    def change() -> None:
        one()
        other()

    return change


class _Uncalibrated(Classification):
    """Classification whose held-out loss is the training loss."""

    calibrated_losses = Classification.example_losses


def _plain_loss() -> None:
    OBJECTIVES["classification"] = _Uncalibrated()


def _no_test() -> None:
    """The statistics alone decide cuts."""
    judge = controller.RankController._judge

    def believe(
        self: Any,
        kind: str,
        harm: torch.Tensor,
        limit: float,
        ranks: Any,
        expected: float | None = None,
        factor: float | None = None,
    ) -> controller.Decision:
        if expected is not None:
            harm = torch.full_like(harm, expected)
        return judge(self, kind, harm, limit, ranks, expected, factor)

    controller.RankController._judge = believe
    controller.at_most = lambda harm, error, expected: 1.0


def _worth(worth: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
    """Another worth of components: (layer in the basis that was found, E[z²]) → worth."""
    found = components.find_basis

    def find_basis(layer: Any, moments: torch.Tensor) -> components.Basis:
        basis = found(layer, moments)
        zz = basis.moments(moments)[: len(basis.worth)].diagonal().double()
        other = worth(basis.matrices(layer), zz)
        order = other.argsort(descending=True, stable=True)
        return components.Basis(basis.T[order], basis.inverse[:, order], other[order])

    controller.find_basis = find_basis


def _energy(matrices: tuple[torch.Tensor, torch.Tensor], zz: torch.Tensor) -> torch.Tensor:
    return zz * matrices[1].double().square().sum(dim=0)


def _magnitude(matrices: tuple[torch.Tensor, torch.Tensor], zz: torch.Tensor) -> torch.Tensor:
    return (matrices[0].double().norm(dim=1) * matrices[1].double().norm(dim=0)).square()


def _by_gradients(note: Callable[[LoRALinear, State], State], worth: Callable[[State], torch.Tensor]) -> None:
    """Another worth, from the gradients of A and B, for components as they lie, in no other basis.

    Args:
        note: (layer, what was noted before) → what is noted now, a row a component; called after each backward.
        worth: of each component, from that.
    """
    begin, step, change = (
        controller.RankController.__init__,
        optim.Update.step,
        controller.RankController._change,
    )
    noted: dict[LoRALinear, State] = {}

    def noting(self: optim.Update, lr: float, then: Callable[[], None] | None = None) -> None:
        with torch.no_grad():
            noted.update((layer, note(layer, state)) for layer, state in noted.items() if layer.rank)
        step(self, lr, then)

    def beginning(self: controller.RankController, *given: Any, **named: Any) -> None:
        begin(self, *given, **named)
        noted.update((layer, {}) for layer in self.layers.values())

    def find_basis(layer: LoRALinear, moments: torch.Tensor) -> components.Basis:
        one = components.as_it_is(layer)
        worths = worth(noted[layer]).double()
        order = worths.argsort(descending=True, stable=True)
        return components.Basis(one.T[order], one.inverse[:, order], worths[order])

    def changing(self: controller.RankController, parts: Any) -> None:
        change(self, parts)
        for path, (basis, added, _) in parts.items():
            more = 0 if added is None else added.A.shape[0]
            noted[self.layers[path]] = {
                name: torch.cat([rows[basis.T.argmax(dim=1)], rows.new_zeros(more, *rows.shape[1:])])
                for name, rows in noted[self.layers[path]].items()
            }

    optim.Update.step, controller.find_basis = noting, find_basis
    controller.RankController.__init__, controller.RankController._change = beginning, changing


def _products(layer: LoRALinear) -> State:
    """w·∂w of every weight, a row a component; and of a factor on each component's output, which is the sum over either matrix."""
    assert layer.lora_A.grad is not None
    assert layer.lora_B.grad is not None
    A, B = layer.lora_A * layer.lora_A.grad, (layer.lora_B * layer.lora_B.grad).t()
    return {"A": A, "B": B, "factor": A.sum(dim=1, keepdim=True)}


def _first_order(layer: LoRALinear, before: State) -> State:
    """Squares of the factors' derivatives (Molchanov et al. 2019), with the decay of the other statistics."""
    square = _products(layer)["factor"].square().squeeze(1)
    return {"square": square + controller.DECAY * before.get("square", 0.0)}


def _sensitivity(layer: LoRALinear, before: State) -> State:
    """|w·∂w| smoothed, and how far each is from that (Zhang et al. 2023, equations 9 and 10, both betas 0.85)."""
    state: State = {}
    for name, product in _products(layer).items():
        now, old = product.abs(), before.get(name, torch.zeros_like(product))
        state[name] = 0.85 * old + 0.15 * now
        state[f"{name} off"] = 0.85 * before.get(f"{name} off", 0.0) + 0.15 * (now - state[name]).abs()
    return state


def _of_triplet(noted: State) -> torch.Tensor:
    """Importance of a singular value and its two vectors (Zhang et al. 2023, equation 8); the value is a factor of 1 here."""
    A, B, factor = ((noted[name] * noted[f"{name} off"]).mean(dim=1) for name in ("A", "B", "factor"))
    return factor + A + B


def _scale(power: float) -> Callable[[], None]:
    """s as at the start times (start rank / rank) to another power than 1."""

    return _constant("stretch", lambda before, after: (max(1, after) / max(1, before)) ** (0.5 * power))


def _full_rate_again() -> None:
    """After the last cut the learning rate falls from its peak to zero, not from half of it."""
    factor = optim.schedule_factor

    def again(
        schedule: optim.Schedule, steps: int, warmup: float, warmup_steps: int = 0
    ) -> Callable[[int], float]:
        usual, cut = factor(schedule, steps, warmup, warmup_steps), max(controller.CUT_AT) * steps
        return lambda step: usual(step) if step < cut else (steps - step) / (steps - cut)

    training.schedule_factor = again


def _unclipped() -> None:
    optim.Update._shares = lambda self, slab: None


def _cuts_at(first: float, last: float) -> None:
    """Shares of the steps after which layers are cut; the learning rate has its knee at the last."""
    (_, early), (_, late) = sorted(controller.CUT_AT.items())
    controller.CUT_AT, optim.KNEE = {first: early, last: late}, last


def _as_long() -> None:
    """No cut is left out and no leeway smaller because there are few steps."""
    controller.MEMORY = 1e-9


DEEP = {0.5: 0.05, 0.8: 0.1}
VARIANTS: dict[str, tuple[str, Callable[[], None]]] = {
    "as it is": ("adaptive", lambda: None),
    "never cut": ("adaptive", partial(cut_at, {0.8: 0.0})),
    "query and value only": ("adaptive:targets=query+value", lambda: None),
    "judged by plain cross-entropy": ("adaptive", _plain_loss),
    "without the held-out test": ("adaptive", _no_test),
    "0.3 and 3 % of the gain": ("adaptive", partial(cut_at, {0.5: 0.003, 0.8: 0.03})),
    "0.1 and 1 % of the gain": ("adaptive", partial(cut_at, {0.5: 0.001, 0.8: 0.01})),
    "in three steps, 0.3, 1 and 1 %": ("adaptive", partial(cut_at, {0.5: 0.003, 0.65: 0.01, 0.8: 0.01})),
    "cut to the knee half-way": ("adaptive", partial(cut_at, {0.5: controller.SHARE, 0.8: controller.SHARE})),
    "one cut, at 80 %": ("adaptive", partial(cut_at, {0.8: controller.SHARE})),
    "without growth": ("adaptive", _constant("GROW_AT", ())),
    "start at rank 4, without growth": ("adaptive:rank=4", _constant("GROW_AT", ())),
    "ordered by the output's energy": ("adaptive", partial(_worth, _energy)),
    "ordered by magnitude": ("adaptive", partial(_worth, _magnitude)),
    "ordered by the first order": (
        "adaptive",
        partial(_by_gradients, _first_order, lambda noted: noted["square"]),
    ),
    "ordered by AdaLoRA's sensitivity": (
        "adaptive",
        partial(_by_gradients, _sensitivity, _of_triplet),
    ),
    "2 % of the gain however little the rows tell": (
        "adaptive",
        partial(cut_at, {0.5: controller.SHARE / 10, 0.8: controller.SHARE}),
    ),
    "2 and 10 % of the gain": ("adaptive", partial(cut_at, {0.5: 0.02, 0.8: 0.1})),
    "5 and 20 % of the gain": ("adaptive", partial(cut_at, {0.5: 0.05, 0.8: 0.2})),
    "5 and 10 % of the gain": ("adaptive", partial(cut_at, DEEP)),
    "5 and 10 % of the gain, s as at the start": ("adaptive", _both(partial(cut_at, DEEP), _scale(0.0))),
    "5 and 10 % of the gain, s = alpha/√r": ("adaptive", _both(partial(cut_at, DEEP), _scale(0.5))),
    "2 and 10 % of the gain, s as at the start": (
        "adaptive",
        _both(partial(cut_at, {0.5: 0.02, 0.8: 0.1}), _scale(0.0)),
    ),
    "5 and 10 % of the gain, at a rate of 2e-3": ("adaptive:lr=2e-3", partial(cut_at, DEEP)),
    "5 and 10 % of the gain, back to the full rate after it": (
        "adaptive",
        _both(partial(cut_at, DEEP), _full_rate_again),
    ),
    "5 and 10 % of the gain, s as at the start, back to the full rate after it": (
        "adaptive",
        _both(_both(partial(cut_at, DEEP), _scale(0.0)), _full_rate_again),
    ),
    "cut at 40 and 70 % of the steps, the knee there": ("adaptive", partial(_cuts_at, 0.4, 0.7)),
    "as a long training, however short": ("adaptive", _as_long),
    "that, cut at 80 % of the steps only": (
        "adaptive",
        _both(_as_long, _constant("CUT_AT", {0.8: controller.SHARE})),
    ),
    "cut at 50 and 80 % of the steps": ("adaptive", partial(_cuts_at, 0.5, 0.8)),
    **{f"statistics times {n:g}": ("adaptive", _constant("LEAST", n)) for n in (2.0, 2.5, 3.0, 4.0)},
    "what rows see, however little": ("adaptive", _constant("LEAST", 0.0)),
    "s as at the start": ("adaptive", _scale(0.0)),
    "at a rate of 2e-3": ("adaptive:lr=2e-3", lambda: None),
    "at a rate of 2e-3, updates not clipped": ("adaptive:lr=2e-3", _unclipped),
    **{
        f"rank {r} on query and value{at}": (f"lora:rank={r},alpha=5.66,rslora=true,lr={lr}", lambda: None)
        for r in (8, 64)
        for lr, at in (("2e-3", ""), ("2.8e-3", ", at a rate of 2.8e-3"))
    },
    **{f"start at rank {r}": (f"adaptive:rank={r}", lambda: None) for r in (4, 8, 32)},
    **{
        f"start at rank {r}, s = √(32 / r)": (f"adaptive:rank={r},alpha={(32 * r) ** 0.5:.4g}", lambda: None)
        for r in (4, 8, 32)
    },
}
"""Name → the method, and what is changed before it runs."""


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
            "clipped": VARIANTS[variant][1] is not _unclipped,
        }
        for seed in seeds
        for task in tasks
        for variant in variants
    ]


def trial_name(variant: str, seed: int) -> str:
    """Of a trial's folder, in one for its task."""
    return f"{variant.replace(' ', '-').replace('%', 'percent')}-{LR:g}-{SCHEDULE}-{BETA2:g}-s{seed}"


def _trial(work: Path, device: str, which: Row) -> Row:
    method, _ = VARIANTS[which["variant"]]
    program = [str(Path(__file__)), "--as", which["variant"]]
    name = trial_name(which["variant"], which["seed"])
    settings = {"lr": LR, "epochs": EPOCHS, "beta2": BETA2, "schedule": SCHEDULE, "seed": which["seed"]}
    settings["device"] = device
    return which | trial(work / which["task"] / name, which["task"], method, settings, program)


def _conditions(row: Row) -> tuple[str, ...]:
    """Task; learning rate, schedule and update clipping; β₂; and whether the pooler had an adapter."""
    rate = f"{row.get('lr') or 1e-3:g}, {row.get('schedule') or 'linear'}{', clipped' if row.get('clipped') else ''}"
    task = row["task"] if row.get("rows") is None else f"{row['task']}, {row['rows']:,} rows"
    return task, rate, f"{row['beta2']}", "adapted" if row.get("pooler") else ""


def _print(rows: list[Row]) -> None:
    """Markdown, means over seeds."""
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

        VARIANTS[sys.argv[2]][1]()
        rankwise(sys.argv[3:])
    main()
