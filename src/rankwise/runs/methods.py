"""The methods by name. A `Method` says what it trains and what it can do; nothing outside this file knows methods by their names.

`full`, `head` and `bitfit` train all or some of the model's own weights. Those stay in float32, and products run under autocast. `lora`,
`adaptive` and PEFT's methods (`peft:<name>`, see `peft_methods`) freeze the base in the run's number type and train an adapter and the
head in float32.

To add a method, put one entry into `METHODS`, or call `register` with one in a plug-in (see `rankwise.plugins`).
"""

from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from rankwise import plugins
from rankwise.config import LoraOptions, RunConfig
from rankwise.errors import RankwiseError, nearest
from rankwise.models import hub
from rankwise.seeding import stream_seed

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from rankwise.engine.training import MethodHooks
    from rankwise.tasks.encoding import Encoded

PEFT = "peft:"
"""Prefix of the methods that PEFT builds."""
LORA_OPTIONS = tuple(field.name for field in fields(LoraOptions))
FIXED_RANK_OPTIONS = tuple(name for name in LORA_OPTIONS if name != "prefer")


@runtime_checkable
class Adapted(Protocol):
    """What `Method.prepare` returns if the method wraps, counts and saves the model itself, as PEFT's methods do."""

    @property
    def model(self) -> "nn.Module":
        """What is trained and run."""
        ...

    @property
    def hooks(self) -> "MethodHooks | None":
        """What the method does besides the loss, if anything."""
        ...

    @property
    def head_params(self) -> int:
        """Parameters of the head and of other modules that are trained whole."""
        ...

    def save(self, folder: Path, base_model: str) -> None:
        """Writes the adapter to `folder`."""
        ...


@runtime_checkable
class Prepare(Protocol):
    """Makes a loaded model ready to be trained; afterwards `requires_grad` is right on every parameter."""

    def __call__(
        self,
        model: "PreTrainedModel",
        config: RunConfig,
        new_modules: list[str],
        rows: "Encoded | None" = None,
        /,
    ) -> "Adapted | None":
        """
        Args:
            model: as loaded, adapted in place.
            config: of the run.
            new_modules: paths of modules outside the head that aren't pretrained (see `models.account`).
            rows: the training rows, for methods that initialise from data.

        Returns:
            What wraps and saves the model, or None if `models` and `adapters` do that.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Method:
    """What a method does and can do.

    Attributes:
        label: its name for people.
        prepare: makes a model ready to be trained.
        frozen_base: the base isn't trained, so it may be in half precision, and only an adapter is saved.
        has_ranks: it trains low-rank adapters.
        finds_ranks: it chooses their ranks while training.
        settings: options (`LoraOptions`) that may stand behind its name: `lora:rank=4`. Every method takes `lr`.
        starts_from_adapter: it can start from an adapter that an earlier run saved.
        starts_from_model: it can start from a whole model that an earlier run saved, or from random weights.
        quantized_base: its frozen base may be in 8 or 4 bits.
        planned: `rankwise plan` can compute its memory.
        recipe_of: the method whose settings it takes if a recipe has none for it.
    """

    label: str
    prepare: Prepare
    frozen_base: bool = False
    has_ranks: bool = False
    finds_ranks: bool = False
    settings: tuple[str, ...] = ()
    starts_from_adapter: bool = False
    starts_from_model: bool = False
    quantized_base: bool = False
    planned: bool = False
    recipe_of: str | None = None


def _full(model: "PreTrainedModel", config: RunConfig, new_modules: list[str], rows: Any = None, /) -> None:
    model.requires_grad_(True)


def _head(model: "PreTrainedModel", config: RunConfig, new_modules: list[str], rows: Any = None, /) -> None:
    from rankwise.lora.inject import train_beside
    from rankwise.models.families import body_and_heads

    model.requires_grad_(False)
    heads = [*body_and_heads(model)[1], *new_modules]
    if not heads:
        raise RankwiseError(
            f"{type(model).__name__} has no head that is trained apart from its body. Take another method."
        )
    train_beside(model, heads)


def _bitfit(model: "PreTrainedModel", config: RunConfig, new_modules: list[str], rows: Any = None, /) -> None:
    """Trains every bias, the head and new modules (Ben Zaken et al. 2022)."""
    _head(model, config, new_modules)
    biases = [p for name, p in model.named_parameters() if name.rpartition(".")[2] == "bias"]
    if all(p.requires_grad for p in biases):
        raise RankwiseError(f"{type(model).__name__} has no biases for bitfit to train.")
    for bias in biases:
        bias.requires_grad_(True)


def _lora(model: "PreTrainedModel", config: RunConfig, new_modules: list[str], rows: Any = None, /) -> None:
    if config.model.from_adapter:  # the adapter is in place
        return
    from rankwise.lora.inject import adapt  # imports torch, which checking a method's name must not wait for

    adapt(model, config.lora.fixed_rank, rslora=config.lora.rslora, **_adapter_options(config, new_modules))


def _adaptive(
    model: "PreTrainedModel", config: RunConfig, new_modules: list[str], rows: Any = None, /
) -> None:
    from rankwise.lora.inject import adapt_at_start_rank, raise_to_start_rank
    from rankwise.lora.layer import lora_layers

    if config.model.from_adapter:  # the adapter is in place; other layers may still grow one
        raise_to_start_rank(model, dropout=config.lora.lora_dropout, seed=stream_seed(config.seed, "adapter"))
        for layer in lora_layers(model).values():
            layer.prefer = config.lora.prefer
            layer.collect_statistics()
        return
    options = _adapter_options(config, new_modules)
    adapt_at_start_rank(model, config.lora.rank, prefer=config.lora.prefer, **options)


def _adapter_options(config: RunConfig, new_modules: list[str]) -> dict[str, Any]:
    """Return the arguments that `adapt` and `adapt_at_start_rank` share."""
    lora, seed = config.lora, stream_seed(config.seed, "adapter")
    shared = {"alpha": lora.alpha, "dropout": lora.lora_dropout, "targets": lora.targets}
    return {**shared, "also_train": new_modules, "seed": seed}


METHODS: dict[str, Method] = {
    "full": Method(
        label="Full fine-tuning",
        prepare=_full,
        starts_from_adapter=True,
        starts_from_model=True,
        planned=True,
    ),
    "head": Method(label="Head alone", prepare=_head),
    "bitfit": Method(label="BitFit", prepare=_bitfit),
    "lora": Method(
        label="LoRA",
        prepare=_lora,
        frozen_base=True,
        has_ranks=True,
        settings=FIXED_RANK_OPTIONS,
        starts_from_adapter=True,
        quantized_base=True,
        planned=True,
    ),
    "adaptive": Method(
        label="Adaptive LoRA",
        prepare=_adaptive,
        frozen_base=True,
        has_ranks=True,
        finds_ranks=True,
        settings=LORA_OPTIONS,
        starts_from_adapter=True,
        quantized_base=True,
        planned=True,
        recipe_of="lora",
    ),
}


def register(name: str, method: Method) -> None:
    """Add a method. From then on its name works wherever a method is named in this process.

    Raises:
        RankwiseError: a method of that name exists.
    """
    if name in METHODS:
        raise RankwiseError(f"There is a method {name!r} already. Give yours another name.")
    METHODS[name] = method


def named(name: str) -> Method:
    """Return the method of a plain name (`lora`, `peft:dora`).

    Raises:
        RankwiseError: there is no such method.
    """
    plugins.load()
    if name.startswith(PEFT):
        prepare = partial(_peft, name)
        return Method(label=f"PEFT's {name.removeprefix(PEFT)}", prepare=prepare, frozen_base=True)
    if name not in METHODS:
        known = {*METHODS, f"{PEFT}dora", f"{PEFT}prefix"}
        raise RankwiseError(
            f"There is no method {name!r}.{nearest(name, known)} Further methods of PEFT: peft:<name>."
        )
    return METHODS[name]


def of_layers(*, has_ranks: bool, finds_ranks: bool) -> str:
    """Return the name of the method that leaves a model with such layers: `full`, `lora` or `adaptive`."""
    sought = (has_ranks, finds_ranks)
    return next(name for name, method in METHODS.items() if (method.has_ranks, method.finds_ranks) == sought)


def names(**able: bool) -> list[str]:
    """Return the names of the methods with these abilities: `names(planned=True)`."""
    plugins.load()
    return [
        name
        for name, method in METHODS.items()
        if all(getattr(method, ability) == value for ability, value in able.items())
    ]


def _peft(
    name: str, model: "PreTrainedModel", config: RunConfig, new_modules: list[str], rows: Any = None, /
) -> "Adapted | None":
    from rankwise.runs import peft_methods

    given = _settings(config.method.removeprefix(name).removeprefix(","), config.method)
    given.pop("lr", None)
    _, own = _split(name, given)
    return peft_methods.prepare(model, name.removeprefix(PEFT), own, config, new_modules, rows)


# ── A method as a run asks for it: `lora:rank=4,targets=all-linear` ───────────────────────────


@dataclass(frozen=True)
class Requested:
    """What a run asks for.

    Attributes:
        name: the method's plain name.
        lora: the run's options with the method's own settings in place.
        lr: the method's own learning rate, if it gives one (`full:lr=5e-5`).
    """

    name: str
    lora: LoraOptions
    lr: float | None

    @property
    def method(self) -> Method:
        """The entry of that name."""
        return named(self.name)


def plain_name(spec: str) -> str:
    """Return the plain name in a specification: `lora:rank=4` → `lora`, `peft:dora,rank=4` → `peft:dora`."""
    return spec.partition(",")[0] if spec.startswith(PEFT) else spec.partition(":")[0]


def parse(spec: str, lora: LoraOptions) -> Requested:
    """Read a specification: `lora:rank=4,targets=all-linear`.

    Several targets are joined by `+`: `lora:targets=query+key`. PEFT's methods have their settings, ours and PEFT's own, behind a comma:
    `peft:dora,rank=4`, `peft:prefix,num_virtual_tokens=10`.

    Args:
        spec: the method's name and settings.
        lora: the run's options, which its settings override.

    Raises:
        RankwiseError: an unknown method or setting, or a value of the wrong kind.
    """
    name = plain_name(spec)
    method = named(name)
    given = _settings(spec.removeprefix(name)[1:], spec)
    lr = _rate(given.pop("lr", None), spec)
    if name.startswith(PEFT):
        given, _ = _split(name, given)
    elif given and not method.settings:
        raise RankwiseError(f"{spec!r}: {name} has no settings of its own but lr.")
    elif unknown := [key for key in given if key not in method.settings]:
        raise RankwiseError(
            f"{spec!r}: {name} has no setting {unknown[0]!r}.{nearest(unknown[0], method.settings)}"
        )
    return Requested(name, _with(lora, given, spec), lr)


def _rate(text: str | None, spec: str) -> float | None:
    """Read a method's own learning rate."""
    try:
        lr = None if text is None else float(text)
    except ValueError:
        raise RankwiseError(f"{spec!r}: lr takes float, not {text!r}.") from None
    if lr is not None and not lr > 0:
        raise RankwiseError(f"{spec!r}: lr must be above 0.")
    return lr


def _settings(text: str, spec: str) -> dict[str, str]:
    """Read `rank=4,targets=query` as a dict of texts."""
    parts = {part: part.partition("=") for part in filter(None, text.split(","))}
    for part, (key, equals, _) in parts.items():
        if not equals:
            raise RankwiseError(f"{spec!r}: {part!r} is no setting; write {key}=value.")
    return {key: value for key, _, value in parts.values()}


def _split(name: str, given: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the settings of one of PEFT's methods that are the run's own options, and those that are PEFT's.

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


def _with(lora: LoraOptions, given: dict[str, str], spec: str) -> LoraOptions:
    """Return the options with settings, given as text, in place."""
    kinds = {f.name: type(f.default) if f.default is not None else float for f in fields(LoraOptions)}
    kinds["rank"] = int
    values: dict[str, Any] = {}
    for key, text in given.items():
        try:
            values[key] = _value(kinds[key], text)
        except (ValueError, KeyError):
            raise RankwiseError(f"{spec!r}: {key} takes {kinds[key].__name__}, not {text!r}.") from None
    return replace(lora, **values)


def _value(kind: type, text: str) -> Any:
    if kind is bool:
        return {"true": True, "false": False}[text.lower()]
    return tuple(text.split("+")) if kind is tuple else kind(text)


# ── Where a run may start ─────────────────────────────────────────────────────────────────────


def check_start(folder: Path, spec: str) -> None:
    """Refuses a folder that a method can't start from.

    Raises:
        RankwiseError: saying what the folder holds instead.
    """
    name = plain_name(spec)
    method = named(name)
    if not method.starts_from_adapter:
        able = ", ".join(names(starts_from_adapter=True))
        raise RankwiseError(f"{name} can't start from an adapter. Methods that can: {able}.")
    if (folder / hub.ADAPTER_CONFIG).is_file():
        return
    if not (folder / hub.CONFIG).is_file():
        held = "holds no adapter" if folder.is_dir() else "is no folder"
        raise RankwiseError(
            f"{folder} {held}, so there is nothing to start from. Name what `rankwise train` wrote with `from_adapter=`."
        )
    if not method.starts_from_model:
        raise RankwiseError(
            f"{folder} holds a whole model, and {name} starts from an adapter. Give the model with `model=` instead."
        )
