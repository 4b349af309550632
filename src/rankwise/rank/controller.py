"""The rank of every LoRA layer, found while it trains: start generous, cut what held-out rows don't miss, keep training.

    backward ─► second moments of z and dz ─► the components of all layers in one order of worth
                                                            │  proposal: without the least worth
    held-out rows ─► losses of each example with and without ─► harm ± its standard error ─► resize, or leave it

A component is a row of A with its column of B. In the basis where z has unit covariance and B's columns are orthogonal, removing
component i costs about ½·E[(zᵢ·dzᵢ)²] ≈ ½·E[zᵢ²]·E[dzᵢ²], which is its worth here: the empirical Fisher information of a gate on it (Theis
et al. 2018), with the two factors taken as independent (as in K-FAC, Martens & Grosse 2015). Backward computes both factors anyway. Worth
only orders the components and says where to look; what decides is the loss on rows held out of training, example by example, so that
the examples' own spread falls out of the difference.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankwise.lora.layer import LoRALinear, draw_A, lora_layers
from rankwise.rank.components import (
    Basis,
    Components,
    OptimizerState,
    TorchOptimizer,
    as_it_is,
    change,
    find_basis,
)

START_RANK = 16
"""Room at the start makes optimisation easier; room at the end is waste."""
ALPHA = 2**0.5 * START_RANK
"""s = ALPHA / r, whatever r becomes: a resize leaves the function as it is, and A and B take the difference. Under Adam an entry of B first
moves by the learning rate whatever its gradient, and the function by s · r: so as fast at any rank, at one learning rate
(docs/method.md)."""
SHARE = 0.02
"""What is negligible: this share of what the adapters gain over none, on held-out rows."""
SURE = 1.645
"""Standard errors of a one-sided 95 % bound."""
DECAY = 0.98
"""Decay of the moving sums, a step."""
MEMORY = 50
"""Steps that they reach back."""
GROW_AT = (0.1, 0.2, 0.3)
"""Shares of the training steps after which layers may grow."""
MOST = 0.2
"""More is negligible where the held-out rows don't tell how good the adapters are any better: one standard error of their loss (the rule of
Breiman et al. 1984), up to this share of the gain. Training learns again most of what a cut takes, so the harm that is seen isn't what
stays (docs/method.md)."""
CUT_AT = {0.4: SHARE / 10, 0.8: SHARE}
"""Shares of the training steps after which layers are cut, with the share of the gain that is negligible then. The first cut leaves what is
known to be used, and isn't made before step `2 · MEMORY`: what is worth little until then may be worth much later. After the last there is
time to recover; where that is less than `MEMORY` steps, less is negligible of what rows don't tell."""
BOLD, FAR = 4.0, 8.0
"""How far the statistics can be trusted is seen on a cut that is bolder than the one that is made: its harm stands out from noise. At
most `FAR` times as bold, or it says nothing about the smaller one; `BOLD` times where a first look was too far."""
DOUBT = 2.0
"""Standard deviation, before anything was seen, of the logarithm of harm over what the statistics expect: a factor of seven. At the end of
a long training harm is a fifth of that to eleven times, by cut and training, in a short one that still learns up to thirty
(docs/method.md)."""
LEAST = 2.0
"""Where rows don't tell, harm is held to be this many times what the statistics expect at least: often they prefer the smaller adapter,
by chance or because it is less restless, which says nothing of what training still needs (docs/method.md)."""
TRIES = 3
"""Bold cuts that a check looks at, at most."""
SPARE = 1 / 16
"""A cut of fewer of the components isn't worth looking at held-out rows."""

FEWEST_ROWS, FEWEST_STEPS = 500, 60
"""With less than this there is no evidence to be had, and ranks stay at `SAFE_RANK`."""
SAFE_RANK = 8

Losses = Callable[[], Float[Tensor, " examples"]]
"""Loss of each held-out example, without gradients, in eval mode. What loss it is doesn't matter."""
Matrices = dict[str, tuple[Tensor, Tensor]]
"""Module path → A and B."""


@dataclass(frozen=True)
class Decision:
    """A proposal and what became of it.

    Attributes:
        step: optimizer steps taken before it; 0 where an adapter that is trained is compressed.
        kind: `cut`, `grow` or `restore`.
        accepted: the layers were resized.
        changes: module path → (rank before, rank proposed); only where they differ.
        ranks: module path → rank after the decision.
        difference: mean over the held-out rows of an example's loss without the components minus with them.
        error: its standard error.
        rows: held-out rows it was seen on.
        limit: what the bound of the difference was held against: a share of the adapters' gain or, where it isn't sure that there is any
            and all may go, of the loss without them.
        expected: the difference that the statistics expect, where they say something.
        factor: how many times that it may be (upper 95 % bound), by what was seen of a bolder cut.
    """

    step: int
    kind: str
    accepted: bool
    changes: dict[str, tuple[int, int]]
    ranks: dict[str, int]
    difference: float
    error: float
    rows: int
    limit: float
    expected: float | None = None
    factor: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, a line of ranks.jsonl."""
        return {
            "step": self.step,
            "kind": self.kind,
            "accepted": self.accepted,
            "changes": {path: list(change) for path, change in self.changes.items()},
            "ranks": self.ranks,
            "evidence": {
                "difference": self.difference,
                "error": self.error,
                "rows": self.rows,
                "limit": self.limit,
                "expected": self.expected,
                "factor": self.factor,
            },
            "text": str(self),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Decision":
        """The inverse of `to_json`."""
        changes = {path: (before, after) for path, (before, after) in stored["changes"].items()}
        evidence = stored["evidence"]
        return cls(stored["step"], stored["kind"], stored["accepted"], changes, stored["ranks"], **evidence)

    def __str__(self) -> str:
        added = sum(after - before for before, after in self.changes.values())
        before = sum(self.ranks.values()) - (added if self.accepted else 0)
        when = f"step {self.step}" if self.step else "compress"
        layers = f"{len(self.changes)} layer{'s' * (len(self.changes) > 1)}"
        done = {"cut": "cut", "grow": "grown", "restore": "restored"}[self.kind]
        they = "the last of each" if self.kind == "grow" else f"the {abs(added)}"
        return (
            f"{when}: {'' if self.accepted else 'not '}{done}, {before} → {before + added} components, in {layers}; "
            f"held-out loss without {they}: {self.difference:+.4f} ± {self.error:.4f} on {self.rows} rows, "
            f"{self.limit:.4f} would matter"
        )


def held_out_rows(rows: int, trained: int, steps: int) -> int:
    """How many rows to hold out for decisions: about one in 96 that are trained on, over all epochs, so that looking at them takes a
    few percent of the time; 0 where there is too little to decide anything.

    Args:
        rows: of the training data.
        trained: rows over all steps.
        steps: of the optimizer.
    """
    if rows < FEWEST_ROWS or steps < FEWEST_STEPS:
        return 0
    return min(max(200, trained // 96), rows // 10, 1024)


def settle(layers: Sequence[LoRALinear]) -> None:
    """Gives fresh layers the safe rank for good, at the usual scale of 2 where that is 8 (rank-stabilised where a layer starts lower,
    Kalajdzievski 2023); those that have learned something keep what they have."""
    for layer in layers:
        layer.watch(False)
        if layer.lora_B.any():
            continue
        rank = min(SAFE_RANK, layer.rank)
        alpha = layer.scaling * layer.rank
        layer.resize(layer.lora_A.detach()[:rank].clone(), layer.lora_B.detach()[:, :rank].clone())
        layer.scaling = alpha / math.sqrt(START_RANK * rank)


class RankController:
    """Decides the rank of each LoRA layer of a model while it trains. Call `step()` after each optimizer step.

    Everything it decides follows from the model, the steps taken and the seed. It watches the layers' backward from its making on.

    Args:
        model: with LoRA layers of the start rank.
        losses: loss of each held-out example; no such row may be trained on before `done`.
        steps: optimizer steps of the whole training.
        optimizer: torch's, or an `OptimizerState`.
        seed: draws the A of components that are added.

    Raises:
        ValueError: the model has no LoRA layers.
    """

    def __init__(
        self,
        model: nn.Module,
        losses: Losses,
        steps: int,
        optimizer: torch.optim.Optimizer | OptimizerState,
        *,
        seed: int = 0,
    ) -> None:
        self.layers = lora_layers(model)
        if not self.layers:
            raise ValueError("This model has no LoRA layers. Call rankwise.adapt(model) first.")
        self.losses, self.seed = losses, seed
        self.optimizer = (
            TorchOptimizer(optimizer) if isinstance(optimizer, torch.optim.Optimizer) else optimizer
        )
        adapters = {id(p) for layer in self.layers.values() for p in (layer.lora_A, layer.lora_B)}
        self.alone = all(id(p) in adapters for p in model.parameters() if p.requires_grad)
        self.checks = {max(1, round(share * steps)): self._grow for share in GROW_AT}
        cuts = {max(1, round(at * steps)): partial(self._cut, share) for at, share in CUT_AT.items()}
        self.checks |= {step: cut for step, cut in cuts.items() if step >= 2 * MEMORY or step == max(cuts)}
        self.steps, self.steps_taken = steps, 0
        self.rows_seen = 0
        self.decisions: list[Decision] = []
        self.moments: dict[str, Tensor] = {}
        self.aside: dict[str, Components] = {}
        for layer in self.layers.values():
            layer.watch()

    @property
    def done(self) -> bool:
        """No decision is left to make: the held-out rows may be trained on."""
        return self.steps_taken >= max(self.checks)

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of each layer now."""
        return {path: layer.rank for path, layer in self.layers.items()}

    def beginning(self) -> dict[str, Any]:
        """The first line of ranks.jsonl: where every layer starts."""
        low, high = min(self.ranks.values()), max(self.ranks.values())
        starts = f"rank {low}" if low == high else f"ranks of {low} to {high}"
        text = f"step 0: {len(self.ranks)} layers start at {starts}"
        line = {
            "step": 0,
            "kind": "start",
            "accepted": True,
            "changes": {},
            "ranks": self.ranks,
            "evidence": None,
        }
        return {**line, "text": text}

    def step(self) -> list[Decision]:
        """Takes in the statistics of a step and, where a check is due, decides.

        Returns:
            What was decided now; mostly nothing.
        """
        seen: dict[str, Tensor] = {}
        for path, layer in self.layers.items():
            if layer.moments is not None and layer.moments.grad is not None:
                seen[path], layer.moments.grad = layer.moments.grad, None
        if known := [path for path in seen if path in self.moments]:  # all at once, which a GPU likes
            sums = [self.moments[path] for path in known]
            torch._foreach_mul_(sums, DECAY)
            torch._foreach_add_(sums, [seen[path] for path in known])
        self.moments |= {path: new for path, new in seen.items() if path not in self.moments}
        self.steps_taken += 1
        made = len(self.decisions)
        if check := self.checks.get(self.steps_taken):
            check()
        return self.decisions[made:]

    @torch.no_grad()
    def sort(self) -> None:
        """Puts every layer's components in order of worth, so that a smaller adapter is a prefix; the function stays as it is."""
        self._change({path: (basis, None, 1.0) for path, basis in self.bases().items()})

    @torch.no_grad()
    def compress(self) -> list[Decision]:
        """Cuts a trained adapter to the smallest size that held-out rows don't tell from the whole.

        Halves the number of components until that does harm, then closes in between. `moments` must hold the statistics.

        Returns:
            The curve: a decision for each size that was looked at.
        """
        bases, made = self.bases(), len(self.decisions)
        order = self.order(bases)
        whole = self.look({})
        gain = self.look(none_of(self.layers)) - whole
        limit, total = SHARE * max(gain.mean().item(), 0.0), sum(worth for worth, _ in order)

        def try_size(kept: int) -> bool:
            removed = order[: len(order) - kept]
            ranks = without(bases, removed)
            harm = gain if kept == 0 else self.look(self.matrices(bases, ranks)) - whole
            share = sum(worth for worth, _ in removed) / total if total else 0.0
            expected = None if kept == 0 else share * gain.mean().item()
            point = self._judge("cut", harm, limit, ranks, expected)
            if point.accepted:
                point = replace(point, ranks=self.ranks | ranks)
            self.decisions.append(point)
            return point.accepted

        good, bad = len(order), 0
        if not order or try_size(0):
            good = 0
        while good > 1 and bad == 0 and try_size(good // 2):
            good //= 2
        bad = good // 2 if good > 1 else 0
        while good - bad > max(1, good // 16):
            middle = (good + bad) // 2
            good, bad = (middle, bad) if try_size(middle) else (good, middle)
        self._resize(self._changes(without(bases, order[: len(order) - good])))
        return self.decisions[made:]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a checkpoint needs beside the layers and the optimizer: tensors, and plain values."""
        tensors = {f"moments.{path}": value for path, value in self.moments.items()}
        for path, aside in self.aside.items():
            tensors |= {f"aside.{name}.{path}": value for name, value in aside._asdict().items()}
        values = {
            "steps": self.steps_taken,
            "rows": self.rows_seen,
            "scaling": {path: layer.scaling for path, layer in self.layers.items()},
            "decisions": [decision.to_json() for decision in self.decisions],
        }
        return tensors, values

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Continues from what `state` gave, after the layers have taken their ranks."""
        self.steps_taken, self.rows_seen = values["steps"], values["rows"]
        self.decisions = [Decision.from_json(stored) for stored in values["decisions"]]
        self.moments = {p: tensors[f"moments.{p}"] for p in self.layers if f"moments.{p}" in tensors}
        self.aside = {
            path: Components(*(tensors[f"aside.{name}.{path}"] for name in Components._fields))
            for path in self.layers
            if f"aside.A.{path}" in tensors
        }
        for path, layer in self.layers.items():
            layer.scaling = values["scaling"][path]
            layer.watch()

    # Checks

    @torch.no_grad()
    def _cut(self, share: float) -> None:
        """Removes as many components, the least worth first, as held-out rows don't miss (`CUT_AT`, `MOST`, `LEAST`)."""
        whole, none = self.look({}), self.look(none_of(self.layers))
        gain = none - whole
        mean, error = mean_and_error(gain)
        sure = mean > SURE * error  # that the adapters gain anything
        of = mean if sure else none.mean().item()
        untold = min(mean_and_error(whole)[1], MOST * of)
        if sure:  # what is cut has to be learned again
            untold *= min(1.0, (self.steps - self.steps_taken) / MEMORY)
        limit = max(share * of, untold)
        if self.aside:
            whole = self._restore(whole, limit)
        bases = self.bases()
        order = self.order(bases)
        if not order:
            return
        if not sure:
            if self.done:  # may all of it go?
                ranks = dict.fromkeys(bases, 0)
                if self.alone:  # without a single component there would be nothing to train
                    ranks[order[-1][1]] = 1
                if self._changes(ranks):
                    self._take(self._judge("cut", gain, limit, ranks))
            return
        bold = limit / mean  # of all worth: as much as would be negligible if the statistics were right
        reached, harm = 0.0, None  # what was looked at last
        for _ in range(TRIES):
            if harm is None:
                removed, reached = _least(order, bold)
                harm = self.look(self.matrices(bases, without(bases, removed))) - whole
            factor = at_most(*mean_and_error(harm), reached * mean)
            allowed = min(max(share / factor, untold / mean / max(factor, LEAST)), reached)
            if allowed < reached / FAR:
                bold, harm = BOLD * allowed, None
                continue
            removed, reached = _least(order, allowed)
            if len(removed) < SPARE * len(order):
                return
            ranks = without(bases, removed)
            harm = self.look(self.matrices(bases, ranks)) - whole
            decision = self._judge("cut", harm, limit, ranks, reached * mean, factor)
            self._take(decision)
            if decision.accepted:
                return

    @torch.no_grad()
    def _grow(self) -> None:
        """Doubles the rank of layers that have no component to spare, where held-out rows miss the last one of each.

        The next component of a layer is hardly worth more than its last, so there is nothing to gain where the last ones together are
        worth little.
        """
        bases = self.bases()
        total = sum(basis.worth.sum().item() for basis in bases.values())
        last = {path: basis.worth[-1].item() for path, basis in bases.items()}
        short = [path for path, worth in last.items() if worth > SHARE * total / len(last)]
        if sum(last[path] for path in short) <= SHARE * total:
            return
        whole = self.look({})
        gain = (self.look(none_of(self.layers)) - whole).mean().item()
        shorter = {path: self.layers[path].rank - 1 for path in short}
        harm = self.look(self.matrices(bases, shorter)) - whole
        layers = {path: self.layers[path] for path in short}
        twice = {path: min(2 * x.rank, x.in_features, x.out_features) for path, x in layers.items()}
        self._take(self._judge("grow", harm, SHARE * max(gain, 0.0), twice))

    def _restore(self, whole: Tensor, limit: float) -> Tensor:
        """Brings back what the last cut took, where held-out rows miss it by now; returns the losses after it."""
        both: Matrices = {}
        for path, other in self.aside.items():
            layer = self.layers[path]
            both[path] = torch.cat([layer.lora_A, other.A]), torch.cat([layer.lora_B, other.B], dim=1)
        with_it = self.look(both)
        ranks = {path: A.shape[0] for path, (A, _) in both.items()}
        decision = self._judge("restore", whole - with_it, limit, ranks)
        self._take(decision)
        self.aside = {}
        return with_it if decision.accepted else whole

    # Evidence

    def bases(self) -> dict[str, Basis]:
        """Components of every layer that has some and has been heard of."""
        return {
            path: find_basis(layer, self.moments[path])
            for path, layer in self.layers.items()
            if layer.rank and path in self.moments
        }

    def order(self, bases: Mapping[str, Basis]) -> list[tuple[float, str]]:
        """(worth, module path) of every component; first those that are worth the least for their parameters."""
        ranked = []
        for path, basis in bases.items():
            size = self.layers[path].in_features + self.layers[path].out_features
            ranked += [(worth / size, worth, path) for worth in basis.worth.tolist()]
        return [(worth, path) for _, worth, path in sorted(ranked)]

    def matrices(self, bases: Mapping[str, Basis], ranks: Mapping[str, int]) -> Matrices:
        """A and B of layers cut to ranks."""
        return {path: bases[path].first(rank).matrices(self.layers[path]) for path, rank in ranks.items()}

    def look(self, matrices: Matrices) -> Float[Tensor, " examples"]:
        """Losses of the held-out examples with other matrices in some layers."""
        kept = {path: (layer.lora_A.data, layer.lora_B.data) for path, layer in self.layers.items()}
        try:
            for path, (A, B) in matrices.items():
                self.layers[path].lora_A.data, self.layers[path].lora_B.data = A, B
            losses = self.losses().double().cpu()
        finally:
            for path, (A, B) in kept.items():
                self.layers[path].lora_A.data, self.layers[path].lora_B.data = A, B
        self.rows_seen += len(losses)
        return losses

    def _judge(
        self,
        kind: str,
        harm: Tensor,
        limit: float,
        ranks: Mapping[str, int],
        expected: float | None = None,
        factor: float | None = None,
    ) -> Decision:
        """Accepts a proposal or doesn't; nothing is changed yet.

        Args:
            kind: `cut` removes what does no harm; `grow` and `restore` add where its lack does.
            harm: by which each held-out example's loss is higher without the components.
            limit: the harm that would matter.
            ranks: proposed, for the layers concerned.
            expected: the harm that the statistics expect, where they say something.
            factor: how many times that it may be, where that was looked at.
        """
        mean, error = mean_and_error(harm)
        if kind != "cut":
            accepted = mean - SURE * error > limit
        elif factor is not None:  # the proposal is already what the factor's bound allows
            accepted = mean <= limit
        elif expected is None:
            accepted = _bound(mean, error) <= limit
        else:
            accepted = max(mean, expected * at_most(mean, error, expected)) <= limit
        seen = mean, error, len(harm), limit, expected, factor
        return Decision(self.steps_taken, kind, accepted, self._changes(ranks), self.ranks, *seen)

    def _take(self, decision: Decision) -> None:
        """Notes a decision, and resizes where the proposal was accepted."""
        if decision.accepted:
            self._resize(decision.changes)
        self.decisions.append(replace(decision, ranks=self.ranks))

    # Resizing

    def _changes(self, ranks: Mapping[str, int]) -> dict[str, tuple[int, int]]:
        before = self.ranks
        return {path: (before[path], rank) for path, rank in ranks.items() if before[path] != rank}

    def _resize(self, changes: Mapping[str, tuple[int, int]]) -> None:
        """Gives layers other ranks: keeps what is worth most, adds what was set aside, or new components."""
        bases, parts = self.bases(), {}
        for path, (before, after) in changes.items():
            layer = self.layers[path]
            basis = bases.get(path) or as_it_is(layer)
            c = stretch(before, after)
            if after < before:
                rest = Basis(basis.T[after:], basis.inverse[:, after:], basis.worth[after:])
                aside = Components(*rest.matrices(layer), rest.moments(self._moments(path)))
                parts[path], self.aside[path] = (basis.first(after), None, c), aside.times(c)
            else:
                aside = self.aside.get(path)
                parts[path] = basis, aside.times(c) if aside else self._new(layer, after - before), c
            layer.scaling /= c**2  # alpha/r
        self._change(parts)

    def _new(self, layer: LoRALinear, rank: int) -> Components:
        """Components that change nothing yet: A as at the start (`LoRALinear`), B zero."""
        device = layer.lora_A.device
        generator = torch.Generator().manual_seed((self.seed + self.steps_taken) % 2**63)
        return Components(
            draw_A(rank, layer.in_features, generator).to(layer.lora_A),
            layer.lora_B.new_zeros(layer.out_features, rank),
            torch.zeros(2 * rank + 1, rank, device=device),
        )

    def _change(self, parts: Mapping[str, tuple[Basis, Components | None, float]]) -> None:
        new: dict[nn.Parameter, tuple[Tensor, dict[str, Tensor]]] = {}
        for path, (basis, added, c) in parts.items():
            resized, self.moments[path] = change(
                self.layers[path], self._moments(path), basis, added, self.optimizer, c
            )
            new |= resized
        self.optimizer.resize(new)
        for path in parts:
            self.layers[path].watch()

    def _moments(self, path: str) -> Tensor:
        rank = self.layers[path].rank
        return self.moments.get(path, self.layers[path].lora_A.new_zeros(2 * rank + 1, rank))


def stretch(before: int, after: int) -> float:
    """What A and B are multiplied by where a rank changes: s = alpha/r is then divided by its square, and the function stays as it is."""
    return math.sqrt(max(1, after) / max(1, before))


def none_of(layers: Mapping[str, LoRALinear]) -> Matrices:
    """Matrices of rank 0 everywhere."""
    return {path: (layer.lora_A[:0], layer.lora_B[:, :0]) for path, layer in layers.items()}


def _least(order: Sequence[tuple[float, str]], share: float) -> tuple[Sequence[tuple[float, str]], float]:
    """The first components that together have a share of all worth at most, and that share."""
    worths = torch.tensor([worth for worth, _ in order], dtype=torch.float64).cumsum(0)
    shares = worths / worths[-1]
    count = int((shares <= share).sum())
    return order[:count], shares[count - 1].item() if count else 0.0


def without(bases: Mapping[str, Basis], removed: Sequence[tuple[float, str]]) -> dict[str, int]:
    """Ranks of the layers without some components; in a layer those of least worth come last."""
    gone = Counter(path for _, path in removed)
    return {path: len(basis.worth) - gone[path] for path, basis in bases.items()}


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean and its standard error."""
    return values.mean().item(), (values.std() / math.sqrt(len(values))).item()


def at_most(harm: float, error: float, expected: float) -> float:
    """Upper 95 % bound of how many times what the statistics expect a cut's harm is.

    The logarithm of that is normal around 0 with `DOUBT` before the harm was seen, which is normal around what it is with its standard
    error; the posterior is summed up on a grid.

    Args:
        harm: seen on held-out rows.
        error: its standard error.
        expected: by the statistics.
    """
    grid = torch.linspace(-5.0, 7.0, 1201, dtype=torch.float64)
    off = (harm - expected * grid.exp()) / max(error, 1e-12)
    posterior = torch.softmax(-0.5 * (off.square() + (grid / DOUBT).square()), dim=0).cumsum(0)
    return grid[min(int((posterior < 0.95).sum()), len(grid) - 1)].exp().item()


def _bound(mean: float, error: float) -> float:
    return mean + SURE * error
