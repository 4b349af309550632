"""PEFT's LoRA layers as adaptive rank sees them: the same matrices, scale and statistics as `LoRALinear` has.

    base layer(x) + s·lora_B(lora_A(dropout(x)))        lora_A, lora_B: nn.Linear of a named adapter
                              └─► z: statistics are collected here

A change of a layer's rank is written to the adapter's config at once (`rank_pattern`, `alpha_pattern`). So `save_pretrained` and the
checkpoints of a Trainer are right at any time. PEFT has no rank 0: such a layer is saved with one component of zeros.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from rankwise.errors import RankwiseError
from rankwise.lora.layer import CollectStatistics, lora_layers
from rankwise.lora.low_rank import LowRankLayer
from rankwise.lora.names import anchored

BASE = "base_model.model."
"""What PEFT's wrapper puts before the base model's paths."""


class PeftLayer(LowRankLayer):
    """A LoRA layer of PEFT with one of its adapters.

    Args:
        module: a `peft.tuners.lora.LoraLayer` around a linear layer.
        adapter: the adapter's name.
        path: of the layer in the base model.
        config: the adapter's `LoraConfig`; its patterns follow the layer's rank and s.
    """

    def __init__(self, module: nn.Module, adapter: str, path: str, config: Any) -> None:
        self.module, self.adapter, self.path, self.config = cast(Any, module), adapter, path, config
        self.module.lora_A[adapter].register_forward_hook(self._collect)
        self.module.register_load_state_dict_pre_hook(self._before_load)
        self.module.register_state_dict_post_hook(partial(self._no_rank_0))  # torch sets an attribute on it

    @property
    def lora_A(self) -> nn.Parameter:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.module.lora_A[self.adapter].weight

    @property
    def lora_B(self) -> nn.Parameter:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.module.lora_B[self.adapter].weight

    @property
    def scaling(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.module.scaling[self.adapter]

    @scaling.setter
    def scaling(self, s: float) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Take another s, and the rank that A and B have by now, into PEFT's layer and config."""
        self.module.scaling[self.adapter] = s
        A, B = self.module.lora_A[self.adapter], self.module.lora_B[self.adapter]
        A.out_features = B.in_features = self.rank
        self._write_config()

    def check_unmerged(self) -> None:
        if self.module.merged:
            raise RankwiseError(f"{self.path} is merged into its weight. Call unmerge_adapter() first.")

    def _write_config(self) -> None:
        """Write rank and alpha as PEFT reads them: s = alpha/r, or alpha/√r where it is rank-stabilised."""
        r = max(1, self.rank)
        alpha = self.scaling * (math.sqrt(r) if self.config.use_rslora else r)
        self.module.r[self.adapter], self.module.lora_alpha[self.adapter] = r, alpha
        pattern = anchored(self.path)
        for field, value in (("rank_pattern", r), ("alpha_pattern", alpha)):
            others = {
                key: given for key, given in (getattr(self.config, field) or {}).items() if key != pattern
            }
            setattr(self.config, field, {pattern: value} | others)  # PEFT takes the first that matches

    def _collect(self, _: nn.Module, inputs: tuple[Tensor, ...], z: Tensor) -> Tensor:
        if self.statistics is None or not torch.is_grad_enabled() or not self.rank:
            return z
        return cast(Tensor, CollectStatistics.apply(z, self.statistics))

    def _before_load(self, _: nn.Module, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        names = [f"{prefix}{matrix}.{self.adapter}.weight" for matrix in ("lora_A", "lora_B")]
        A, B = (state_dict.get(name) for name in names)
        if A is None or B is None:
            return
        # rank 0, as `_no_rank_0` writes it
        if A.ndim == B.ndim == 2 and A.shape[0] == 1 and not A.any() and not B.any():
            A, B = A[:0], B[:, :0]
            state_dict |= zip(names, (A, B), strict=True)
        self.check_unmerged()
        self.take_rank(A, B)

    def _no_rank_0(self, _: nn.Module, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if self.rank == 0:
            A, B = self.lora_A, self.lora_B
            state_dict[f"{prefix}lora_A.{self.adapter}.weight"] = A.new_zeros(1, self.in_features)
            state_dict[f"{prefix}lora_B.{self.adapter}.weight"] = B.new_zeros(self.out_features, 1)


def low_rank_layers(model: nn.Module) -> Mapping[str, LowRankLayer]:
    """Return the layers of a model that adaptive rank can resize, by their paths in the base model.

    Args:
        model: with our layers, or a model that PEFT has put a LoRA adapter into; then the active adapter's layers.

    Raises:
        RankwiseError: PEFT's adapter is of a kind whose rank can't be changed, or the model has layers of both.
    """
    ours, pefts = lora_layers(model), peft_layers(model)
    if ours and pefts:
        raise RankwiseError(
            f"This model has {len(ours)} LoRA layers by rankwise.adapt and {len(pefts)} by PEFT. Use one of the two."
        )
    return ours or pefts


def peft_layers(model: nn.Module) -> dict[str, PeftLayer]:
    """Return the layers of the active LoRA adapter that PEFT has put into a model, by their paths in the base model.

    Args:
        model: a `PeftModel`, or a model that `add_adapter` was called on. Other models have none.

    Raises:
        RankwiseError: the adapter isn't LoRA, is merged or disabled, or is of a kind whose rank can't be changed; several are
            active, or none.
    """
    modules = {path: module for path, module in model.named_modules() if _is(module, "BaseTunerLayer")}
    # a layer may belong to other adapters alone
    active = {
        path: module for path, module in modules.items() if not _is(module, "LoraLayer") or _names(module)
    }
    return {
        path.removeprefix(BASE): _layer(cast(Any, module), path.removeprefix(BASE), _configs(model))
        for path, module in (active or modules).items()
    }


def _configs(model: nn.Module) -> dict[str, Any]:
    found = getattr(model, "peft_config", None)
    if not isinstance(found, dict):
        raise RankwiseError(
            "This model has PEFT's layers and no `peft_config`. Give the model that PEFT returned."
        )
    return found


def _layer(module: Any, path: str, configs: dict[str, Any]) -> PeftLayer:
    """Return the one `PeftLayer` of a module, made at the first call."""
    adapter = _active(module, path)
    known = module.__dict__.get("_rankwise")
    if isinstance(known, PeftLayer) and known.adapter == adapter:
        return known
    layer = PeftLayer(module, adapter, path, configs[adapter])
    module.__dict__["_rankwise"] = layer
    return layer


def _active(module: Any, path: str) -> str:
    """Return the name of a layer's active adapter, after checking that its rank can be changed."""
    if not _is(module, "LoraLayer"):
        raise _refused(path, f"its adapter is {type(module).__name__} of {type(module).__module__}, not LoRA")
    active = _names(module)
    if len(active) != 1:
        raise _refused(
            path, f"it has {len(active)} active adapters; activate one of {', '.join(module.r) or 'none'}"
        )
    (adapter,) = active
    if variant := module.lora_variant.get(adapter):
        raise _refused(path, f"its adapter is a variant of LoRA ({type(variant).__name__})")
    matrices = [dict(getattr(module, name).items()).get(adapter) for name in ("lora_A", "lora_B")]
    if _is(module, "ParamWrapper") or not all(isinstance(matrix, nn.Linear) for matrix in matrices):
        raise _refused(path, f"it is LoRA on another kind of layer ({type(module).__name__})")
    if module.lora_bias.get(adapter):
        raise _refused(path, "its adapter has a bias (lora_bias=True)")
    if module.merged:
        raise _refused(path, "its adapter is merged; call unmerge_adapter() first")
    if module.disable_adapters:
        raise _refused(path, "its adapters are disabled; call enable_adapter_layers() first")
    return adapter


def _names(module: Any) -> list[str]:
    """Return the names of the active adapters that a layer of PEFT's LoRA belongs to."""
    return [name for name in module.active_adapters if name in module.r]


def _refused(path: str, why: str) -> RankwiseError:
    return RankwiseError(f"The rank of {path} can't be found: {why}.")


def _is(module: nn.Module, name: str) -> bool:
    """Return whether a module's class is, or inherits from, a class of PEFT of that name; PEFT needn't be installed."""
    return any(kind.__name__ == name and kind.__module__.startswith("peft.") for kind in type(module).__mro__)
