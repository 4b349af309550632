"""PEFT's adapter format, read and written: `adapter_config.json` beside `adapter_model.safetensors`.

What PEFT has no field for (the labels' names, a fingerprint of the base model) is stored in the safetensors header's metadata, which
PEFT ignores. Source: PEFT 0.21, `LoraConfig` and `get_peft_model_state_dict`.
"""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rankwise.adapters.adapter import Adapter
from rankwise.adapters.attach import extract, label_names
from rankwise.errors import RankwiseError
from rankwise.files import make_folder
from rankwise.lora.wrappers import bare
from rankwise.models import hub
from rankwise.tasks import objectives

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""Begins the name of every tensor."""
LORA_A, LORA_B = ".lora_A.weight", ".lora_B.weight"
"""End the names of A and B."""
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of `init_lora_weights` under which PEFT changes W0 at the start."""
CHANGES_LAYER = (
    "use_dora",
    "use_qalora",
    "lora_bias",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
)
"""Settings of PEFT's LoRA under which a layer computes something else than W0 + s·B·A."""


# ── Writing ───────────────────────────────────────────────────────────────────────────────────


def save(model: nn.Module, folder: str | Path, *, base_model: str | None = None) -> None:
    """Write the adapter of a model made by `adapt` as a PEFT adapter.

    Args:
        model: has LoRA layers; its config's `id2label` gives the labels' names.
        folder: is created if needed; files in it are replaced one by one, each atomically.
        base_model: the base's name for `load` (`minilm`). PEFT gets the name or folder that the model was loaded from.

    Raises:
        RankwiseError: the model has no LoRA layers, or the folder can't be written.
    """
    with bare(model, parallel=True) as plain:
        write(extract(plain, base_model), folder)


def write(adapter: Adapter, folder: str | Path) -> None:
    """Write an adapter as a PEFT adapter.

    Raises:
        RankwiseError: the folder can't be written.
    """
    folder = Path(folder)
    make_folder(folder)
    tensors = {f"{PREFIX}{name}": value for name, value in adapter.trained.items()}
    for path, (A, B) in adapter.lora.items():
        tensors[f"{PREFIX}{path}{LORA_A}"], tensors[f"{PREFIX}{path}{LORA_B}"] = A, B
    metadata = _metadata(adapter.base_model, adapter.problem, adapter.label_names)
    if adapter.fingerprint is not None:
        metadata["base_fingerprint"] = adapter.fingerprint
    # safetensors refuses tensors that share memory
    _write_weights(
        folder, {name: value.cpu().contiguous().clone() for name, value in tensors.items()}, metadata
    )
    partial = folder / f"{CONFIG}.partial"
    partial.write_text(json.dumps(config_of(adapter), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(folder / CONFIG)


def config_of(adapter: Adapter) -> dict[str, Any]:
    """Describe an adapter by the fields of PEFT's `LoraConfig`.

    `r` and `lora_alpha` are those of most layers. The others stand in `rank_pattern` and `alpha_pattern`, so that alpha/r = s holds for
    every layer.
    """
    ranks = adapter.ranks
    alphas = {path: rounded_alpha(adapter.scaling[path] * rank) for path, rank in ranks.items()}
    r = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas[path] for path, rank in ranks.items() if rank == r).most_common(1)[0][0]
    return {
        **adapter.config,
        "peft_type": "LORA",
        "task_type": objectives.named(adapter.problem or "classification").task_type,
        "base_model_name_or_path": adapter.base_path or adapter.base_model,
        "r": r,
        "lora_alpha": alpha,
        "rank_pattern": {path: rank for path, rank in ranks.items() if rank != r},
        "alpha_pattern": {path: value for path, value in alphas.items() if value != alpha},
        "lora_dropout": adapter.dropout,
        "use_rslora": False,
        "use_dora": False,
        "target_modules": adapter.target_modules or list(ranks),
        "modules_to_save": adapter.modules_to_save or None,
        "fan_in_fan_out": adapter.fan_in_fan_out,
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }


def rounded_alpha(alpha: float) -> float:
    """Round an alpha to nine digits, so that layers agree on theirs; a whole number becomes an integer, as PEFT's field is one."""
    alpha = float(f"{alpha:.9g}")
    return round(alpha) if alpha.is_integer() else alpha


def add_metadata(folder: Path, model: nn.Module, base_model: str) -> None:
    """Add the base's name and the labels' names to the header of a file that PEFT saved."""
    config = getattr(model, "config", None)
    name = base_model or getattr(config, "_name_or_path", None)
    metadata = _metadata(name, objectives.of_config(config).name, label_names(model))
    _write_weights(folder, safetensors.torch.load_file(folder / WEIGHTS), metadata)


def _metadata(base_model: str | None, problem: str | None, labels: list[str] | None) -> dict[str, str]:
    metadata = {"format": "pt", "base_model": base_model or ""}
    if problem is not None:
        metadata["problem"] = problem
    if labels is not None:
        metadata["label_names"] = json.dumps(labels, ensure_ascii=False)
    return metadata


def _write_weights(folder: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    partial = folder / f"{WEIGHTS}.partial"
    partial.write_bytes(_sorted_header(safetensors.torch.save(tensors, metadata=metadata)))
    partial.replace(folder / WEIGHTS)


def _sorted_header(content: bytes) -> bytes:
    """Sort the metadata of a safetensors file, so that equal adapters are equal files.

    The library writes metadata in another order in each process.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + content[end:]


# ── Reading ───────────────────────────────────────────────────────────────────────────────────


def read(folder: str | Path, *, any_kind: bool = False) -> Adapter:
    """Read a PEFT LoRA adapter, made here or by PEFT.

    Args:
        folder: holds it.
        any_kind: accept PEFT's other kinds too, and read what they have in common; `Adapter.unsupported` then says what they are.

    Raises:
        RankwiseError: no adapter there, a damaged file, or a kind of adapter that W0 + s·B·A doesn't describe.
    """
    folder = Path(folder)
    config_file, weights_file = folder / CONFIG, folder / WEIGHTS
    for file in (config_file, weights_file):
        if not file.is_file():
            raise _no_adapter(folder, file)
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        with safe_open(weights_file, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (ValueError, UnicodeDecodeError, SafetensorError) as error:
        raise RankwiseError(f"The adapter in {folder} is damaged: {error}. Copy or train it again.") from None
    unsupported = _unsupported(config)
    if unsupported and not any_kind:
        raise RankwiseError(f"{folder} {unsupported}. Merge it with PEFT first.")
    return _assemble(folder, config, tensors, metadata, unsupported)


def _no_adapter(folder: Path, missing: Path) -> RankwiseError:
    if not folder.exists():
        return RankwiseError(f"There is no folder {folder}.")
    found = "a whole model in it" if (folder / hub.CONFIG).is_file() else f"no {missing.name}"
    return RankwiseError(
        f"{folder} holds no adapter: there is {found}. Name the folder of a run of lora or adaptive, or a PEFT adapter."
    )


def _unsupported(config: dict[str, Any]) -> str | None:
    """Say what about a PEFT adapter isn't W0 + s·B·A, as the end of a sentence."""
    if config.get("peft_type") != "LORA":
        return f"holds a {config.get('peft_type')} adapter, which W0 + s·B·A cannot express"
    if str(config.get("init_lora_weights", "")).startswith(CHANGES_BASE):
        return f"was initialized with {config['init_lora_weights']}, which changes the base's own weights"
    setting = next((name for name in CHANGES_LAYER if config.get(name)), None)
    return f"uses {setting}, which W0 + s·B·A cannot express" if setting else None


def _assemble(
    folder: Path,
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    metadata: dict[str, str],
    unsupported: str | None,
) -> Adapter:
    tensors = {name.removeprefix(PREFIX): value for name, value in tensors.items()}
    lora, scaling, trained = {}, {}, {}
    for name, value in tensors.items():
        if name.endswith(LORA_A) and unsupported is None:
            path = name.removesuffix(LORA_A)
            lora[path] = (value, tensors[f"{path}{LORA_B}"])
            rank = value.shape[0]
            alpha = _pattern(config.get("alpha_pattern") or {}, path, config["lora_alpha"])
            scaling[path] = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
        elif not name.endswith(LORA_B):
            trained[name] = value
    if not lora and unsupported is None:
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
        unsupported=unsupported,
        fan_in_fan_out=bool(config.get("fan_in_fan_out")),
        config=config,
    )


def _pattern(patterns: dict[str, float], path: str, default: float) -> float:
    """Look a layer up by PEFT's rule (`get_pattern_key`): the first key that matches the whole path or its end."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", path)), default)
