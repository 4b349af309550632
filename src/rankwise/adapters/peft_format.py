"""PEFT's adapter format, read and written: `adapter_config.json` beside `adapter_model.safetensors`.

What PEFT has no field for (the labels' names, a fingerprint of the base model) is stored in the safetensors header's metadata, which
PEFT ignores. Source: PEFT 0.21, `LoraConfig` and `get_peft_model_state_dict`.
"""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rankwise.adapters import checks, peft_config
from rankwise.adapters.adapter import Adapter, Factors
from rankwise.adapters.attach import extract, label_names
from rankwise.errors import RankwiseError
from rankwise.files import make_folder
from rankwise.lora import names
from rankwise.lora.wrappers import bare
from rankwise.models import hub
from rankwise.tasks import objectives

CONFIG, WEIGHTS = peft_config.FILE, "adapter_model.safetensors"
CURVE = "rank_curve.json"
"""What smaller sizes of an adapter cost (`adapters.curve_file`); removed where another adapter is written."""
PICKLED = "adapter_model.bin"
"""What PEFT wrote instead of `WEIGHTS` in its early versions, and still reads."""
PREFIX = "base_model.model."
"""Begins the name of every tensor."""
LORA_A, LORA_B = ".lora_A.weight", ".lora_B.weight"
"""End the names of A and B."""
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
"""Files that Transformers' tokenizers write."""


# ── Writing ───────────────────────────────────────────────────────────────────────────────────


def save(
    model: nn.Module,
    folder: str | Path,
    *,
    base_model: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Write the adapter of a model made by `adapt` as a PEFT adapter.

    Args:
        model: has LoRA layers; its config's `id2label` gives the labels' names.
        folder: is created if needed; files in it are replaced one by one, each atomically.
        base_model: the base's name for `load` (`minilm`). PEFT gets the name or folder that the model was loaded from.
        tokenizer: is saved beside the adapter, for `AutoTokenizer.from_pretrained(folder)`.

    Raises:
        RankwiseError: the model has no LoRA layers, or the folder can't be written.
    """
    with bare(model, parallel=True) as plain:
        write(extract(plain, base_model), folder)
    if tokenizer is not None:
        save_tokenizer(tokenizer, Path(folder))


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer beside an adapter, each file atomically."""
    with TemporaryDirectory(dir=folder, prefix=".tokenizer-") as workspace:
        tokenizer.save_pretrained(workspace)
        for file in Path(workspace).iterdir():
            file.replace(folder / file.name)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer that stands beside an adapter, if there is one, to another folder."""
    for name in TOKENIZER:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def write(adapter: Adapter, folder: str | Path) -> None:
    """Write an adapter as a PEFT adapter.

    The config is written last, so that a folder that was written halfway holds no adapter instead of another one.

    Raises:
        RankwiseError: PEFT's format can't express the adapter, or the folder can't be written.
    """
    folder, config = Path(folder), config_of(adapter)
    make_folder(folder)
    for name in (CONFIG, CURVE):
        (folder / name).unlink(missing_ok=True)
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
    partial.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(folder / CONFIG)


def config_of(adapter: Adapter) -> dict[str, Any]:
    """Describe an adapter by the fields of PEFT's `LoraConfig`.

    `r` and `lora_alpha` are those of most layers. The others stand in `rank_pattern` and `alpha_pattern`, so that alpha/r = s holds for
    every layer.

    Raises:
        RankwiseError: a layer lies in a module that is saved whole, or is called like one; PEFT would then leave its matrices out.
    """
    _check_apart(adapter)
    ranks = adapter.ranks
    alphas = {path: rounded_alpha(adapter.scaling[path] * rank) for path, rank in ranks.items()}
    r = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas[path] for path, rank in ranks.items() if rank == r).most_common(1)[0][0]
    return {
        **adapter.config,
        "peft_type": "LORA",
        "task_type": _task_type(adapter),
        "base_model_name_or_path": adapter.base_path or adapter.base_model,
        "r": r,
        "lora_alpha": alpha,
        "rank_pattern": {names.anchored(path): rank for path, rank in ranks.items() if rank != r},
        "alpha_pattern": {names.anchored(path): value for path, value in alphas.items() if value != alpha},
        "lora_dropout": adapter.dropout,
        "use_rslora": False,
        "use_dora": False,
        "target_modules": adapter.target_modules or list(ranks),
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "modules_to_save": adapter.modules_to_save or None,
        "fan_in_fan_out": adapter.fan_in_fan_out,
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _check_apart(adapter: Adapter) -> None:
    """Check that no LoRA layer lies in a module that is saved whole, or is called like one, and that none of these lies in another.

    Raises:
        RankwiseError: see `config_of`.
    """
    for path in adapter.lora:
        whole = next((name for name in adapter.modules_to_save if _ends_part(path, [name])), None)
        if whole is not None:
            raise RankwiseError(
                f"PEFT's format can't hold LoRA matrices of {path} beside a module {whole!r} that is saved whole: PEFT takes "
                f"whatever ends in {whole!r} for that module. Rename one of them."
            )
    ends = (*adapter.modules_to_save, *peft_config.IMPLIED)
    for name in adapter.trained:
        around = [part for part in names.parts(name.rpartition(".")[0]) if part.endswith(ends)]
        if len(around) > 1:
            raise RankwiseError(
                f"PEFT's format can't hold {around[-1]}, which is saved whole, in {around[0]}: PEFT would save both whole and can't load "
                "that. Rename one of them."
            )


def _task_type(adapter: Adapter) -> str | None:
    """Return the adapter's `task_type`. With None PEFT makes no copy of a head, whose weights it would look for in the file."""
    said = adapter.config.get("task_type", "SEQ_CLS")
    if adapter.problem is None and said != "SEQ_CLS":
        return said
    task_type = objectives.named(adapter.problem or "classification").task_type
    if task_type == "CAUSAL_LM":
        return task_type
    has_head = any(_ends_part(name.rpartition(".")[0], peft_config.IMPLIED) for name in adapter.trained)
    if not has_head or any(_ends_part(path, peft_config.IMPLIED) for path in adapter.lora):
        return None
    return task_type


def _ends_part(path: str, ends: Sequence[str]) -> bool:
    return any(part.endswith(tuple(ends)) for part in names.parts(path))


def rounded_alpha(alpha: float) -> float:
    """Round an alpha to nine digits, so that layers agree on theirs; a whole number becomes an integer, as PEFT's field is one."""
    alpha = float(f"{alpha:.9g}")
    return round(alpha) if alpha.is_integer() else alpha


def add_metadata(folder: Path, model: nn.Module, base_model: str) -> None:
    """Add the base's name and the labels' names to the header of a file that PEFT saved."""
    name = base_model or getattr(getattr(model, "config", None), "_name_or_path", None)
    objective = objectives.of_model(model)
    names = label_names(model) if objective.has_column else None
    metadata = _metadata(name, objective.name, names)
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
        any_kind: also accept an adapter that W0 + s·B·A doesn't describe. `Adapter.unsupported` then says why, and `lora` is empty.

    Raises:
        RankwiseError: no adapter there, a damaged file, or an adapter with a part that W0 + s·B·A doesn't describe.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise _no_adapter(folder, CONFIG)
    config = peft_config.read(folder / CONFIG)
    file = next((folder / name for name in (WEIGHTS, PICKLED) if (folder / name).is_file()), None)
    if file is None:
        raise _no_adapter(folder, WEIGHTS)
    tensors, metadata = _unpickled(file) if file.name == PICKLED else _tensors(file)
    adapter = _assemble(folder, file, config, tensors, metadata)
    if adapter.unsupported and not any_kind:
        raise RankwiseError(f"{folder} {adapter.unsupported}. Merge it with PEFT first.")
    return adapter


def _no_adapter(folder: Path, missing: str) -> RankwiseError:
    if not folder.exists():
        return RankwiseError(f"There is no folder {folder}.")
    below = sorted(str(file.parent) for file in folder.glob(f"*/{CONFIG}"))
    if below and not (folder / CONFIG).is_file():
        return RankwiseError(
            f"{folder} holds no adapter itself. Name one of those in it: {', '.join(below)}."
        )
    found = "a whole model in it" if (folder / hub.CONFIG).is_file() else f"no {missing}"
    return RankwiseError(
        f"{folder} holds no adapter: there is {found}. Name the folder of a run of lora or adaptive, or a PEFT adapter."
    )


def _tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(file, "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError, OSError) as error:
        raise _damaged(file, error) from None


def _unpickled(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # arbitrary bytes can make the unpickler raise anything
        raise _damaged(file, type(error).__name__) from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise _damaged(file, "it holds other things than tensors")
    return {str(name): value for name, value in state.items()}, {}


def _damaged(file: Path, why: object) -> RankwiseError:
    reason = next(iter(str(why).strip().splitlines()), type(why).__name__)
    return RankwiseError(
        f"The adapter in {file.parent} is damaged: {file.name}: {reason:.200}. {checks.REMEDY}"
    )


def _assemble(
    folder: Path, file: Path, config: peft_config.Config, tensors: dict[str, Tensor], metadata: dict[str, str]
) -> Adapter:
    lora, trained, unsupported = {}, {}, config.unsupported()
    if unsupported is None and isinstance(config, peft_config.LoraConfig):
        lora, trained, unsupported = _parts(file, config, tensors)
    if unsupported is not None:
        lora, trained = {}, {name.removeprefix(PREFIX): value for name, value in tensors.items()}
    checks.check_factors(file, lora)
    checks.check_values(file, trained)
    if not lora and unsupported is None:
        raise RankwiseError(f"The adapter in {folder} holds no LoRA matrices.")
    adapter = Adapter(
        folder=folder,
        base_model=metadata.get("base_model") or config.base_model_name_or_path,
        base_path=config.base_model_name_or_path,
        lora=lora,
        scaling={},
        dropout=0.0,
        trained=trained,
        modules_to_save=config.modules_to_save or [],
        label_names=_label_names(file, metadata),
        fingerprint=metadata.get("base_fingerprint"),
        problem=_problem(metadata),
        unsupported=unsupported,
        config=config.fields,
    )
    if not isinstance(config, peft_config.LoraConfig):
        return adapter
    for path, (A, _) in lora.items():
        if config.rank(path) != A.shape[0]:
            raise RankwiseError(
                f"{file} is damaged: A of {path:.200} has rank {A.shape[0]}, but {CONFIG} says {config.rank(path)}. {checks.REMEDY}"
            )
    return replace(
        adapter,
        scaling={path: config.scaling(path) for path in lora},
        dropout=config.lora_dropout,
        fan_in_fan_out=config.fan_in_fan_out,
    )


def _parts(
    file: Path, config: peft_config.LoraConfig, tensors: dict[str, Tensor]
) -> tuple[dict[str, Factors], dict[str, Tensor], str | None]:
    """Sort an adapter's tensors.

    Returns:
        A and B of each layer; what is saved whole; and what else there is, as the end of a sentence.

    Raises:
        RankwiseError: A without B, B without A, a tensor that PEFT would leave out, or nothing of the modules that the config says are
            saved.
    """
    lora: dict[str, Factors] = {}
    trained: dict[str, Tensor] = {}
    for name, value in tensors.items():
        path = name.removeprefix(PREFIX)
        layer = path.removesuffix(LORA_A).removesuffix(LORA_B)
        if path == name:
            raise RankwiseError(
                f"{file} holds {name:.200}, which is no name of PEFT's: they begin with {PREFIX}"
            )
        if layer == path:
            module = path.rpartition(".")[0]
            if not module or not config.saves(module):
                return {}, {}, f"holds {path:.200}, which W0 + s·B·A cannot express"
            trained[path] = value
            continue
        A, B = (tensors.get(f"{PREFIX}{layer}{end}") for end in (LORA_A, LORA_B))
        if A is None or B is None:
            lacking = "A" if A is None else "B"
            raise RankwiseError(f"{file} is damaged: {lacking} of {layer:.200} is missing. {checks.REMEDY}")
        if not config.adapts(layer):
            raise RankwiseError(
                f"{file} holds matrices of {layer:.200}, a layer that {CONFIG} beside it doesn't name; PEFT would leave them out. "
                f"{checks.REMEDY}"
            )
        if A.ndim > 2 or B.ndim > 2:
            return {}, {}, f"adapts {layer:.200}, a convolution, which W0 + s·B·A cannot express"
        lora[layer] = A, B
    if config.modules_to_save and not trained:
        raise RankwiseError(
            f"{file} is damaged: {CONFIG} says that {' and '.join(config.modules_to_save)} are saved, but it holds nothing of them. "
            f"{checks.REMEDY}"
        )
    return lora, trained, None


def _label_names(file: Path, metadata: dict[str, str]) -> list[str] | None:
    """Return the labels' names.

    Raises:
        RankwiseError: they aren't a list of different texts.
    """
    if not metadata.get("label_names"):
        return None
    try:
        labels = TypeAdapter(list[str]).validate_json(metadata["label_names"], strict=True)
    except ValidationError as error:
        raise _damaged(file, f"label names: {peft_config.first_problem(error)}") from None
    if len(set(labels)) != len(labels):
        raise _damaged(file, "two labels have one name")
    return labels


def _problem(metadata: dict[str, str]) -> str | None:
    return objectives.named(metadata["problem"]).name if metadata.get("problem") else None
