"""The rank of every LoRA layer, found while it trains: start high, prune what held-out rows don't miss, keep training.

    backward ─► statistics of z and dz ─► components of all layers, the least important first
                                                     │ proposal: without the first of these
    held-out rows ─► losses, example by example ─► loss increase ± standard error ─► resize the layers, or leave them

Importance orders the components and says how many to try. Held-out rows decide. docs/method.md explains the method, `RankConfig` the
constants, `PruningRule` the order.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.config import Preference
from rankwise.lora.peft_layer import low_rank_layers
from rankwise.lora.quantized import keep_gradients
from rankwise.lora.wrappers import bare
from rankwise.rank.components import Basis, Components, OptimizerState
from rankwise.rank.config import RankConfig, preferring
from rankwise.rank.decision import Decision, summary
from rankwise.rank.evidence import (
    Allowance,
    HeldOutTest,
    Losses,
    LossIncrease,
    Matrices,
    accept_addition,
    accept_prune_after_trial,
    accept_prune_by_rows,
    accept_size,
    factor_bound,
    mean_and_error,
)
from rankwise.rank.guard import Guard, SameEverywhere, check_placement
from rankwise.rank.pruning_rule import (
    Order,
    Proposal,
    PruningRule,
    least_important,
    ranks_without,
    rule_named,
    smaller_sizes,
)
from rankwise.rank.resize import Resizer
from rankwise.rank.statistics import Statistics, all_finite
from rankwise.rank.torch_optimizer import TorchOptimizer, optimizer_state


class RankController:
    """Decides the rank of each LoRA layer of a model while it trains. Call `step()` after each optimizer step.

    What it decides depends on the model, the steps taken and the seed only. The layers collect statistics from its construction on.

    Args:
        model: with LoRA layers of the start rank (`rankwise.adapt(model)`).
        losses: loss of each held-out example; no such row may be trained on before `done`.
        steps: optimizer steps of the whole training.
        optimizer: one of torch's, or an `OptimizerState`. State that isn't known to follow a change of rank begins anew
            (`torch_optimizer`); `notes` says so.
        seed: draws the A of components that are added.
        prefer: `accuracy` or `size`, see `preferring`. Default: what the layers were made for.
        config: constants, in the place of those of the preference.
        rule: which components go first: a name in `PRUNING_RULES`, or a `PruningRule`.
        same_everywhere: for a training in several processes that adds up their gradients and statistics in each step. Every process
            then decides from the same numbers, which this checks. Without it, several processes are refused.

    Attributes:
        layers: the LoRA layers that are trained, by module path. A layer whose A and B have `requires_grad=False` stays as it is.
        decisions: so far.
        before_prune: losses of the held-out examples before the last prune and, below them, their plain losses; None where none is to be
            compared with them any more.
        done_at: optimizer steps taken when the last decision was made: from then on the held-out rows may be trained on. None before.
        guard: see `Guard`.

    Raises:
        ValueError: the model has no LoRA layers that are trained, or no rule has this name.
        RankwiseError: the optimizer can't follow a change of rank, or doesn't train the layers; the layers are merged or sharded; or
            several processes train together without `same_everywhere`.
    """

    def __init__(
        self,
        model: nn.Module,
        losses: Losses,
        steps: int,
        optimizer: torch.optim.Optimizer | OptimizerState,
        *,
        seed: int = 0,
        prefer: Preference | None = None,
        config: RankConfig | None = None,
        rule: PruningRule | str = "importance",
        same_everywhere: SameEverywhere | None = None,
    ) -> None:
        several = same_everywhere is not None
        with bare(model, peft=True, shards=several) as plain:
            self.model, adapted = plain, low_rank_layers(plain)
        if not adapted:
            raise ValueError("This model has no LoRA layers. Call rankwise.adapt(model) first.")
        self.layers = {path: layer for path, layer in adapted.items() if layer.is_trained}
        if not self.layers:
            raise ValueError("No LoRA layer of this model is trained: all have requires_grad=False.")
        check_placement(adapted, alone=not several)
        self.same_everywhere = same_everywhere
        keep_gradients(plain)
        prefer = prefer or next(iter(self.layers.values())).prefer
        self.config, self.rule = config or preferring(prefer), rule_named(rule)
        self.held_out = HeldOutTest(self.layers, losses)
        self.statistics = Statistics(self.layers, self.config.decay)
        self.optimizer = optimizer_state(optimizer, self.layers)
        self.resizer = Resizer(
            self.layers,
            self.statistics,
            self.optimizer,
            self.rule,
            seed=seed,
            scaling_exponent=self.config.scaling_exponent,
        )
        adapters = {id(p) for layer in adapted.values() for p in (layer.lora_A, layer.lora_B)}
        self.only_adapters = all(id(p) in adapters for p in model.parameters() if p.requires_grad)
        self.steps, self.steps_taken = steps, 0
        self.done_at: int | None = None
        self.checks = {max(1, round(share * steps)): self.grow for share in self.config.grow_at}
        prunes = {
            max(1, round(at * steps)): partial(self.prune, tolerance)
            for at, tolerance in self.config.prune_at.items()
        }
        first = 2 * self.config.memory
        self.last_prune = max(prunes)
        self.checks |= {at: prune for at, prune in prunes.items() if at >= first or at == self.last_prune}
        self.undo_at = max(self.last_prune, round(self.config.undo_at * steps))
        self.before_prune: Tensor | None = None
        self.most = self._parameters(self.ranks)
        self._gain: float | None = None
        if self.undo_at > self.last_prune:
            self.checks[self.undo_at] = self.undo
        self.decisions: list[Decision] = []
        self.guard = Guard(self.model, self.layers, self.optimizer, self.resizer, several=several)
        self.guard.check_layers()

    @property
    def notes(self) -> list[str]:
        """A sentence for each kind of event that a healthy training doesn't have."""
        return self.guard.notes(self.steps_taken)

    @property
    def done(self) -> bool:
        """No decision is left to make: the held-out rows may be trained on."""
        return self.steps_taken >= self.last_prune and (
            self.before_prune is None or self.steps_taken >= self.undo_at
        )

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of each layer now, by module path."""
        return {path: layer.rank for path, layer in self.layers.items()}

    @property
    def summary(self) -> str:
        """What became of the adapter's parameters, in a sentence or two for people."""
        return summary(self.decisions, self.most, self._parameters(self.ranks))

    def _parameters(self, ranks: Mapping[str, int]) -> int:
        layers = self.layers
        return sum(
            rank * (layers[path].in_features + layers[path].out_features) for path, rank in ranks.items()
        )

    def step(self) -> list[Decision]:
        """Take in the statistics of a step and, where a check is due, decide.

        Returns:
            What was decided now; mostly nothing.
        """
        self.guard.follow_layers(self.steps_taken)
        self.guard.take_statistics(self.statistics)
        self.steps_taken += 1
        made = len(self.decisions)
        if check := self.checks.get(self.steps_taken):
            self._compare_processes()
            check()
            self._compare_processes()
            if self.done and self.done_at is None:
                self.done_at = self.steps_taken
        return self.decisions[made:]

    def _compare_processes(self) -> None:
        if self.same_everywhere is not None:
            matrices = [m.detach() for layer in self.layers.values() for m in (layer.lora_A, layer.lora_B)]
            sums = [self.statistics.of(path) for path in self.layers]
            self.same_everywhere(
                f"The adapters or their statistics at step {self.steps_taken}", [*matrices, *sums]
            )

    @torch.no_grad()
    def sort(self) -> None:
        """Put every layer's components in order of importance, so that any smaller adapter is a prefix; the function stays as it is.

        Raises:
            RankwiseError: the optimizer averages weights, and its `eval()` wasn't called.
        """
        self.guard.follow_layers(self.steps_taken)
        self.guard.check_layers()
        if isinstance(self.optimizer, TorchOptimizer):
            self.optimizer.check_weights()
        self.resizer.sort(self.bases())

    # Checks

    @torch.no_grad()
    def prune(self, tolerance: float) -> None:
        """Remove the least important components, as many as held-out rows don't miss.

        Args:
            tolerance: loss increase that is negligible, as a share of the gain.
        """
        evidence = self.guard.begin_check(self.held_out, self.steps_taken, "prune")
        if evidence is None:
            return
        losses, without_adapters = evidence
        begun = self.held_out.begun
        gain, last = LossIncrease.of(without_adapters - losses), self.steps_taken >= self.last_prune
        self._gain = gain.mean
        gain_is_sure = gain.mean > self.config.confidence * gain.error
        scale = gain.mean if gain_is_sure else without_adapters.mean().item()  # what tolerances are shares of
        noise_tolerance = min(mean_and_error(losses)[1], self.config.noise_cap * scale)
        if gain_is_sure:  # with few steps left, training can't make up for what a prune takes
            noise_tolerance *= min(1.0, (self.steps - self.steps_taken) / self.config.memory)
        limit = max(tolerance * scale, noise_tolerance)
        if self.resizer.pruned:
            losses = self._restore(losses, limit)
        bases = self.bases()
        order = self.order(bases)
        if order and gain_is_sure and self.config.by_size:
            self._prune_by_size(bases, order, losses, limit)
        elif order and gain_is_sure:
            allowance = Allowance(gain.mean, tolerance, noise_tolerance)
            self._prune_after_trials(bases, order, losses, limit, allowance)
        elif order and last and self.config.prune_all:  # earlier a training may only have begun slowly
            self._prune_all(bases, order, gain, limit)
        if last and self.resizer.pruned and self.undo_at > self.steps_taken and all_finite([begun]):
            self.before_prune = begun

    def _prune_after_trials(
        self, bases: dict[str, Basis], order: Order, losses: Tensor, limit: float, allowance: Allowance
    ) -> None:
        """Evaluate a trial pruning, bolder than the prune that follows from it; evaluate that prune, and make it if it passes."""
        config, share = self.config, limit / allowance.gain
        evaluated: tuple[Proposal, LossIncrease] | None = None
        for _ in range(config.trials):
            if evaluated is None:
                evaluated = self._evaluate(bases, self.propose(bases, order, share), losses)
            trial, increase = evaluated
            if not increase.finite:
                self._not_finite(f"without {trial.components} components")
                share, evaluated = trial.share / config.trial_limit, None
                continue
            factor = factor_bound(*increase[:2], trial.share * allowance.gain, config.prior_sd)
            share = min(allowance.share_to_prune(factor, config.least_factor), trial.share)
            if share < trial.share / config.trial_limit:  # the trial says too little about so small a prune
                share, evaluated = config.trial_factor * share, None
                continue
            proposal = self.propose(bases, order, share)
            if proposal.components < config.smallest_prune * len(order):
                return
            evaluated = self._evaluate(bases, proposal, losses)
            increase, expected = evaluated[1], proposal.share * allowance.gain
            if not increase.finite:
                continue
            accepted = accept_prune_after_trial(increase, limit)
            decision = self.decision("prune", accepted, increase, limit, proposal.ranks, expected, factor)
            self._carry_out(decision)
            if decision.accepted:
                return

    def _prune_by_size(self, bases: dict[str, Basis], order: Order, losses: Tensor, limit: float) -> None:
        """Prune to the smallest size that held-out rows don't miss; halving the interval finds it."""
        least = self.config.least_rank * len(self.layers)
        sizes = [n for n in smaller_sizes(len(order), self.config.size_step) if n >= least]
        bound_limit, confidence = self.config.bound_limit * limit, self.config.confidence
        # sizes before `largest` are accepted, those from `smallest` on are refused
        largest, smallest = 0, len(sizes)
        taken: Decision | None = None
        while largest < smallest:
            middle = (largest + smallest) // 2
            ranks = ranks_without(bases, order[: len(order) - sizes[middle]])
            increase = LossIncrease.of(self.held_out.losses_with(self.matrices(bases, ranks)) - losses)
            accepted = increase.finite and accept_size(increase, limit, bound_limit, confidence)
            if increase.finite:
                decision = self.decision("prune", accepted, increase, limit, ranks)
                taken = decision if accepted or taken is None else taken
            else:
                self._not_finite(f"without {len(order) - sizes[middle]} components")
            largest, smallest = (middle + 1, smallest) if accepted else (largest, middle)
        if taken is not None:
            self._carry_out(taken)

    def _prune_all(self, bases: dict[str, Basis], order: Order, gain: LossIncrease, limit: float) -> None:
        """Remove all components where it isn't sure that they gain anything, and it can't be much."""
        ranks = dict.fromkeys(bases, 0)
        if self.only_adapters:  # without a single component there would be nothing to train
            ranks[order[-1][1]] = 1
        if ranks != {path: self.layers[path].rank for path in bases}:
            accepted = accept_prune_by_rows(gain, limit, self.config.confidence) and not accept_addition(
                self.held_out.plain_gain, 0.0, self.config.confidence
            )
            self._carry_out(self.decision("prune", accepted, gain, limit, ranks))

    @torch.no_grad()
    def undo(self) -> None:
        """Bring back what the last prune removed, where held-out rows still miss it after training has gone on.

        A loss may rise for other reasons, as a training that goes on for long makes it; so bringing it back must surely help.
        """
        before, self.before_prune = self.before_prune, None
        if (
            before is None or not self.resizer.pruned
        ):  # layers that got other weights from outside have nothing to bring back
            return
        now = self.guard.begin_comparison(self.held_out, self.steps_taken, "undo")
        if now is None:
            return
        limit = next(d.limit for d in reversed(self.decisions) if d.kind == "prune" and d.accepted)
        both, compared = self._with_pruned(), self.held_out.compared
        before = before if compared is None else before[:, compared]
        increases = [LossIncrease.of(row) for row in now - before]
        missed = [accept_addition(increase, limit, self.config.confidence) for increase in increases]
        if any(missed):
            restored = torch.stack([self.held_out.losses_with(both), self.held_out.plain])
            saved = [LossIncrease.of(row) for row in now - restored]
            missed = [
                miss and accept_addition(increase, 0.0, self.config.confidence)
                for miss, increase in zip(missed, saved, strict=True)
            ]
        ranks = {path: A.shape[0] for path, (A, _) in both.items()}
        increase = increases[1 if missed == [False, True] else 0]
        self._carry_out(self.decision("undo", any(missed), increase, limit, ranks))
        self.resizer.pruned = {}

    @torch.no_grad()
    def grow(self) -> None:
        """Double the rank of layers that are short of it, where held-out rows miss the last quarter of their components.

        A layer's next component is hardly more important than its last. So twice the rank gains at most about rank times the importance
        of the last one, and there is nothing to gain where that is little in all layers together.
        """
        bases, tolerance = self.bases(), self.config.tolerance
        total = sum(basis.importance.sum().item() for basis in bases.values())
        room = {path: len(basis.importance) * basis.importance[-1].item() for path, basis in bases.items()}
        short = [path for path, gained in room.items() if gained > tolerance * total / len(room)]
        if sum(room[path] for path in short) <= tolerance * total:
            return
        evidence = self.guard.begin_check(self.held_out, self.steps_taken, "grow")
        if evidence is None:
            return
        losses, without_adapters = evidence
        gain = (without_adapters - losses).mean().item()
        layers = {path: self.layers[path] for path in short}
        shorter = {path: layer.rank - math.ceil(layer.rank / 4) for path, layer in layers.items()}
        increase = LossIncrease.of(self.held_out.losses_with(self.matrices(bases, shorter)) - losses)
        if not increase.finite:
            self._not_finite("without the last components of some layers")
            return
        limit = tolerance * max(gain, 0.0)
        twice = {path: min(2 * x.rank, x.in_features, x.out_features) for path, x in layers.items()}
        accepted = accept_addition(increase, limit, self.config.confidence)
        self._carry_out(self.decision("grow", accepted, increase, limit, twice))

    def _restore(self, losses: Tensor, limit: float) -> Tensor:
        """Bring back what the last prune removed, where held-out rows miss it by now; return the losses after that."""
        both = self._with_pruned()
        restored = self.held_out.losses_with(both)
        increase = LossIncrease.of(losses - restored)
        if not increase.finite:
            self._not_finite("with what the last prune removed")
            self.resizer.pruned = {}
            return losses
        ranks = {path: A.shape[0] for path, (A, _) in both.items()}
        accepted = accept_addition(increase, limit, self.config.confidence)
        decision = self.decision("restore", accepted, increase, limit, ranks)
        self._carry_out(decision)
        self.resizer.pruned = {}
        return restored if decision.accepted else losses

    def _with_pruned(self) -> Matrices:
        """Return A and B of the pruned layers with what the last prune removed."""
        layers = self.layers
        return {
            path: (
                torch.cat([layers[path].lora_A, pruned.A]),
                torch.cat([layers[path].lora_B, pruned.B], dim=1),
            )
            for path, pruned in self.resizer.pruned.items()
        }

    def _not_finite(self, where: str) -> None:
        self.guard.say(self.steps_taken, f"held-out losses aren't finite {where}.")

    # What checks are made of; a study may override these

    def bases(self) -> dict[str, Basis]:
        """Return the components of every layer that has some and has statistics, and whose numbers are finite."""
        known = {
            path: (layer, sums)
            for path, layer in self.layers.items()
            if layer.rank and (sums := self.statistics.known(path)) is not None
        }
        return {
            path: self.rule.components(layer, sums)
            for path, (layer, sums) in known.items()
            if all_finite((sums, layer.lora_A.detach(), layer.lora_B.detach()))
        }

    def order(self, bases: Mapping[str, Basis]) -> Order:
        """Return (importance, module path) of every component, the first to be pruned first."""
        return self.rule.order(bases, self.layers)

    def propose(self, bases: Mapping[str, Basis], order: Order, share: float) -> Proposal:
        """Propose to prune the first components that have at most a share of all importance."""
        return least_important(order, bases, share)

    def matrices(self, bases: Mapping[str, Basis], ranks: Mapping[str, int]) -> Matrices:
        """Return A and B of layers pruned to these ranks."""
        return {path: bases[path].first(rank).matrices(self.layers[path]) for path, rank in ranks.items()}

    def decision(
        self,
        kind: str,
        accepted: bool,
        increase: LossIncrease,
        limit: float,
        ranks: Mapping[str, int],
        expected: float | None = None,
        factor: float | None = None,
    ) -> Decision:
        """Return the decision on a proposal; nothing is changed yet. The arguments are fields of `Decision`; `ranks` are proposed."""
        before = self.ranks
        changes = {path: (before[path], rank) for path, rank in ranks.items() if before[path] != rank}
        gain = self._gain if kind in ("prune", "restore") else None
        return Decision(
            self.steps_taken, kind, accepted, changes, before, *increase, limit, expected, factor, gain
        )

    def _evaluate(
        self, bases: Mapping[str, Basis], proposal: Proposal, losses: Tensor
    ) -> tuple[Proposal, LossIncrease]:
        """Evaluate a prune on held-out rows, against their `losses` as the model is."""
        pruned = self.held_out.losses_with(self.matrices(bases, proposal.ranks))
        return proposal, LossIncrease.of(pruned - losses)

    def _carry_out(self, decision: Decision) -> None:
        """Record a decision, and resize the layers where the proposal was accepted."""
        if decision.accepted and decision.kind in ("restore", "undo"):
            self.resizer.restore(self.bases())
        elif decision.accepted:
            self.resizer.resize(decision.changes, self.bases(), self.steps_taken)
        self.most = max(self.most, self._parameters(self.ranks))
        self.decisions.append(replace(decision, ranks=self.ranks))

    # Checkpoints

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what a checkpoint needs beside the layers and the optimizer: tensors, and plain values."""
        tensors = {f"statistics.{path}": value for path, value in self.statistics.sums.items()}
        for path, pruned in self.resizer.pruned.items():
            tensors |= {f"pruned.{name}.{path}": value for name, value in pruned._asdict().items()}
        if self.before_prune is not None:
            tensors["before_prune"] = self.before_prune
        values = {
            "steps": self.steps_taken,
            "rows": self.held_out.rows_seen,
            "done_at": self.done_at,
            "skipped_steps": self.guard.skipped_steps,
            "most": self.most,
            "scaling": {path: layer.scaling for path, layer in self.layers.items()},
            "decisions": [decision.to_json() for decision in self.decisions],
        }
        return tensors, values

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Continue from what `state` returned, after the layers have taken their ranks."""
        self.steps_taken, self.held_out.rows_seen = values["steps"], values["rows"]
        self.done_at = values["done_at"]
        self.guard.skipped_steps, self.most = values["skipped_steps"], values["most"]
        self.decisions = [Decision.from_json(stored) for stored in values["decisions"]]
        self.before_prune = tensors["before_prune"].cpu() if "before_prune" in tensors else None
        self.load_statistics(tensors, values)

    def load_statistics(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take the statistics, the pruned components and the scaling of `state`, after the layers have taken their ranks.

        Steps and decisions stay. What doesn't fit the layers, or isn't finite, begins anew.
        """
        self.guard.check_layers()
        if isinstance(self.optimizer, TorchOptimizer):
            self.optimizer.follow_layers()
        self.statistics.sums = {
            path: tensors[f"statistics.{path}"] for path in self.layers if f"statistics.{path}" in tensors
        }
        self.statistics.sums = {
            path: sums
            for path, sums in self.statistics.sums.items()
            if self.statistics.known(path) is not None and all_finite([sums])
        }
        stored = {
            path: Components(*(tensors[f"pruned.{name}.{path}"] for name in Components._fields))
            for path in self.layers
            if f"pruned.A.{path}" in tensors
        }
        self.resizer.pruned = {
            path: pruned
            for path, pruned in stored.items()
            if pruned.fits(self.layers[path]) and all_finite(pruned)
        }
        for path, layer in self.layers.items():
            layer.scaling = values["scaling"][path]
        self.resizer.ranks = self.ranks
        self.statistics.collect()
