"""PEFT's methods in rankwise's own training loop: `peft:dora`, `peft:prefix`, `peft:<name>,key=value`.

PEFT builds the adapters, counts their parameters and saves them. Rows, their order, schedule and evaluation are the same as for every other
method. A method that changes the model's layers runs on the Transformers model itself, so it can be packed. A method that puts virtual
tokens before each row runs on PEFT's wrapper, with padding. AdaLoRA also acts after each optimizer step and adds to the loss.
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast, get_type_hints

import torch
from peft import AdaLoraModel, PeftModel, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rankwise.adapters import peft_format
from rankwise.adapters.peft_kinds import peft_errors
from rankwise.config import LoraOptions, RunConfig
from rankwise.engine.batch_schedule import total_steps
from rankwise.engine.packing import pad
from rankwise.errors import RankwiseError, nearest
from rankwise.lora.inject import find_targets, train_beside
from rankwise.models.families import body_and_heads, position_limit
from rankwise.seeding import seed_torch
from rankwise.tasks.encoding import Encoded
from rankwise.tasks.objectives import of_model

PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "adalora": ("ADALORA", {}),
    "dora": ("LORA", {"use_dora": True}),
    "eva": ("LORA", {"init_lora_weights": "eva"}),
    "pissa": ("LORA", {"init_lora_weights": "pissa"}),
    "prefix": ("PREFIX_TUNING", {"num_virtual_tokens": 20}),
    "prompt": ("PROMPT_TUNING", {"num_virtual_tokens": 20}),
}
"""Short names: PEFT's type, and the settings that make the method. Other types have PEFT's names (`peft:vera`, `peft:ia3`, `peft:loha`)."""
OURS = {
    "rank": "r",
    "alpha": "lora_alpha",
    "rslora": "use_rslora",
    "lora_dropout": "lora_dropout",
    "targets": "target_modules",
}
"""Options (`LoraOptions`) that PEFT has too, with PEFT's names."""
EVA_ROWS = 16
"""Rows in each batch that EVA reads. A layer that sees one position of each row, like BERT's pooler, needs more."""


@dataclass(frozen=True)
class PeftMethod:
    """A model that PEFT adapted; a `methods.Adapted`.

    Attributes:
        wrapper: PEFT's model, which saves the adapter.
        model: what is trained and run: the Transformers model inside, or the wrapper if that adds virtual tokens.
        hooks: what the method does besides the loss, or None.
    """

    wrapper: PeftModel
    model: nn.Module
    hooks: "AdaLoraSteps | None"

    @property
    def head_params(self) -> int:
        """Parameters of the modules that are trained whole beside the adapter."""
        return sum(
            p.numel()
            for name, p in self.model.named_parameters()
            if p.requires_grad and ".modules_to_save." in name
        )

    def save(self, folder: Path, base_model: str) -> None:
        """Writes the adapter as PEFT does, and adds the base model's name and the labels to the metadata."""
        self.wrapper.save_pretrained(str(folder), save_embedding_layers=False)
        peft_format.add_metadata(folder, self.wrapper, base_model)
        (folder / "README.md").unlink(missing_ok=True)  # an empty form; the run writes its own model card


def kind(name: str) -> tuple[PeftType, dict[str, Any]]:
    """Return PEFT's type of a method, and the settings that make it that method.

    Raises:
        RankwiseError: PEFT has no such method, or it is none for sequence classification.
    """
    known = {t.value.lower(): t.value for t in PEFT_TYPE_TO_CONFIG_MAPPING}
    if name in PRESETS:
        value, preset = PRESETS[name]
        return PeftType(value), preset
    if name not in known:
        raise RankwiseError(f"There is no method 'peft:{name}'.{nearest(name, {*known, *PRESETS})}")
    return PeftType(known[name]), {}


def shared_settings(name: str) -> set[str]:
    """Return the options (`LoraOptions`) that a method takes as its own settings."""
    return set(OURS) if kind(name)[0] in (PeftType.LORA, PeftType.ADALORA) else set()


def settings(name: str, given: dict[str, str]) -> dict[str, Any]:
    """Return a method's settings with PEFT's names and types.

    Raises:
        RankwiseError: the method has no such setting, or it takes another kind of value.
    """
    peft_type, _ = kind(name)
    kinds = get_type_hints(PEFT_TYPE_TO_CONFIG_MAPPING[peft_type])
    read: dict[str, Any] = {}
    for key, text in given.items():
        field = OURS.get(key, key)
        if field not in kinds:
            ours = {k for k, v in OURS.items() if v in kinds}
            raise RankwiseError(f"peft:{name} has no setting {key!r}.{nearest(key, {*kinds, *ours})}")
        if field == "target_modules":
            read[field] = tuple(text.split("+"))
            continue
        read[field] = _value(text)
        expected = next((k for k in (int, float, bool) if kinds[field] in (k, k | None)), None)
        accepted = (int, float) if expected is float else (expected,)
        if expected and type(read[field]) not in accepted:
            raise RankwiseError(f"peft:{name}: {key} takes {expected.__name__}, not {text!r}.")
    return read


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for read in (int, float):
        with contextlib.suppress(ValueError):
            return read(text)
    return text


def prepare(
    model: PreTrainedModel, name: str, given: dict[str, str], config: RunConfig, new: list[str], rows: Encoded
) -> PeftMethod:
    """Adapt a model with PEFT, in place.

    Args:
        model: a sequence classifier.
        name: the method, without `peft:`.
        given: its own settings, as text.
        config: of the run.
        new: modules outside the head that aren't pretrained (see `models.account`).
        rows: the training rows.

    Raises:
        RankwiseError: PEFT refuses the model or a setting.
    """
    peft_type, preset = kind(name)
    own = settings(name, given)
    heads = [*body_and_heads(model)[1], *new]
    train_beside(model, heads)  # in float32, whatever the base's dtype
    steps = total_steps(len(rows), config.train)
    document = {**_defaults(model, peft_type, config.lora, steps), **preset, **own}
    if "target_modules" in document:
        document["target_modules"] = find_targets(model, cast(Sequence[str], document["target_modules"]))
        document["fan_in_fan_out"] = isinstance(model.get_submodule(document["target_modules"][0]), Conv1D)
    if document.get("init_lora_weights") == "eva":
        from peft import EvaConfig

        document["eva_config"] = EvaConfig()
    _fits(model, document, rows)
    seed_torch(config.seed, "adapter")
    with peft_errors(name, model):
        make = cast(Any, PEFT_TYPE_TO_CONFIG_MAPPING[peft_type])
        task_type = of_model(model).task_type
        peft_config = make(task_type=task_type, modules_to_save=heads, **document)
        wrapper = cast(PeftModel, get_peft_model(model, peft_config))
        if document.get("init_lora_weights") == "eva":
            _initialise_from_data(wrapper, rows, model)
    for parameter_name, parameter in wrapper.named_parameters():
        if (
            "ranknum" in parameter_name
        ):  # AdaLoRA's count of ranks: PEFT's cast to float32 makes a trained parameter of it
            parameter.requires_grad_(False)
        elif parameter.requires_grad:  # EVA makes layers whose rank it changes anew, in the base's dtype
            parameter.data = parameter.data.float()
    inside = wrapper.get_base_model() if not peft_config.is_prompt_learning else wrapper
    hooks = AdaLoraSteps(wrapper.base_model) if isinstance(wrapper.base_model, AdaLoraModel) else None
    return PeftMethod(wrapper, cast(nn.Module, inside), hooks)


def _defaults(model: nn.Module, peft_type: PeftType, lora: LoraOptions, steps: int) -> dict[str, Any]:
    """Return the run's options that mean the same in PEFT, and for AdaLoRA its authors' schedule in proportion to the steps.

    Source: Zhang et al. 2023 for the initial rank, 1.5 times the target's. The authors' scripts for GLUE (github.com/QingruZhang/AdaLoRA)
    for the rest: t_i is 9 to 18 % of a run's steps, t_f 44 to 58 %, Δ_T 0.03 to 0.6 %, γ 0.1 (0.3 on RTE and STS-B).
    """
    if peft_type not in (PeftType.LORA, PeftType.ADALORA):
        fields_of = {f.name for f in fields(cast(Any, PEFT_TYPE_TO_CONFIG_MAPPING[peft_type]))}
        targeted = "target_modules" in fields_of and (lora.targets or peft_type != PeftType.IA3)
        return {"target_modules": lora.targets} if targeted else {}
    shared = {
        "lora_alpha": 2 * lora.fixed_rank if lora.alpha is None else lora.alpha,
        "lora_dropout": lora.lora_dropout,
        "target_modules": lora.targets,
    }
    if peft_type == PeftType.LORA:
        return {**shared, "r": lora.fixed_rank, "use_rslora": lora.rslora}
    return {
        **shared,
        "target_r": lora.fixed_rank,
        "init_r": round(1.5 * lora.fixed_rank),
        "total_step": steps,
        "tinit": round(0.12 * steps),
        "tfinal": round(0.47 * steps),
        "deltaT": max(1, steps // 500),
        "orth_reg_weight": 0.1,
    }


def _fits(model: PreTrainedModel, document: dict[str, Any], rows: Encoded) -> None:
    """Refuses virtual tokens for which the model has too few positions."""
    positions = position_limit(model)
    longest = int(rows.lengths.max()) + document.get("num_virtual_tokens", 0)
    if "num_virtual_tokens" in document and positions and longest > positions:
        raise RankwiseError(
            f"{document['num_virtual_tokens']} virtual tokens and the longest text make {longest} tokens; the model takes {positions}. "
            f"Give `max_length={positions - document['num_virtual_tokens']}`."
        )


def _initialise_from_data(wrapper: PeftModel, rows: Encoded, model: PreTrainedModel) -> None:
    """Initialise A from singular vectors of each layer's input, and ranks by the variance they explain (EVA: Paischer et al. 2024)."""
    from peft import initialize_lora_eva_weights

    order = torch.randperm(len(rows)).numpy()
    pad_id = model.config.pad_token_id or 0
    config = cast(Any, wrapper.active_peft_config)
    vectors = math.ceil(config.r * config.eva_config.rho)  # singular vectors computed for each layer
    size = min(max(EVA_ROWS, vectors), len(rows))
    batches = []
    for start in range(0, len(rows) - size + 1, size):
        batch = pad(rows, order[start : start + size], pad_id, "longest")
        batches.append({key: value for key, value in batch.items() if key != "labels"})
    initialize_lora_eva_weights(
        cast(Any, wrapper),
        batches,
        prepare_layer_inputs_fn=_without_padding,
        gather_distributed_inputs=False,
        show_progress_bar=False,
    )


def _without_padding(inputs: tuple[Tensor, ...], positions: Tensor, name: str) -> Tensor:
    """Return a layer's input without padding. PEFT's own function can't take a pooler's input, which has one position for each row."""
    from peft.tuners.lora.eva import prepare_layer_inputs_fn_language_modeling

    if inputs[0].ndim == 2:
        return inputs[0].contiguous()
    return prepare_layer_inputs_fn_language_modeling(inputs[0], positions, name)


class AdaLoraSteps:
    """What AdaLoRA does besides the loss: a penalty on P and Q, and new masks by the budget after each step.

    Source: Zhang et al. 2023, eq. 4 and algorithm 1; PEFT's `AdaLoraModel` does the first in its own forward, which isn't used here.
    """

    def __init__(self, model: AdaLoraModel) -> None:
        self.model = model
        self._config = cast(Any, model.peft_config[model.trainable_adapter_name])

    def gradients(self, parameters: Sequence[nn.Parameter]) -> tuple[Tensor | None, ...]:
        """Return the gradients of γ/n · Σ ‖PᵀP − I‖ + ‖QQᵀ − I‖ over the n matrices."""
        factors = [
            p @ p.T if "lora_A" in name else p.T @ p
            for name, p in self.model.named_parameters()
            if ("lora_A" in name or "lora_B" in name) and p.requires_grad
        ]
        penalty = torch.stack(
            [torch.linalg.matrix_norm(f - torch.eye(len(f), device=f.device)) for f in factors]
        ).mean()
        return torch.autograd.grad(self._config.orth_reg_weight * penalty, parameters, allow_unused=True)

    def after_step(self, step: int) -> None:
        """Updates the importance from this step's gradients, and masks singular values beyond the budget."""
        self.model.update_and_allocate(step)

    def state(self) -> dict[str, Tensor]:
        """Return the averages of importance and the ranks so far, by name."""
        allocator = self.model.rankallocator
        tensors = {
            f"{kind}.{name}": value for kind in _AVERAGES for name, value in getattr(allocator, kind).items()
        }
        ranks = self._config.rank_pattern or {}
        return tensors | {f"rank_pattern.{name}": torch.tensor(kept) for name, kept in ranks.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restores what `state` returned."""
        for kind in _AVERAGES:
            setattr(self.model.rankallocator, kind, _below(kind, state))
        ranks = {name: kept.tolist() for name, kept in _below("rank_pattern", state).items()}
        self._config.rank_pattern = ranks or self._config.rank_pattern


_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def _below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{prefix}."): value
        for name, value in state.items()
        if name.startswith(f"{prefix}.")
    }
