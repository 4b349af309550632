"""A method says what of a model is trained, and in which number type the rest is kept. One entry each.

`full` trains every weight (float32 weights, products under autocast), `head` and `bitfit` a part of a model kept like that; `lora` and
PEFT's methods (`peft:<name>`, see `peft_methods`) freeze the base in the run's own dtype and train adapters and head in float32.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from rankwise.config import LoraOptions, RunConfig
from rankwise.errors import RankwiseError, nearest
from rankwise.seeding import stream_seed

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from rankwise.runs.peft_methods import Peer
    from rankwise.tasks.encoding import Encoded

PEFT = "peft:"
"""Begins the name of a method that PEFT builds."""


@dataclass(frozen=True)
class Method:
    """How one method prepares a model.

    Attributes:
        prepare: (model, config, new modules) → nothing; leaves `requires_grad` right on every parameter.
        frozen_base: the base stays as loaded, so it may be loaded in half precision, and an adapter is what is saved.
    """

    prepare: Callable[["nn.Module", RunConfig, list[str]], Any]
    frozen_base: bool


def _full(model: "nn.Module", config: RunConfig, new_modules: list[str]) -> None:
    model.requires_grad_(True)


def _head(model: "nn.Module", config: RunConfig, new_modules: list[str]) -> None:
    from rankwise.lora.inject import train_beside
    from rankwise.models.families import body_and_heads

    model.requires_grad_(False)
    train_beside(model, [*body_and_heads(model)[1], *new_modules])


def _bitfit(model: "nn.Module", config: RunConfig, new_modules: list[str]) -> None:
    """Every bias, and what is new (Ben Zaken et al. 2022)."""
    _head(model, config, new_modules)
    biases = [p for name, p in model.named_parameters() if name.rpartition(".")[2] == "bias"]
    if all(p.requires_grad for p in biases):
        raise RankwiseError(f"{type(model).__name__} has no biases for bitfit to train.")
    for bias in biases:
        bias.requires_grad_(True)


def _lora(model: "nn.Module", config: RunConfig, new_modules: list[str]) -> None:
    if config.model.from_adapter:  # its layers are there already
        return
    from rankwise.lora.inject import (
        adapt,  # here, so that method names can be checked without waiting for torch
    )

    adapt(model, config.lora.fixed_rank, rslora=config.lora.rslora, **_adapter(config, new_modules))


def _adaptive(model: "nn.Module", config: RunConfig, new_modules: list[str]) -> None:
    from rankwise.lora.inject import adapt_freely, raise_to_start_rank
    from rankwise.lora.layer import lora_layers

    if config.model.from_adapter:  # its layers are there already
        raise_to_start_rank(model, dropout=config.lora.lora_dropout, seed=stream_seed(config.seed, "adapter"))
        for layer in lora_layers(model).values():
            layer.collect_statistics()
        return
    adapt_freely(model, config.lora.rank, **_adapter(config, new_modules))


def _adapter(config: RunConfig, new_modules: list[str]) -> dict[str, Any]:
    """What an adapter of a fixed rank and one that finds its own have in common."""
    lora, seed = config.lora, stream_seed(config.seed, "adapter")
    shared = {"alpha": lora.alpha, "dropout": lora.lora_dropout, "targets": lora.targets}
    return {**shared, "also_train": new_modules, "seed": seed}


METHODS: dict[str, Method] = {
    "full": Method(_full, frozen_base=False),
    "head": Method(_head, frozen_base=False),
    "bitfit": Method(_bitfit, frozen_base=False),
    "lora": Method(_lora, frozen_base=True),
    "adaptive": Method(_adaptive, frozen_base=True),
}


def named(name: str) -> Method:
    """The entry of a method's plain name; PEFT's share one, for `prepare` has them built."""
    return METHODS["lora"] if name.startswith(PEFT) else METHODS[name]


def prepare(
    model: "PreTrainedModel", name: str, config: RunConfig, new_modules: list[str], rows: "Encoded"
) -> "Peer | None":
    """Makes a model ready to be trained by a run's method.

    Args:
        model: as loaded; prepared in place.
        name: the method's plain name.
        config: of the run.
        new_modules: what is new outside the head (see `models.load`).
        rows: the training rows.

    Returns:
        What runs and saves the model where PEFT does, else None.
    """
    if not name.startswith(PEFT):
        METHODS[name].prepare(model, config, new_modules)
        return None
    from rankwise.runs import peft_methods

    given = _settings(config.method.removeprefix(name).removeprefix(","), config.method)
    given.pop("lr", None)
    _, own = _split(name, given)
    return peft_methods.prepare(model, name.removeprefix(PEFT), own, config, new_modules, rows)


def parse(spec: str, lora: LoraOptions) -> tuple[str, LoraOptions, float | None]:
    """`lora:rank=4,targets=all-linear` → the method's name, the options with those settings in place, and its learning rate where
    it has one of its own (`full:lr=5e-5`).

    Several targets are joined by `+`: `lora:targets=query+key`. PEFT's methods have their settings behind a comma, ours and PEFT's
    own: `peft:dora,rank=4`, `peft:prefix,num_virtual_tokens=10`.

    Raises:
        RankwiseError: an unknown method or setting, or a value of the wrong kind.
    """
    name, _, rest = spec.partition(":")
    if name == "peft":
        name, _, rest = spec.partition(",")
    elif name not in METHODS:
        known = {*METHODS, "peft:dora", "peft:prefix"}
        raise RankwiseError(
            f"There is no method {name!r}.{nearest(spec, known)} Further ones of PEFT's: peft:<name>."
        )
    given = _settings(rest, spec)
    rate = given.pop("lr", None)
    try:
        lr = None if rate is None else float(rate)
    except ValueError:
        raise RankwiseError(f"{spec!r}: lr takes float, not {rate!r}.") from None
    if lr is not None and not lr > 0:
        raise RankwiseError(f"{spec!r}: lr must be above 0.")
    if name.startswith(PEFT):
        given, _ = _split(name, given)
    elif given and name not in ("lora", "adaptive"):
        raise RankwiseError(f"{spec!r}: {name} has no settings of its own but lr.")
    return name, _with(lora, given, spec, name), lr


def _settings(rest: str, spec: str) -> dict[str, str]:
    """`rank=4,targets=query` as a dict of text."""
    parts = {part: part.partition("=") for part in filter(None, rest.split(","))}
    for part, (key, equals, _) in parts.items():
        if not equals:
            raise RankwiseError(f"{spec!r}: {part!r} is no setting; write {key}=value.")
    return {key: value for key, _, value in parts.values()}


def _split(name: str, given: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Settings of one of PEFT's methods: those that are the run's own LoRA options, and PEFT's.

    Raises:
        RankwiseError: PEFT isn't installed, or has no such method or setting.
    """
    try:
        from rankwise.runs import peft_methods
    except ImportError:
        raise RankwiseError(f"{name} needs PEFT. Install it: pip install 'rankwise[peft]'.") from None
    ours = peft_methods.shared_settings(name.removeprefix(PEFT))
    own = {key: value for key, value in given.items() if key not in ours}
    peft_methods.settings(name.removeprefix(PEFT), own)
    return {key: value for key, value in given.items() if key in ours}, own


def _with(lora: LoraOptions, given: dict[str, str], spec: str, name: str) -> LoraOptions:
    kinds = {f.name: type(f.default) if f.default is not None else float for f in fields(LoraOptions)}
    kinds["rank"] = int
    values: dict[str, Any] = {}
    for key, text in given.items():
        if key not in kinds:
            raise RankwiseError(f"{spec!r}: {name} has no setting {key!r}.{nearest(key, kinds)}")
        try:
            values[key] = _value(kinds[key], text)
        except (ValueError, KeyError):
            raise RankwiseError(f"{spec!r}: {key} takes {kinds[key].__name__}, not {text!r}.") from None
    return replace(lora, **values)


def _value(kind: type, text: str) -> Any:
    if kind is bool:
        return {"true": True, "false": False}[text.lower()]
    return tuple(text.split("+")) if kind is tuple else kind(text)
