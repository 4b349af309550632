"""Adapters on disk are PEFT adapters: `adapter_config.json` beside `adapter_model.safetensors`, heads under `modules_to_save`.

What PEFT has no field for (the labels' names, a fingerprint of the base model) travels in the safetensors header's metadata, which
PEFT leaves alone. Format: PEFT 0.21 `LoraConfig` and `get_peft_model_state_dict`.
"""

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rankwise.errors import RankwiseError
from rankwise.files import make_folder
from rankwise.lora.inject import insert, train_beside, trained_beside
from rankwise.models.families import body_and_heads
from rankwise.lora.layer import LoRALinear, lora_layers
from rankwise.lora.quantized import is_quantized
from rankwise.models import hub
from rankwise.tasks.problems import of_config

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of `init_lora_weights` that take something out of W0 at the start."""
CHANGES_LAYER = (
    *(
        "use_dora",
        "use_qalora",
        "lora_bias",
        "use_bdlora",
        "alora_invocation_tokens",
        "arrow_config",
        "kasa_config",
    ),
    *(
        "monteclora_config",
        "velora_config",
        "trainable_token_indices",
        "target_parameters",
        "layer_replication",
    ),
)
"""Settings of PEFT's LoRA under which a layer computes something else than W0 + s·B·A."""


@dataclass(frozen=True)
class Adapter:
    """An adapter as read from a folder, before it meets its base model."""

    folder: Path
    base_model: str | None
    """Name or folder of the base model it was trained on."""
    lora: dict[str, tuple[Tensor, Tensor]]
    """Module path → (A [r, d_in], B [d_out, r])."""
    scaling: dict[str, float]
    dropout: float
    trained: dict[str, Tensor]
    """Parameter path → value, for modules saved whole (head, new pooler)."""
    modules_to_save: list[str]
    label_names: list[str] | None
    fingerprint: str | None
    problem: str | None = None
    """What the head's outputs stand for (see `problems`), where the file says it."""
    foreign: str | None = None
    """Why only PEFT can run it, as the end of a sentence; None for what W0 + s·B·A describes."""

    @property
    def num_labels(self) -> int | None:
        """Rows of the head's last matrix, so the number of classes the adapter was trained for."""
        matrices = {
            name.split(".")[-2]: value
            for name, value in self.trained.items()
            if name.endswith(".weight") and value.ndim == 2
        }
        last = next(
            (matrices[name] for name in ("score", "out_proj", "classifier") if name in matrices), None
        )
        return None if last is None else last.shape[0]


def save(model: nn.Module, folder: str | Path, *, base_model: str | None = None) -> None:
    """Writes the adapter of a model made by `adapt` as a PEFT adapter.

    Args:
        model: has LoRA layers; its config's `id2label` gives the labels' names.
        folder: made if need be; files there are replaced one by one, each atomically.
        base_model: the base's name for `load` (`minilm`); PEFT gets the name or folder the model was loaded by.

    Raises:
        RankwiseError: the model has no LoRA layers.
    """
    layers = lora_layers(model)
    if not layers:
        raise RankwiseError("This model has no LoRA layers to save. Call rankwise.adapt(model) first.")
    layers = {path: layer for path, layer in layers.items() if layer.rank} or _empty(layers)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = getattr(model, "config", None)
    # PEFT makes its own copy of a classifier's head and wants it in the file, trained or not.
    saved = list(dict.fromkeys([*body_and_heads(model)[1], *trained_beside(model)]))
    tensors: dict[str, Tensor] = {}
    for path, layer in layers.items():
        tensors[f"{PREFIX}{path}.lora_A.weight"] = layer.lora_A.detach()
        tensors[f"{PREFIX}{path}.lora_B.weight"] = layer.lora_B.detach()
    for path in saved:
        for name, value in model.get_submodule(path).state_dict().items():
            tensors[f"{PREFIX}{path}.{name}"] = value
    base_path = getattr(config, "_name_or_path", None) or None
    metadata = {**_metadata(model, base_model), "base_fingerprint": fingerprint(layers)}
    document = peft_config(layers, saved, base_path or base_model)
    document["target_modules"] = _shortest(model, list(layers))
    tensors = {name: value.cpu().contiguous().clone() for name, value in tensors.items()}
    _write_weights(folder, tensors, metadata)
    _write_config(folder, document)


def write(adapter: Adapter, document: dict[str, Any], folder: Path) -> None:
    """Writes an adapter that needn't meet a model: its tensors, and `document` as its config."""
    make_folder(folder)
    tensors = {f"{PREFIX}{name}": value for name, value in adapter.trained.items()}
    for path, (A, B) in adapter.lora.items():
        tensors[f"{PREFIX}{path}.lora_A.weight"], tensors[f"{PREFIX}{path}.lora_B.weight"] = A, B
    metadata = {"format": "pt", "base_model": adapter.base_model or ""}
    if adapter.problem is not None:
        metadata["problem"] = adapter.problem
    if adapter.label_names is not None:
        metadata["label_names"] = json.dumps(adapter.label_names, ensure_ascii=False)
    _write_weights(folder, {name: value.contiguous().clone() for name, value in tensors.items()}, metadata)
    _write_config(folder, document)


def add_metadata(folder: Path, model: nn.Module, base_model: str) -> None:
    """Puts the base's name and the labels' names into the header of what PEFT saved."""
    _write_weights(folder, safetensors.torch.load_file(folder / WEIGHTS), _metadata(model, base_model))


def _metadata(model: nn.Module, base_model: str | None) -> dict[str, str]:
    config = getattr(model, "config", None)
    labels = getattr(config, "id2label", None) or {}
    return {
        "problem": of_config(config).name,
        "format": "pt",
        "base_model": base_model or getattr(config, "_name_or_path", None) or "",
        "label_names": json.dumps([labels[i] for i in sorted(labels)], ensure_ascii=False),
    }


def _write_weights(folder: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    partial = folder / f"{WEIGHTS}.partial"
    partial.write_bytes(_sorted_header(safetensors.torch.save(tensors, metadata=metadata)))
    partial.replace(folder / WEIGHTS)


def _write_config(folder: Path, document: dict[str, Any]) -> None:
    partial = folder / f"{CONFIG}.partial"
    partial.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(folder / CONFIG)


def _empty(layers: dict[str, LoRALinear]) -> dict[str, LoRALinear]:
    """One layer of rank 1 that does nothing, where no layer has a rank: PEFT knows no adapter without layers."""
    path, layer = next(iter(layers.items()))
    empty = LoRALinear(layer, 1, scaling=layer.scaling, fan_in_fan_out=layer.fan_in_fan_out)
    empty.lora_A.data.zero_()
    return {path: empty}


def _sorted_header(content: bytes) -> bytes:
    """A safetensors file with its metadata in order: the library writes it in another order in each process, and equal adapters
    should be equal files."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + content[end:]


def peft_config(
    layers: dict[str, LoRALinear], modules_to_save: list[str], base_model: str | None
) -> dict[str, Any]:
    """The fields of PEFT's `LoraConfig` that say what these layers are.

    r and lora_alpha are those of most layers; the others stand in `rank_pattern` and `alpha_pattern`, so that alpha/r = s holds for each.
    """
    r = Counter(layer.rank for layer in layers.values()).most_common(1)[0][0]
    alpha = Counter(_alpha(layer) for layer in layers.values() if layer.rank == r).most_common(1)[0][0]
    dropouts = {getattr(layer.dropout, "p", 0.0) for layer in layers.values()}
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": base_model,
        "r": r,
        "lora_alpha": alpha,
        "rank_pattern": {path: layer.rank for path, layer in layers.items() if layer.rank != r},
        "alpha_pattern": {path: _alpha(layer) for path, layer in layers.items() if _alpha(layer) != alpha},
        "lora_dropout": max(dropouts),
        "use_rslora": False,
        "use_dora": False,
        "target_modules": list(layers),
        "modules_to_save": modules_to_save or None,
        "fan_in_fan_out": all(layer.fan_in_fan_out for layer in layers.values()),
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _shortest(model: nn.Module, paths: list[str]) -> list[str]:
    """`["query", "value"]` instead of every path, where those names mean exactly these layers and no others."""
    names = {path.rpartition(".")[2] for path in paths}
    matched = [
        path
        for path, module in model.named_modules()
        if path.rpartition(".")[2] in names and _is_matrix(module)
    ]
    return sorted(names) if sorted(matched) == sorted(paths) else paths


def _is_matrix(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2


def _alpha(layer: LoRALinear) -> float:
    return whole(layer.scaling * layer.rank)


def whole(alpha: float) -> float:
    """An alpha without the noise of rounding, so that layers agree on theirs: a whole number is one (PEFT's field is an integer)."""
    alpha = float(f"{alpha:.9g}")
    return round(alpha) if alpha.is_integer() else alpha


def read(folder: str | Path, *, any_kind: bool = False) -> Adapter:
    """Reads a PEFT LoRA adapter, made here or by PEFT.

    Args:
        folder: holds it.
        any_kind: of PEFT's other kinds too, read what they have in common (`foreign` then says what they are).

    Raises:
        RankwiseError: no adapter there, a damaged file, or a kind of adapter that W0 + s·B·A doesn't describe.
    """
    folder = Path(folder)
    config_file, weights_file = folder / CONFIG, folder / WEIGHTS
    for file in (config_file, weights_file):
        if not file.is_file():
            if not folder.exists():
                raise RankwiseError(f"There is no folder {folder}.")
            what = "a whole model in it" if (folder / hub.CONFIG).is_file() else f"no {file.name}"
            raise RankwiseError(
                f"{folder} holds no adapter: there is {what}. Name the folder of a run of lora or adaptive, or a PEFT adapter."
            )
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        with safe_open(weights_file, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (ValueError, UnicodeDecodeError, SafetensorError) as error:
        raise RankwiseError(f"The adapter in {folder} is damaged: {error}. Copy or train it again.") from None
    foreign = _foreign(config)
    if foreign and not any_kind:
        raise RankwiseError(f"{folder} {foreign}. Merge it with PEFT first.")
    return _assemble(folder, config, tensors, metadata, foreign)


def _foreign(config: dict[str, Any]) -> str | None:
    """What about a PEFT adapter isn't W0 + s·B·A, as the end of a sentence."""
    if config.get("peft_type") != "LORA":
        return f"holds a {config.get('peft_type')} adapter, which W0 + s·B·A cannot express"
    if str(config.get("init_lora_weights", "")).startswith(CHANGES_BASE):
        return f"was begun with {config['init_lora_weights']}, which changes the base's own weights"
    flag = next((flag for flag in CHANGES_LAYER if config.get(flag)), None)
    return f"uses {flag}, which W0 + s·B·A cannot express" if flag else None


def _assemble(
    folder: Path,
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    metadata: dict[str, str],
    foreign: str | None,
) -> Adapter:
    tensors = {name.removeprefix(PREFIX): value for name, value in tensors.items()}
    lora, scaling, trained = {}, {}, {}
    for name, value in tensors.items():
        if name.endswith(".lora_A.weight") and foreign is None:
            path = name.removesuffix(".lora_A.weight")
            lora[path] = (value, tensors[f"{path}.lora_B.weight"])
            rank = value.shape[0]
            alpha = _pattern(config.get("alpha_pattern") or {}, path, config["lora_alpha"])
            scaling[path] = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
        elif not name.endswith(".lora_B.weight"):
            trained[name] = value
    if not lora and foreign is None:
        raise RankwiseError(f"The adapter in {folder} holds no LoRA matrices.")
    return Adapter(
        folder=folder,
        base_model=metadata.get("base_model") or config.get("base_model_name_or_path"),
        lora=lora,
        scaling=scaling,
        dropout=config.get("lora_dropout") or 0.0,
        trained=trained,
        modules_to_save=list(config.get("modules_to_save") or []),
        label_names=json.loads(metadata["label_names"]) if metadata.get("label_names") else None,
        fingerprint=metadata.get("base_fingerprint"),
        problem=metadata.get("problem"),
        foreign=foreign,
    )


def _pattern(patterns: dict[str, float], path: str, default: float) -> float:
    """PEFT's rule (`get_pattern_key`): the first key that matches the whole path or its tail."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", path)), default)


def attach(model: nn.Module, adapter: Adapter) -> nn.Module:
    """Puts an adapter's LoRA layers and head into its base model, in place, ready to be used or trained further.

    Raises:
        RankwiseError: the model isn't the one the adapter was made for, or has another number of labels.
    """
    linear = {name: module for name, module in model.named_modules() if _is_matrix(module)}
    for path, (A, B) in adapter.lora.items():
        if path not in linear:
            raise RankwiseError(_other_base(adapter, f"it adapts {path!r}, which this model does not have"))
        base = cast(Tensor, linear[path].weight)
        if sorted(base.shape) != sorted((A.shape[1], B.shape[0])):
            raise RankwiseError(
                _other_base(
                    adapter, f"{path} is {list(base.shape)} here, {[B.shape[0], A.shape[1]]} in the adapter"
                )
            )
    _check_trained(model, adapter)
    insert(
        model,
        {path: A.shape[0] for path, (A, _) in adapter.lora.items()},
        adapter.scaling,
        dropout=adapter.dropout,
    )
    if adapter.fingerprint and adapter.fingerprint != fingerprint(lora_layers(model)):
        raise RankwiseError(_other_base(adapter, "the layers it adapts hold other weights"))
    whole = {name.rpartition(".")[0] for name in adapter.trained}
    train_beside(
        model,
        [p for p in _module_paths(model, adapter.modules_to_save) if any(w.startswith(p) for w in whole)],
    )
    layers, parameters = lora_layers(model), dict(model.named_parameters())
    with torch.no_grad():
        for path, (A, B) in adapter.lora.items():
            layers[path].lora_A.copy_(A)
            layers[path].lora_B.copy_(B)
        for name, value in adapter.trained.items():
            parameters[name].copy_(value)
    return model


def _check_trained(model: nn.Module, adapter: Adapter) -> None:
    parameters = dict(model.named_parameters())
    for name, value in adapter.trained.items():
        if name not in parameters:
            raise RankwiseError(_other_base(adapter, f"it holds {name!r}, which this model does not have"))
        here, there = list(parameters[name].shape), list(value.shape)
        if here != there:
            if here[1:] == there[1:]:
                raise RankwiseError(
                    f"The adapter in {adapter.folder} is for {there[0]} labels; this model has {here[0]}."
                )
            raise RankwiseError(_other_base(adapter, f"{name} is {here} here, {there} in the adapter"))


def _other_base(adapter: Adapter, why: str) -> str:
    made_for = f" It was made for {adapter.base_model}: name that with --model." if adapter.base_model else ""
    return f"The adapter in {adapter.folder} belongs to another base model: {why}.{made_for}"


def _module_paths(model: nn.Module, names: list[str]) -> list[str]:
    """Paths of the modules PEFT's `modules_to_save` names (a path, or the end of one)."""
    return [path for path, _ in model.named_modules() if path and any(path.endswith(name) for name in names)]


def fingerprint(layers: dict[str, LoRALinear]) -> str:
    """Identifies the frozen weights under the LoRA layers, whatever dtype they were loaded in; empty where they are quantized.

    SHA-256 over up to 4,096 evenly spaced entries of each adapted weight, rounded to bfloat16.
    """
    if any(is_quantized(layer) for layer in layers.values()):
        return ""
    digest = hashlib.sha256()
    for path, layer in layers.items():
        weight = layer.weight.detach().reshape(-1)
        sample = weight[:: max(1, weight.numel() // 4096)].to("cpu", torch.bfloat16)
        digest.update(path.encode())
        digest.update(sample.contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:32]


def merge(model: nn.Module) -> nn.Module:
    """Replaces every LoRA layer by an ordinary layer with W0 + s·B·A, in place: the model is a plain Transformers model again.

    Load the base in float32 before merging what is to be kept: half precision rounds small updates away.
    """
    for path, layer in lora_layers(model).items():
        parent, _, name = path.rpartition(".")
        layer.merge()
        setattr(model.get_submodule(parent), name, _plain(layer))
    for module in model.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if getattr(hook, "__name__", "") == "_cast_input":
                del module._forward_pre_hooks[key]
    return model


def _plain(layer: LoRALinear) -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    with torch.device("meta"):
        if layer.fan_in_fan_out:
            plain: nn.Module = Conv1D(layer.out_features, layer.in_features)
        else:
            plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    plain.register_parameter("weight", layer.weight)
    plain.register_parameter("bias", layer.bias)
    return plain.train(layer.training)
