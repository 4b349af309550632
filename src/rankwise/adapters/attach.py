"""Put an adapter into its base model, take it from there, and merge it."""

import re
from collections import Counter
from collections.abc import Collection, Iterable
from typing import cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rankwise.adapters import fingerprint as prints
from rankwise.adapters.adapter import Adapter, Factors
from rankwise.adapters.checks import REMEDY
from rankwise.adapters.peft_config import IMPLIED
from rankwise.errors import RankwiseError
from rankwise.lora import names
from rankwise.lora.inject import insert, train_beside, trained_beside, whole_heads
from rankwise.lora.layer import LoRALinear, lora_layers
from rankwise.lora.quantized import QuantizedWeight
from rankwise.lora.wrappers import sees_through
from rankwise.models.families import body_and_heads, language_head, task_type
from rankwise.tasks import objectives

OLD_FINGERPRINT = re.compile(r"[0-9a-f]{32}")
"""Fingerprints of earlier versions: a hash, which can't be compared across number types, so it isn't checked."""


@sees_through
def attach(model: nn.Module, adapter: Adapter) -> nn.Module:
    """Put an adapter's LoRA layers and head into its base model, in place, ready to be used or trained further.

    Raises:
        RankwiseError: the model isn't the one the adapter was made for, or has another number of labels.
    """
    matrices = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)
    }
    for path, (A, B) in adapter.lora.items():
        if path not in matrices:
            raise _other_base(adapter, model, f"it adapts {path!r}, which this model does not have")
        here = list(cast(Tensor, matrices[path].weight).shape)
        there = [B.shape[0], A.shape[1]][:: -1 if isinstance(matrices[path], Conv1D) else 1]
        if here != there:
            raise _other_base(adapter, model, f"{path} is {here} here, {there} in the adapter")
    _check_trained(model, adapter)
    insert(model, adapter.ranks, adapter.scaling, dropout=adapter.dropout)
    _check_weights(model, adapter)
    train_beside(model, _saved_whole(model, adapter))
    layers, parameters = lora_layers(model), _weights(model)
    with torch.no_grad():
        for path, (A, B) in adapter.lora.items():
            layers[path].lora_A.copy_(A)
            layers[path].lora_B.copy_(B)
        for name, value in adapter.trained.items():
            parameters[name].copy_(value)
    return model


def extract(model: nn.Module, base_model: str | None = None) -> Adapter:
    """Take the adapter of a model made by `adapt`; the tensors are the model's own.

    Layers of rank 0 are left out. Where every layer has rank 0, one stays with rank 1 and zeros, because PEFT knows no adapter
    without layers.

    Args:
        model: has LoRA layers; its config's `id2label` gives the labels' names.
        base_model: the base's name for `load` (`minilm`). Default: what the model was loaded from.

    Raises:
        RankwiseError: the model has no LoRA layers.
    """
    layers = lora_layers(model)
    if not layers:
        raise RankwiseError("This model has no LoRA layers to save. Call rankwise.adapt(model) first.")
    adapted = {path: layer for path, layer in layers.items() if layer.rank}
    lora = {path: (layer.lora_A.detach(), layer.lora_B.detach()) for path, layer in adapted.items()}
    dropout = max((getattr(layer.dropout, "p", 0.0) for layer in adapted.values()), default=0.0)
    if not adapted:
        path, layer = next(iter(layers.items()))
        adapted, lora = {path: layer}, {path: _zeros(layer)}
    _check_biases(model, layers)
    # PEFT makes its own copy of a classifier's head and expects it in the file, trained or not.
    saved = _with_the_same_ends(model, [*whole_heads(model), *trained_beside(model)])
    trained = {
        f"{path}.{name}": value
        for path in saved
        for name, value in model.get_submodule(path).state_dict().items()
    }
    config = getattr(model, "config", None)
    base_path = getattr(config, "_name_or_path", None) or None
    classifies = config is not None and task_type(model) in (None, "SEQ_CLS")
    return Adapter(
        folder=None,
        base_model=base_model or base_path,
        base_path=base_path or base_model,
        lora=lora,
        scaling={path: layer.scaling for path, layer in adapted.items()},
        dropout=dropout,
        trained=trained,
        modules_to_save=saved,
        label_names=None if language_head(model) else label_names(model),
        fingerprint=fingerprint(model, adapted, trained),
        problem=None if config is None else objectives.of_model(model).name,
        target_modules=_names(model, list(adapted)),
        fan_in_fan_out=all(layer.fan_in_fan_out for layer in adapted.values()),
        config={} if classifies else {"task_type": task_type(model)},  # PEFT's classifiers have a config
    )


def label_names(model: nn.Module) -> list[str]:
    """Return the names of a model's classes, in the order of their ids."""
    labels = getattr(getattr(model, "config", None), "id2label", None) or {}
    return [labels[i] for i in sorted(labels)]


def fingerprint(model: nn.Module, paths: Iterable[str], trained: Collection[str]) -> str:
    """Return a fingerprint of a model's frozen weights, without those that are quantized (see `adapters.fingerprint`).

    Args:
        model: with or without LoRA layers.
        paths: of the layers that an adapter adapts.
        trained: names of the weights that it brings along. The head counts among them in any case.
    """
    layers = {path: model.get_submodule(path) for path in paths}
    heads = tuple(f"{path}." for path in body_and_heads(model)[1])
    linear: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    for name, weight in model.named_parameters():
        path, _, own = name.rpartition(".")
        if own in ("lora_A", "lora_B") or path in layers or name in trained or name.startswith(heads or "\0"):
            continue
        if weight.is_floating_point():
            module = model.get_submodule(path)
            is_linear = weight.ndim == 2 and not isinstance(module, nn.Embedding)
            (linear if is_linear else others)[name] = weight
    if any(isinstance(p, QuantizedWeight) for p in model.parameters()):  # as many as can be are
        return prints.take({}, {}, others)
    return prints.take({path: cast(Tensor, layer.weight) for path, layer in layers.items()}, linear, others)


@sees_through
def merge(model: nn.Module) -> nn.Module:
    """Replace every LoRA layer by an ordinary layer with W0 + s·B·A, in place: the model is a plain Transformers model again.

    Load the base in float32 first if the merged model is to be kept: half precision rounds small updates away.

    Raises:
        RankwiseError: a layer's weight is quantized.
    """
    layers = lora_layers(model)
    holders = Counter(
        id(p) for module in model.modules() for p in module._parameters.values() if p is not None
    )
    for path, layer in layers.items():
        parent, _, name = path.rpartition(".")
        if holders[id(layer.weight)] > 1:  # tied: the other layer keeps W0
            layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
        layer.merge()
        setattr(model.get_submodule(parent), name, _plain(layer))
    for module in model.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if getattr(hook, "__name__", "") == "_cast_input":
                del module._forward_pre_hooks[key]
    return model


def _zeros(layer: LoRALinear) -> Factors:
    """Return A and B of an update of rank 1 that does nothing."""
    return layer.lora_A.new_zeros(1, layer.in_features), layer.lora_B.new_zeros(layer.out_features, 1)


def _check_biases(model: nn.Module, layers: dict[str, LoRALinear]) -> None:
    """Refuse to save trained biases of LoRA layers, which would be left out."""
    for path, layer in layers.items():
        if layer.bias is not None and layer.bias.requires_grad:
            raise RankwiseError(
                f"The bias of {path} was trained, which W0 + s·B·A cannot express. Freeze it: requires_grad_(False)."
            )


def _with_the_same_ends(model: nn.Module, saved: list[str]) -> list[str]:
    """Return modules that are saved whole and those whose paths end in the same letters: PEFT takes one for the other."""
    adapted, ends = lora_layers(model), (*saved, *IMPLIED)
    found = [
        path
        for path, _ in model.named_modules()
        if path.endswith(ends) and not any(f"{layer}.".startswith(f"{path}.") for layer in adapted)
    ]
    every = list(dict.fromkeys([*saved, *found])) if saved else []
    return [path for path in every if not any(path.startswith(f"{other}.") for other in every)]


def _names(model: nn.Module, paths: list[str]) -> list[str] | str:
    """Return `["query", "value"]` where those names mean exactly these layers, else their paths; a pattern where a path means more."""
    known = [path for path, _ in model.named_modules()]
    short = sorted({path.rpartition(".")[2] for path in paths})
    for candidates in (short, paths):
        if {path for path in known if names.ends_in(path, candidates)} == set(paths):
            return candidates
    return f"({'|'.join(map(re.escape, paths))})"


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers under every name that they have."""
    parameters = model.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(model.named_buffers(remove_duplicate=False))}


def _check_weights(model: nn.Module, adapter: Adapter) -> None:
    """Check that a model's frozen weights are those that the adapter was trained on, up to rounding."""
    if not adapter.fingerprint or OLD_FINGERPRINT.fullmatch(adapter.fingerprint):
        return
    here = fingerprint(model, adapter.lora, adapter.trained.keys())
    try:
        differs = prints.difference(adapter.fingerprint, here) if here else None
    except ValueError as error:
        raise RankwiseError(
            f"The adapter in {adapter.folder} is damaged: its base_fingerprint is {error}. {REMEDY}"
        ) from None
    if differs is not None:
        raise _other_base(adapter, model, f"it was trained on other weights, {differs}")


def _check_trained(model: nn.Module, adapter: Adapter) -> None:
    parameters = _weights(model)
    for name, value in adapter.trained.items():
        if name not in parameters:
            raise _other_base(adapter, model, f"it holds {name!r}, which this model does not have")
        here, there = list(parameters[name].shape), list(value.shape)
        if here != there:
            if here[1:] == there[1:]:
                raise RankwiseError(
                    f"The adapter in {adapter.folder} is for {there[0]} labels; this model has {here[0]}."
                )
            raise _other_base(adapter, model, f"{name} is {here} here, {there} in the adapter")


def _other_base(adapter: Adapter, model: nn.Module, why: str) -> RankwiseError:
    used = str(getattr(getattr(model, "config", None), "_name_or_path", ""))
    remedy = ""
    if adapter.base_model is not None and used in (adapter.base_model, adapter.base_path):
        remedy = f" {used} has changed since then, or another model has taken its place."
    elif adapter.base_model:
        remedy = f" It was made for {adapter.base_model}: name that with `base=`."
    return RankwiseError(f"The adapter in {adapter.folder} belongs to another base model: {why}.{remedy}")


def _saved_whole(model: nn.Module, adapter: Adapter) -> list[str]:
    """Return the paths of the modules that PEFT's `modules_to_save` names (a path, or the end of one).

    Raises:
        RankwiseError: the adapter lacks a part of one.
    """
    ends = tuple(adapter.modules_to_save)
    paths = [path for path, _ in model.named_modules() if ends and path.endswith(ends)]
    parts = [f"{path}.{name}" for path in paths for name in model.get_submodule(path).state_dict()]
    if missing := next((name for name in parts if name not in adapter.trained), None):
        raise RankwiseError(
            f"The adapter in {adapter.folder} is damaged: it saves {missing.rpartition('.')[0]}, but {missing} is missing. {REMEDY}"
        )
    return [path for path in paths if not any(path.startswith(f"{other}.") for other in paths)]


def _plain(layer: LoRALinear) -> nn.Module:
    """Return an ordinary layer with a LoRA layer's base weight and bias."""
    with torch.device("meta"):
        if layer.fan_in_fan_out:
            plain: nn.Module = Conv1D(layer.out_features, layer.in_features)
        else:
            plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    plain.register_parameter("weight", layer.weight)
    plain.register_parameter("bias", layer.bias)
    return plain.train(layer.training)
