"""Adaptive rank in your own Transformers `Trainer` script.

rankwise.adapt(model)
Trainer(model, …, callbacks=[rankwise.RankCallback(held_out)]).train()
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rankwise.errors import RankwiseError
from rankwise.lora.layer import lora_layers
from rankwise.rank.config import RankConfig
from rankwise.rank.controller import RankController
from rankwise.rank.decision import Decision
from rankwise.rank.pruning_rule import PruningRule
from rankwise.tasks.objectives import of_config

TENSORS, VALUES = "rank_controller.safetensors", "rank_controller.json"

ExampleLosses = Callable[[nn.Module, dict[str, Any]], Tensor]
"""(model, a collated batch on its device) → the loss of each example."""


class RankCallback(TrainerCallback):
    """Finds the rank of each LoRA layer while a `Trainer` trains; the Trainer's checkpoints resume.

    The last prune comes at four fifths of the steps. The learning rate should be at half its peak by then: high enough to learn again
    what was pruned. `engine.optim.schedule_factor("two-phase", …)` in a `LambdaLR` gives that (docs/method.md).

    Args:
        held_out: examples that are not in the training data, a few hundred or more; collated as the Trainer collates.
        losses: (model, batch) → the loss of each example, shape [examples]. Default: the calibrated loss of the
            objective that the model's config names.
        batch_size: examples a batch of held-out passes.
        seed: draws the components that are added when a layer grows.
        config: constants of the controller.
        rule: which components are pruned first: a name in `PRUNING_RULES`, or a `PruningRule`.
    """

    def __init__(
        self,
        held_out: Dataset[Any] | Sequence[Any],
        *,
        losses: ExampleLosses | None = None,
        batch_size: int = 64,
        seed: int = 0,
        config: RankConfig | None = None,
        rule: PruningRule | str = "importance",
    ) -> None:
        self.held_out, self.losses, self.batch_size, self.seed = held_out, losses, batch_size, seed
        self.config, self.rule = config, rule
        self.controller: RankController | None = None

    @property
    def decisions(self) -> list[Decision]:
        """Decisions so far."""
        return [] if self.controller is None else self.controller.decisions

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.world_size > 1 or args.n_gpu > 1:
            raise RankwiseError(
                f"RankCallback works in one process on one device; this training has {max(args.world_size, args.n_gpu)}. "
                "Ranks would differ between them."
            )
        model, optimizer = cast(nn.Module, kwargs["model"]), kwargs["optimizer"]
        if not lora_layers(model):
            raise RankwiseError(
                "This model has no LoRA layers. Call rankwise.adapt(model) before the Trainer is made."
            )
        if not len(cast(Sequence[Any], self.held_out)):
            raise RankwiseError("RankCallback needs held-out examples; there are none.")
        collate = getattr(kwargs.get("train_dataloader"), "collate_fn", None)
        loader = DataLoader(cast(Dataset[Any], self.held_out), self.batch_size, collate_fn=collate)
        self.controller = RankController(
            model,
            lambda: self._example_losses(model, loader),
            state.max_steps,
            optimizer,
            seed=self.seed,
            config=self.config,
            rule=self.rule,
        )
        if state.global_step:
            self._load(Path(args.output_dir or ".") / f"checkpoint-{state.global_step}")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.controller is not None:
            self.controller.step()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.controller is None:
            return
        best = getattr(state, "best_model_checkpoint", None)
        if args.load_best_model_at_end and best and (Path(best) / VALUES).is_file():
            # the Trainer has loaded the layers of that step, so the statistics must be of that step, too
            tensors, values = self._stored(Path(best))
            self.controller.load_statistics(tensors, values)
        self.controller.sort()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.controller is None or not state.is_world_process_zero:
            return
        folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
        tensors, values = self.controller.state()
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / TENSORS)
        (folder / VALUES).write_text(json.dumps(values), encoding="utf-8")

    def _load(self, folder: Path) -> None:
        if not (folder / VALUES).is_file():
            raise RankwiseError(
                f"{folder} has no {VALUES}, so ranks can't be continued from there: it was written without RankCallback, or elsewhere."
            )
        assert self.controller is not None
        self.controller.load(*self._stored(folder))

    def _stored(self, folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        assert self.controller is not None
        device = next(iter(self.controller.layers.values())).lora_A.device
        values = json.loads((folder / VALUES).read_text(encoding="utf-8"))
        return load_file(folder / TENSORS, device=str(device)), values

    @torch.no_grad()
    def _example_losses(self, model: nn.Module, loader: DataLoader[Any]) -> Tensor:
        training, device = model.training, next(model.parameters()).device
        model.eval()
        try:
            batches = ({k: _to(v, device) for k, v in batch.items()} for batch in loader)
            found = [self._outputs(model, batch) for batch in batches]
            outputs, *labels = (torch.cat(tensors).cpu() for tensors in zip(*found, strict=True))
            objective = of_config(getattr(model, "config", None))
            return objective.calibrated_losses(outputs, labels[0]) if labels else outputs
        finally:
            model.train(training)

    def _outputs(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, ...]:
        """Return a batch's losses where `losses` is given, else its logits and labels."""
        if self.losses is not None:
            return (self.losses(model, batch).float(),)
        labels = batch.pop("labels")
        return model(**batch).logits.float(), labels


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
