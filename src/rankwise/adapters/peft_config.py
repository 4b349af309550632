"""PEFT's `adapter_config.json`: what each field may hold, and which fields make an adapter something else than W0 + s·B·A.

Fields that aren't named here don't change what an adapter computes; they are carried along.
Source: PEFT 0.21, `LoraConfig` and `PeftConfig`.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rankwise.errors import RankwiseError
from rankwise.lora import names

FILE = "adapter_config.json"
REMEDY = "Copy the adapter again, or train it again."
"""What to do about a damaged adapter."""
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of `init_lora_weights` under which PEFT changes W0 at the start."""
KEEPS_BASE = ("true", "false", "gaussian", "eva", "orthogonal", "mica")
"""Values under which it doesn't."""
CHANGES_BASE_ANEW = ("pissa_niter", "lora_ga")
"""Values under which PEFT can't repeat that change when it loads the adapter: it depends on random numbers, or on gradients in training."""
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
    "megatron_config",
)
"""Settings of PEFT's LoRA under which a layer computes something else than W0 + s·B·A."""
IMPLIED = ("classifier", "score")
"""Modules that PEFT saves whole under `SEQ_CLS` and `TOKEN_CLS`, named or not."""

PATTERNS = ("target_modules", "exclude_modules", "feedforward_modules", "layers_pattern")
"""Fields that hold a regular expression where they aren't a list."""

Rank = Annotated[int, Field(ge=1, le=2**20)]
Alpha = Annotated[float, Field(ge=-1e30, le=1e30)]
Names = list[Annotated[str, Field(min_length=1)]]


class Config(BaseModel):
    """What all of PEFT's kinds have in common."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    peft_type: str
    task_type: (
        Literal["SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"]
        | None
    ) = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    inference_mode: bool = False
    auto_mapping: dict[str, Any] | None = None
    modules_to_save: Names | None = None
    target_modules: Names | str | None = None
    exclude_modules: Names | str | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """All fields as the file holds them, those that aren't named here included."""
        return self.model_dump(exclude_unset=True)

    @property
    def saved_whole(self) -> Names:
        """Ends of the paths of modules that are saved whole."""
        implied = IMPLIED if self.task_type in ("SEQ_CLS", "TOKEN_CLS") else ()
        return list(dict.fromkeys([*(self.modules_to_save or []), *implied]))

    def saves(self, path: str) -> bool:
        """Return whether a module, or one around it, is saved whole. Like PEFT, any end of a path counts."""
        return any(part.endswith(name) for part in names.parts(path) for name in self.saved_whole)

    @property
    def patterns(self) -> Names:
        """The regular expressions, of all fields, that PEFT matches with the paths of modules."""
        one = [value for name, value in self.fields.items() if name in PATTERNS and isinstance(value, str)]
        keys = [key for name in ("rank_pattern", "alpha_pattern") for key in self.fields.get(name) or {}]
        return [pattern for pattern in (*one, *keys) if pattern != "all-linear"]

    def unrepeatable(self) -> str | None:
        """Return what PEFT itself can't do again when it loads the adapter, as the end of a sentence."""
        return None

    def unsupported(self) -> str | None:
        """Return what about the adapter isn't W0 + s·B·A, as the end of a sentence."""
        return f"holds a {self.peft_type:.40} adapter, which W0 + s·B·A cannot express"


class LoraConfig(Config):
    """PEFT's LoRA. Defaults are PEFT's."""

    r: Rank = 8
    lora_alpha: Alpha = 8
    lora_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, Alpha] | None = None
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    bias: Literal["none", "all", "lora_only"] = "none"
    init_lora_weights: bool | str = True
    layers_to_transform: list[int] | int | None = None
    layers_pattern: Names | str | None = None

    def rank(self, path: str) -> int:
        """Return r of a layer."""
        return _look_up(self.rank_pattern, path, self.r)

    def scaling(self, path: str) -> float:
        """Return s of a layer: alpha/r, or alpha/√r."""
        rank, alpha = self.rank(path), _look_up(self.alpha_pattern, path, self.lora_alpha)
        return alpha / rank**0.5 if self.use_rslora else alpha / rank

    def adapts(self, path: str) -> bool:
        """Return whether PEFT would adapt a layer of this path. Where layers follow from the model, any may be."""
        if self.exclude_modules and _named(self.exclude_modules, path):
            return False
        if any(names.ends_in(part, self.saved_whole) for part in names.parts(path)):
            return False
        targets = self.target_modules
        if targets is None or targets == "all-linear" or (isinstance(targets, list) and path in targets):
            return True
        return _named(targets, path) and self._in_layers(path)

    def _in_layers(self, path: str) -> bool:
        layers, before = self.layers_to_transform, self.layers_pattern or [r"[^.]*"]
        if layers is None or layers == []:
            return True
        patterns = [before] if isinstance(before, str) else before
        found = next((n for pattern in patterns if (n := names.index(path, pattern)) is not None), None)
        return found == layers if isinstance(layers, int) else found in layers

    def unrepeatable(self) -> str | None:
        if not str(self.init_lora_weights).lower().startswith(CHANGES_BASE_ANEW):
            return None
        return f"was initialized with {self.init_lora_weights}, which changed the base's weights in a way that can't be repeated"

    def unsupported(self) -> str | None:
        started = str(self.init_lora_weights).lower()
        if started.startswith(CHANGES_BASE):
            return f"was initialized with {self.init_lora_weights:.40}, which changes the base's own weights"
        if started not in KEEPS_BASE:
            return f"was initialized with {self.init_lora_weights!r:.40}, which may have changed the base's own weights"
        fields = self.fields
        setting = next((name for name in CHANGES_LAYER if fields.get(name) or fields.get(name) == {}), None)
        if setting is not None:
            return f"uses {setting}, which W0 + s·B·A cannot express"
        if self.bias != "none":
            return f"trained biases of the base (bias={self.bias}), which W0 + s·B·A cannot express"
        return None


def _look_up(patterns: dict[str, Any] | None, path: str, default: Any) -> Any:
    """Look a layer up by PEFT's rule: the first key that matches the whole path or its end."""
    return next((value for key, value in (patterns or {}).items() if names.matches(key, path)), default)


def _named(targets: Names | str, path: str) -> bool:
    if isinstance(targets, str):
        return names.matches(targets, path, anywhere=False)
    return names.ends_in(path, targets)


def read(file: Path) -> Config:
    """Read an `adapter_config.json`.

    Raises:
        RankwiseError: it isn't one, or a field has a value of a wrong type or out of range.
    """
    try:
        content = file.read_bytes()
        config = Config.model_validate_json(content)
        return LoraConfig.model_validate_json(content) if config.peft_type == "LORA" else config
    except OSError as error:
        raise RankwiseError(f"{file} can't be read: {error.strerror or error}.") from None
    except ValidationError as error:
        raise RankwiseError(f"{file} is no config of an adapter: {first_problem(error)}. {REMEDY}") from None


def first_problem(error: ValidationError) -> str:
    """Return the first thing that is wrong, with the field's name."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"][:2] if str(part).isidentifier())
    message = first["msg"][:1].lower() + first["msg"][1:]
    return f"{where}: {message:.200}" if where else f"{message:.200}"
