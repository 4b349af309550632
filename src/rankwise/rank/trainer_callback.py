"""Adaptive rank in your own script around a Transformers `Trainer`, or one of TRL's trainers.

rankwise.adapt(model)                                                              either our layers
model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear"))       or PEFT's

trainer = Trainer(model, …, eval_dataset=held_out)
rankwise.find_ranks(trainer)
trainer.train()
"""

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rankwise.config import Preference
from rankwise.errors import RankwiseError
from rankwise.lora.low_rank import LowRankLayer
from rankwise.lora.peft_layer import low_rank_layers
from rankwise.lora.quantized import keep_gradients
from rankwise.lora.wrappers import bare
from rankwise.rank.config import RankConfig, preferring
from rankwise.rank.controller import RankController
from rankwise.rank.decision import Decision
from rankwise.rank.example_losses import ExampleLosses, Examples, is_language_model, outputs_of
from rankwise.rank.pruning_rule import PruningRule
from rankwise.tasks.labels import IGNORED
from rankwise.tasks.objectives import of_config

TENSORS, VALUES = "rank_controller.safetensors", "rank_controller.json"
DIGEST = "adapter_digest"
"""Key of `digest` among the values: a checkpoint belongs to the weights that it was written with."""


class RankCallback(TrainerCallback):
    """Finds the rank of each LoRA layer while a `Trainer` trains; the Trainer's checkpoints resume.

    What the training needs to know of the held-out examples is checked before its first step. A training of fewer steps than
    `RankConfig.fewest_steps` keeps the ranks that it has.

    The prune comes half-way; where size is preferred, the last one comes at four fifths of the steps. The learning rate should be at half
    its peak by then: high enough to learn again what was pruned. `engine.optim.schedule_factor("two-phase", …)` in a `LambdaLR` gives that
    (docs/method.md).

    Args:
        held_out: examples that are not in the training data, a few hundred or more; collated as the Trainer collates. Those without a
            label (-100, or not a number) are left out.
        losses: (model, batch) → the loss of each example, shape [examples]. Default: the calibrated loss of the objective that the
            model's config names; for language models the mean cross-entropy over an example's labelled tokens (`example_losses`).
        batch_size: examples a batch of held-out passes. Default: 64; 8 for language models, whose logits are large.
        seed: draws the components that are added when a layer grows.
        prefer: `accuracy` or `size`, see `adapt`. Default: what the layers were made for.
        config: constants of the controller, in the place of those of the preference.
        rule: which components are pruned first: a name in `PRUNING_RULES`, or a `PruningRule`.
    """

    def __init__(
        self,
        held_out: Dataset[Any] | Examples,
        *,
        losses: ExampleLosses | None = None,
        batch_size: int | None = None,
        seed: int = 0,
        prefer: Preference | None = None,
        config: RankConfig | None = None,
        rule: PruningRule | str = "importance",
    ) -> None:
        self.held_out, self.losses, self.batch_size, self.seed = held_out, losses, batch_size, seed
        self.prefer, self.config, self.rule = prefer, config, rule
        self.controller: RankController | None = None

    @property
    def decisions(self) -> list[Decision]:
        """Decisions so far."""
        return [] if self.controller is None else self.controller.decisions

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Have PEFT's layers take the ranks of a checkpoint that is loaded before training begins, and keep quantized bases trainable."""
        layers_of(kwargs["model"])
        keep_gradients(
            kwargs["model"]
        )  # before anything is evaluated: what bitsandbytes packs loses some precision

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.world_size > 1 or args.n_gpu > 1:
            raise RankwiseError(
                f"RankCallback works in one process on one device; this training has {max(args.world_size, args.n_gpu)}. "
                "Ranks would differ between them."
            )
        wrapper = next((name for name in ("deepspeed", "fsdp") if getattr(args, name, None)), None)
        if wrapper:
            raise RankwiseError(
                f"RankCallback doesn't work with `{wrapper}=`, which keeps weights and the optimizer's state in another form. Leave it out."
            )
        model, optimizer = cast(nn.Module, kwargs["model"]), kwargs["optimizer"]
        layers = list(layers_of(model).values())
        self.controller, config = (
            None,
            self.config or preferring(cast(Preference, self.prefer or layers[0].prefer)),
        )
        if state.max_steps < config.fewest_steps:
            warnings.warn(
                f"Too little to find ranks on ({state.max_steps} steps; {config.fewest_steps} are needed): every layer keeps its rank.",
                stacklevel=2,
            )
            for layer in layers:
                layer.collect_statistics(False)
            return
        collate = getattr(kwargs.get("train_dataloader"), "collate_fn", None)
        size = self.batch_size or (8 if is_language_model(model) else 64)
        loader = DataLoader(cast(Dataset[Any], self.held_out), size, collate_fn=collate)
        self._check_held_out(model, loader)
        self.controller = RankController(
            model,
            lambda: self._example_losses(model, loader),
            state.max_steps,
            optimizer,
            seed=self.seed,
            config=config,
            rule=self.rule,
        )
        if state.global_step:
            self._load(args, state.global_step)

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
        best = getattr(state, "best_model_checkpoint", None) if args.load_best_model_at_end else None
        if best is None and hasattr(optimizer := kwargs["optimizer"], "eval"):
            optimizer.eval()  # schedule-free optimizers then have the averaged weights in the model, which are the result
        if best and (Path(best) / VALUES).is_file():
            # the Trainer has loaded the layers of that step, so the statistics must be of that step, too
            tensors, values = self._stored(Path(best))
            if values.get(DIGEST) == digest(self.controller.layers):
                self.controller.load_statistics(tensors, values)
        if not self.controller.done:
            warnings.warn(
                f"The training ended after {self.controller.steps_taken} of {self.controller.steps} steps, before the last decision about "
                "ranks: layers may have more components than they need. `rankwise compress` prunes a finished adapter.",
                stacklevel=2,
            )
        self.controller.sort()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.controller is None or not state.is_world_process_zero:
            return
        folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
        tensors, values = self.controller.state()
        values[DIGEST] = digest(self.controller.layers)
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / TENSORS)
        (folder / VALUES).write_text(json.dumps(values), encoding="utf-8")

    def _load(self, args: TrainingArguments, step: int) -> None:
        """Continue from the checkpoint that the Trainer has loaded."""
        assert self.controller is not None
        asked = args.resume_from_checkpoint
        folders = [Path(args.output_dir or ".") / f"checkpoint-{step}"]
        if isinstance(asked, str) and (Path(asked) / VALUES).is_file():
            folders.insert(0, Path(asked))
        if not (folders[0] / VALUES).is_file():
            raise RankwiseError(
                f"{folders[0]} has no {VALUES}, so ranks can't be continued from there: it was written without RankCallback, or elsewhere."
            )
        tensors, values = self._stored(folders[0])
        if values.get(DIGEST) != digest(self.controller.layers):
            raise RankwiseError(
                f"The adapter that the Trainer has loaded isn't the one of {folders[0]}, so ranks can't be continued from there. Name the "
                "folder in TrainingArguments(resume_from_checkpoint=…), too."
            )
        try:
            self.controller.load(tensors, values)
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(folders[0], error) from None

    def _stored(self, folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        assert self.controller is not None
        device = next(iter(self.controller.layers.values())).lora_A.device
        try:
            values = dict(json.loads((folder / VALUES).read_text(encoding="utf-8")))
            return load_file(folder / TENSORS, device=str(device)), values
        except (OSError, TypeError, ValueError, SafetensorError) as error:
            raise _damaged(folder, error) from None

    def _check_held_out(self, model: nn.Module, loader: DataLoader[Any]) -> None:
        """Evaluate two held-out examples.

        Raises:
            RankwiseError: there are none, or they have no losses.
        """
        try:
            some = [loader.dataset[i] for i in range(min(2, len(cast(Sequence[Any], loader.dataset))))]
            if not some:
                raise RankwiseError("RankCallback needs held-out examples; there are none.")
            (losses, *_) = self._outputs_and_labels(model, [loader.collate_fn(some)])
        except RankwiseError:
            raise
        except Exception as error:  # whatever a collator or a model may raise
            raise RankwiseError(
                f"The held-out examples can't be evaluated ({type(error).__name__}: {error}). They must be as the Trainer collates them."
            ) from error
        if len(losses) != len(some) or (self.losses is not None and losses.ndim != 1):
            raise RankwiseError(
                f"`losses=` gives a tensor of shape {list(losses.shape)} for {len(some)} held-out examples; it must give one loss for each."
            )

    def _example_losses(self, model: nn.Module, loader: DataLoader[Any]) -> Tensor:
        outputs, *labels = self._outputs_and_labels(model, loader)
        if not labels:
            return outputs
        known = has_label(labels[0])
        if not known.any():
            raise RankwiseError("None of the held-out examples has a label.")
        objective = of_config(getattr(model, "config", None))
        return objective.calibrated_losses(outputs[known], labels[0][known])

    @torch.no_grad()
    def _outputs_and_labels(self, model: nn.Module, batches: Iterable[Any]) -> list[Tensor]:
        """Return losses where `losses` is given, else logits and labels, of all batches together, on the CPU."""
        training, device = model.training, next(model.parameters()).device
        model.eval()
        try:
            found = [
                self._of_batch(model, {k: _to(v, device) for k, v in batch.items()}) for batch in batches
            ]
            return [torch.cat(tensors).cpu() for tensors in zip(*found, strict=True)]
        finally:
            model.train(training)

    def _of_batch(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, ...]:
        if self.losses is not None:
            return (self.losses(model, batch).float(),)
        return outputs_of(model, batch)


def find_ranks(
    trainer: Trainer, held_out: Dataset[Any] | Examples | None = None, **settings: Any
) -> RankCallback:
    """Have a trainer find the rank of each LoRA layer of its model, ours or PEFT's, while it trains.

    Args:
        trainer: of Transformers or TRL, before `train()`.
        held_out: examples that it isn't trained on, prepared as the trainer's own are. Default: its evaluation data.
        settings: for `RankCallback`.

    Returns:
        The callback, which the trainer has now.

    Raises:
        RankwiseError: there are no held-out examples, or no layers whose rank can be found.
    """
    given: Any = trainer.eval_dataset if held_out is None else held_out
    if given is None or isinstance(given, dict):
        raise RankwiseError(
            "There are no held-out examples: give the trainer one `eval_dataset`, or `find_ranks(trainer, held_out)`."
        )
    callback = RankCallback(given, **settings)
    callback.on_init_end(trainer.args, trainer.state, trainer.control, model=trainer.model)
    trainer.add_callback(callback)
    return callback


def layers_of(model: nn.Module) -> Mapping[str, LowRankLayer]:
    """Return the layers of a model whose ranks are to be found.

    Raises:
        RankwiseError: there are none, or their rank can't be changed.
    """
    with bare(model, peft=True) as plain:
        layers = low_rank_layers(plain)
    if not layers:
        raise RankwiseError(
            "This model has no LoRA layers. Call rankwise.adapt(model), or PEFT's get_peft_model, before the Trainer is made."
        )
    return layers


def _damaged(folder: Path, error: Exception) -> RankwiseError:
    return RankwiseError(f"What {folder} keeps of the ranks can't be read ({type(error).__name__}: {error}).")


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def has_label(labels: Tensor) -> Tensor:
    """Return for each row whether it has a label: bool [rows]."""
    known = labels.isfinite() if labels.is_floating_point() else labels != IGNORED
    return known.reshape(len(labels), -1).all(dim=1)


def digest(layers: Mapping[str, LowRankLayer]) -> str:
    """Return a SHA-256 of the matrices of layers, as 32 hexadecimal digits."""
    found = hashlib.sha256()
    for layer in layers.values():
        for matrix in (layer.lora_A, layer.lora_B):
            found.update(matrix.detach().cpu().double().numpy().tobytes())
    return found.hexdigest()[:32]
