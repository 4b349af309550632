"""A method says what of a model is trained, and in which number type the rest is kept. One entry each.

`full` trains every weight (float32 weights, products under autocast); `lora` freezes the base in the run's own dtype and trains
adapters and head in float32.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from rankwise.config import LoraOptions, RunConfig
from rankwise.errors import RankwiseError, nearest
from rankwise.streams import stream_seed

if TYPE_CHECKING:
    from torch import nn


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


def _lora(model: "nn.Module", config: RunConfig, new_modules: list[str]) -> None:
    if config.model.from_adapter:  # its layers are there already
        return
    from rankwise.inject import adapt  # here, so that method names can be checked without waiting for torch

    lora = config.lora
    adapt(
        model,
        lora.rank,
        alpha=lora.alpha,
        rslora=lora.rslora,
        dropout=lora.lora_dropout,
        targets=lora.targets,
        also_train=new_modules,
        seed=stream_seed(config.seed, "adapter"),
    )


METHODS: dict[str, Method] = {
    "full": Method(_full, frozen_base=False),
    "lora": Method(_lora, frozen_base=True),
}


def parse(spec: str, lora: LoraOptions) -> tuple[str, LoraOptions]:
    """`lora:rank=4,targets=all-linear` → the method's name, and the options with those settings in place.

    Several targets are joined by `+`: `lora:targets=query+key`.

    Raises:
        RankwiseError: an unknown method or setting, or a value of the wrong kind.
    """
    name, _, rest = spec.partition(":")
    if name not in METHODS:
        raise RankwiseError(f"There is no method {name!r}.{nearest(name, METHODS)}")
    kinds = {f.name: type(f.default) if f.default is not None else float for f in fields(LoraOptions)}
    settings: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if name == "full" or key not in kinds or not equals:
            known = nearest(key, kinds) if name != "full" else " full has no settings of its own."
            raise RankwiseError(f"{spec!r}: {name} has no setting {key!r}, written as key=value.{known}")
        try:
            settings[key] = _value(kinds[key], value)
        except (ValueError, KeyError):
            raise RankwiseError(f"{spec!r}: {key} takes {kinds[key].__name__}, not {value!r}.") from None
    return name, replace(lora, **settings)


def _value(kind: type, text: str) -> Any:
    if kind is bool:
        return {"true": True, "false": False}[text.lower()]
    return tuple(text.split("+")) if kind is tuple else kind(text)
