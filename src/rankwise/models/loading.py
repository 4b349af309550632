"""Pretrained classifiers and language models: by name, from a folder, or the embedded one; loaded in the dtype that they are used in.

Modules that the checkpoint doesn't have (a new head) are drawn in float32 from the run's seed. So every method starts from the same head,
whatever the dtype of its base.
"""

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from rankwise.errors import RankwiseError
from rankwise.models import hub
from rankwise.models.account import Account, account, check_whole, listed
from rankwise.models.families import CLASSES, body_and_heads, text_limit, token_limit
from rankwise.seeding import stream_seed

CLASSIFIER = "single_label_classification"
"""`problem_type` of a model that predicts one class a row."""
AUTO: dict[str, tuple[Any, str]] = {
    "SEQ_CLS": (AutoModelForSequenceClassification, "sequence classifier"),
    "TOKEN_CLS": (AutoModelForTokenClassification, "token classifier"),
    "CAUSAL_LM": (AutoModelForCausalLM, "causal language model"),
}
"""What loads a model for a task, by PEFT's name of it, and what such a model is called."""
FLOATING = ("F64", "F32", "F16", "BF16")
"""Number types of weights, as safetensors calls them."""
LAYERS = 10_000
"""Configs with more layers than this are refused; no model has as many."""
MARGIN = 100_000_000
"""Parameters that a model may have beyond its checkpoint, for a new head."""


@dataclass(frozen=True)
class Source:
    """A model's config and tokenizer, before its weights are read."""

    name: str
    path: str
    config: Any
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    """Tokens a text may have."""
    task_type: str = "SEQ_CLS"
    """What the model is for, by PEFT's name."""


def locate(name: str, max_length: int | None = None, task_type: str = "SEQ_CLS") -> Source:
    """Find a model's config and tokenizer.

    Args:
        name: `minilm`, `smollm2`, a folder, or a Hugging Face name; what is in the local cache is taken without asking the hub.
        max_length: tokens to truncate to. Default: see `families.text_limit`.
        task_type: what the model is for, a key of `AUTO`.

    Raises:
        RankwiseError: there is no such model, it can't be reached, or it can't take `max_length` tokens.
    """
    path = hub.find(name)
    if (Path(path) / hub.ADAPTER_CONFIG).is_file():
        raise RankwiseError(
            f"{name} holds both a model and an adapter, which Transformers would load together. Give each its own folder."
        )
    config = _from_pretrained(AutoConfig, path)
    if name in hub.SCRATCH:
        config = BertConfig(vocab_size=config.vocab_size, **hub.SCRATCH[name])
    if getattr(config, "quantization_config", None):
        raise RankwiseError(
            f"The weights of {name} are stored in few bits. Take the model they were made from; `base_bits=` keeps it in few bits."
        )
    tokenizer = _from_pretrained(AutoTokenizer, path)
    _check_tokenizer(tokenizer, name)
    model = skeleton(config, name, task_type)
    _check_size(model, path)
    limit = token_limit(model, tokenizer)
    if max_length is not None and limit is not None and max_length > limit:
        raise RankwiseError(f"{name} takes {limit} tokens at most; `max_length={max_length}` is more.")
    if tokenizer.pad_token is None:  # GPT-2, Llama: attention never sees it, so any token will do
        tokenizer.pad_token = tokenizer.eos_token
    return Source(name, path, config, tokenizer, max_length or text_limit(model, tokenizer), task_type)


def task_type_of(path: str) -> str:
    """Return what a folder's model was saved for, a key of `AUTO`: by the class that its config names, `SEQ_CLS` for any other.

    Raises:
        RankwiseError: its config can't be read.
    """
    names = getattr(_from_pretrained(AutoConfig, path), "architectures", None) or []
    return next((kind for kind in AUTO if CLASSES[kind].intersection(map(str, names))), "SEQ_CLS")


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Check that a tokenizer knows words and works. Where its files are missing, Transformers makes one that knows none."""
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise RankwiseError(
            f"There is no tokenizer in {name}. Save the one that the model was trained with there, by its `save_pretrained`."
        )
    try:
        if not tokenizer.model_max_length > 0:
            raise ValueError(f"model_max_length is {tokenizer.model_max_length}")
        with _without_panic(), quiet():
            tokenizer(["a word"], ["and another"])
    except Exception as error:
        raise RankwiseError(f"The tokenizer in {name} can't be used: {_first_line(error)}") from error


def skeleton(config: Any, name: str, task_type: str = "SEQ_CLS") -> PreTrainedModel:
    """Return the model that a config describes, without weights (on the meta device).

    Raises:
        RankwiseError: Transformers has no model of this kind for the task, or the config contradicts itself; `name` begins the message.
    """
    kind, called = AUTO[task_type]
    layers = getattr(config, "num_hidden_layers", None)
    if isinstance(layers, int) and layers > LAYERS:
        raise RankwiseError(f"{name} can't be loaded: its config.json speaks of {layers:,} layers.")
    try:
        with quiet(), torch.device("meta"):
            return kind.from_config(config)
    except Exception as error:  # a config may hold anything
        raise RankwiseError(f"{name} is no {called}: {_first_line(error)}") from error


def _check_size(model: nn.Module, path: str) -> None:
    """Check that a folder's weights can be those of the model that its config describes, before that takes its memory."""
    files = [file for end in ("safetensors", "bin") for file in Path(path).glob(f"*.{end}")]
    there, here = sum(file.stat().st_size for file in files), sum(p.numel() for p in model.parameters())
    if files and here > 2 * there + MARGIN:  # 4 bits a weight are the fewest
        raise RankwiseError(
            f"The weights in {path} don't fit its config.json: by the config it has {here:,} parameters, "
            f"and its files have {there:,} bytes."
        )


def _from_pretrained(kind: Any, path: str, **options: Any) -> Any:
    """Call Transformers' `from_pretrained`, first without the hub. Code that comes with a model is never run."""
    here = Path(path).is_dir()
    with quiet(), hub.quiet_hub():
        try:
            return _call(kind, path, local_files_only=True, **options)
        except UnpicklingError:
            raise RankwiseError(
                f"The weights of {path} are a pickle that holds more than tensors, which could run anything. "
                "Convert them to safetensors where you trust them."
            ) from None
        except Exception as error:  # damaged files raise whatever their parsers raise
            if here:
                raise RankwiseError(f"The model in {path} can't be loaded: {_first_line(error)}") from error
        try:
            return _call(kind, path, **options)
        except Exception as error:
            raise RankwiseError(f"The model {path} can't be loaded: {_first_line(error)}") from error


def _call(kind: Any, path: str, **options: Any) -> Any:
    with _without_panic():
        return kind.from_pretrained(path, trust_remote_code=False, **options)


@contextlib.contextmanager
def _without_panic() -> Iterator[None]:
    """Turn a panic of the tokenizers' Rust code into an ordinary exception, in a `with` block."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            raise ValueError(str(error)) from None
        raise


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    line = lines[0].strip() if lines else type(error).__name__
    return line if line.endswith(".") else f"{line}."


def load(
    source: Source,
    label_names: list[str],
    *,
    dtype: torch.dtype,
    seed: int,
    problem_type: str = CLASSIFIER,
    adapted: bool = False,
) -> tuple[PreTrainedModel, Account]:
    """Load a model and draw the modules that its checkpoint doesn't have.

    Args:
        source: from `locate`.
        label_names: one name for each output of the head, in order. Empty for a language model.
        dtype: of every weight. No float32 copy is made on the way.
        seed: the run's seed.
        problem_type: what the outputs stand for, as Transformers' configs name it.
        adapted: the checkpoint may have LoRA layers, which the caller puts in (`Account.adapted`).

    Returns:
        The model in eval mode, and what of it was drawn or isn't used of its checkpoint.

    Raises:
        RankwiseError: the checkpoint can't be read, its weights aren't those of the model that its config describes, or it has no
            language model's head where one is asked for.
    """
    language_model = source.task_type == "CAUSAL_LM"
    labels = dict(enumerate(label_names))
    options: dict[str, Any] = {
        "num_labels": len(labels),
        "id2label": labels,
        "label2id": {label: i for i, label in labels.items()},
        "problem_type": problem_type or None,
    }
    if language_model:
        options = {}
    if source.name in hub.SCRATCH:
        if source.task_type != "SEQ_CLS":
            raise RankwiseError(f"{source.name} is an encoder, and no {AUTO[source.task_type][1]}.")
        model = _from_scratch(source.config, options, dtype, seed)
        return model, Account(frozenset(name for name, _ in model.named_parameters()))
    model, info = _from_pretrained(
        AUTO[source.task_type][0],
        source.path,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **options,
    )
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = source.tokenizer.pad_token_id
    _check_types(model, source.path)
    found = account(model, info, source.path)
    if found.adapted and not adapted:
        raise RankwiseError(
            f"{source.name} holds a model with LoRA layers in it ({listed(found.adapted)}), which is no base to start from. "
            "Merge it first: `rankwise merge`."
        )
    if language_model:
        check_whole(found, (), source.name, "Take a causal language model.")
    found = _without_other_head(model, source.config, found)
    draw(model, sorted({name.rpartition(".")[0] for name in found.new}), seed)
    return model.eval(), found


def stored(path: str, names: Collection[str]) -> dict[str, torch.Tensor]:
    """Read some tensors of a folder's weights, by name.

    Raises:
        RankwiseError: a file can't be read.
    """
    found: dict[str, torch.Tensor] = {}
    try:
        for file in sorted(Path(path).glob("*.safetensors")):
            with safe_open(file, "pt") as tensors:
                found |= {key: tensors.get_tensor(key) for key in tensors.keys() if key in names}  # noqa: SIM118 (it is no dict)
        for file in sorted(Path(path).glob("pytorch_model*.bin")):
            state = torch.load(file, map_location="cpu", weights_only=True)
            found |= {key: value for key, value in state.items() if key in names}
    except Exception as error:  # damaged files raise whatever their parsers raise
        raise RankwiseError(f"The model in {path} can't be loaded: {_first_line(error)}") from error
    return found


def _check_types(model: PreTrainedModel, path: str) -> None:
    """Check that a folder's weights are floating point: Transformers would convert whatever else is there."""
    names = {name.removeprefix(f"{model.base_model_prefix}.") for name, _ in model.named_parameters()}
    for file in sorted(Path(path).glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (it is no dict)
                kind = tensors.get_slice(key).get_dtype()
                if kind not in FLOATING and key.removeprefix(f"{model.base_model_prefix}.") in names:
                    raise RankwiseError(
                        f"The weights in {path} are damaged: {key} holds {kind} and not floating point. Download or save the model again."
                    )


def _without_other_head(model: PreTrainedModel, config: Any, found: Account) -> Account:
    """Count a whole head as new if it was trained for another task than classifying texts, such as classifying tokens."""
    heads = tuple(f"{path}." for path in body_and_heads(model)[1])
    weights = {name for name, _ in model.named_parameters() if name.startswith(heads or "\0")}
    names = config.architectures or []
    other = next((name for name in names if _is_other_task(name, model)), None)
    if other is None or weights & found.new:
        return found
    return replace(found, new=found.new | weights, other_task=other)


def _is_other_task(name: Any, model: PreTrainedModel) -> bool:
    """Return whether Transformers has a class of that name which puts another head onto a body."""
    if name == type(model).__name__ or not isinstance(name, str) or "For" not in name:
        return False
    return isinstance(getattr(transformers, name, None), type)


def _from_scratch(config: Any, options: dict[str, Any], dtype: torch.dtype, seed: int) -> PreTrainedModel:
    """Return a classifier with every weight drawn from `seed`."""
    config = type(config)(**{**config.to_dict(), **options})
    model = AutoModelForSequenceClassification.from_config(config)
    draw(model, [name for name, _ in model.named_modules()], seed)
    return model.to(dtype).eval()


def draw(model: PreTrainedModel, paths: list[str], seed: int) -> None:
    """Draw modules anew, in float32 and from `seed`: matrices from a normal distribution with the config's range, biases 0, norms 1."""
    generator = torch.Generator().manual_seed(stream_seed(seed, "init"))
    spread = getattr(model.config, "initializer_range", None) or 0.02
    for path in paths:
        module: nn.Module = model.get_submodule(path)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim >= 2:
                fresh = torch.empty(parameter.shape).normal_(0.0, spread, generator=generator)
            else:
                fresh = torch.ones(parameter.shape) if name == "weight" else torch.zeros(parameter.shape)
            parameter.data = fresh.to(parameter.device)


def pad_id(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id that fills padding: the model's own, by which it counts positions and finds a row's last token.

    A model without one gets the tokenizer's, or 0: attention never sees padding.
    """
    ids = (getattr(getattr(model, "config", None), "pad_token_id", None), tokenizer.pad_token_id)
    return next((one for one in ids if isinstance(one, int) and one >= 0), 0)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Transformers' own progress bars and reports off the terminal."""
    level, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()
