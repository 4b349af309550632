"""What determines a run. These dataclasses are the command line's flags, the saved `run.json` and the defaults in the docs.

`None` means "the recipe decides" (see `recipes/`); `recipes.resolve` fills every `None` in, and both forms are kept in `run.json`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from cyclopts import Parameter, Token

from rankwise.errors import RankwiseError

ProblemName = Literal["classification", "multi-label", "regression"]


def _whole(kind: Any, tokens: Sequence[Token]) -> int:
    """A whole number; the command line would otherwise round 4.5 to 4 without a word."""
    (token,) = tokens
    try:
        return int(token.value)
    except ValueError:
        raise RankwiseError(
            f"{token.keyword or 'This setting'} must be a whole number; it is {token.value!r}."
        ) from None


Whole = Annotated[int, Parameter(converter=_whole)]
MaybeWhole = Annotated[int | None, Parameter(converter=_whole)]


UNITS = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def parse_memory(text: str) -> int | str:
    """`fast`, `lean`, or a size (`2GB`, `500 MB`, `1.5GiB`) as bytes.

    Raises:
        RankwiseError: it is none of these.
    """
    words = text.strip().lower()
    if words in ("fast", "lean"):
        return words
    number = words.rstrip("bikmgt ")
    try:
        size = float(number) * UNITS[words[len(number) :].strip()]
    except (ValueError, KeyError):
        size = -1.0
    if not 0 < size < math.inf:
        raise RankwiseError(f"--memory takes fast, lean, or a size such as 2GB or 500MB, not {text!r}.")
    return int(size)


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where rows come from and how they become token ids."""

    data: Path | None = None
    """Folder with one sub-folder of Parquet files a task. Without it GLUE tasks come from the hub."""
    limit_train: MaybeWhole = None
    """Train on this many rows, drawn by the seed 0 for every method alike."""
    limit_eval: MaybeWhole = None
    """Evaluate on this many rows of the validation split, drawn likewise."""
    max_length: MaybeWhole = None
    """Tokens a text (or pair) is truncated to. Default: the model's own limit, 512 at most."""

    def __post_init__(self) -> None:
        _at_least(1, limit_train=self.limit_train, limit_eval=self.limit_eval)
        _at_least(3, max_length=self.max_length)


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The pretrained model and where it runs."""

    model: str | None = None
    """`minilm` (embedded: all-MiniLM-L6-v2), a Hugging Face name, a folder, or `scratch:small`, an encoder
    that nobody has trained, for full fine-tuning: the floor of a comparison. Default: the recipe's; ours takes minilm."""
    from_adapter: Path | None = None
    """Start from what an earlier run trained: its folder; `{task}`, `{method}` and `{seed}` in it stand for the run's own
    (`runs/first/mnli.{method}.s{seed}`). Other labels get a new head. full takes a whole model or an adapter, merged."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number type of frozen weights and of the matrix products. auto: bfloat16 where the machine has it in hardware."""
    base_bits: Literal[8, 4] | None = None
    """Keep the frozen linear layers of lora and adaptive in 8 or 4 bits (QLoRA); needs bitsandbytes, on cpu or cuda."""
    device: str = "auto"
    """auto: cuda, then mps, then cpu."""
    threads: MaybeWhole = None
    """CPU threads. Default: every core this process may use."""
    memory: str = "fast"
    """fast; lean, which runs layers again in backward instead of keeping what they made; or a size such as 2GB: the fastest way
    that stays below it in tensor bytes (the Python process itself comes on top)."""

    def __post_init__(self) -> None:
        _at_least(1, threads=self.threads)
        parse_memory(self.memory)


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """The adapter: W0 + s·B·A on the targets."""

    rank: MaybeWhole = None
    """r: rows of A, columns of B. Default: 8; for adaptive, where every layer starts, 16."""
    alpha: float | None = None
    """s = alpha/r. Default: 2·rank, so s = 2; adaptive has √2 · 16 at any rank."""
    rslora: bool = False
    """s = alpha/√r instead (Kalajdzievski 2023)."""
    lora_dropout: float = 0.0
    """Dropout on the adapter's input."""
    targets: tuple[str, ...] = ()
    """Layers that get an adapter: names, patterns, or `all-linear`. Default: query and value of the family; for adaptive
    all linear layers."""

    @property
    def fixed_rank(self) -> int:
        """The rank of an adapter whose rank doesn't change."""
        return 8 if self.rank is None else self.rank

    def __post_init__(self) -> None:
        _at_least(1, rank=self.rank)
        _above_zero(alpha=self.alpha)
        _share(lora_dropout=self.lora_dropout)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The recipe's settings; each can be overridden."""

    recipe: str = "rankwise"
    """Where the unset settings come from: `rankwise`, `poster` or `lora-paper`."""
    epochs: float | None = None
    """Passes over the training rows."""
    batch_size: MaybeWhole = None
    """Rows an optimizer step."""
    accumulate: Whole = 1
    """Forward/backward passes a batch is split into, by rows."""
    lr: float | None = None
    """Peak learning rate of everything trained."""
    optimizer: Literal["adamw", "adam"] | None = None
    """adamw decouples weight decay; adam adds it to the gradient."""
    beta2: float | None = None
    """Decay of the optimizer's second moments; 0.999 where the recipe doesn't say. A short training learns sooner and safer with less."""
    schedule: Literal["linear", "cosine", "constant", "two-phase"] | None = None
    """How the learning rate falls after warm-up. two-phase: to half the peak at four fifths of the steps, from there to zero."""
    warmup: float | None = None
    """Share of the steps over which the learning rate rises to its peak."""
    warmup_steps: MaybeWhole = None
    """Steps that this takes at least, though never more than a quarter of all. The recipe's count only where `warmup` is its too."""
    weight_decay: float | None = None
    """Decay of matrices; biases and norms are never decayed."""
    clip: float | None = None
    """Largest norm of the gradient over everything trained; 0 turns clipping off."""
    padding: Literal["packed", "longest", "max_length"] | None = None
    """packed: no padding at all, where the model allows it. longest: to the longest of a batch, batches grouped by length.
    max_length: every text to `max_length`, the fixed protocol."""
    evaluate_every: MaybeWhole = None
    """Evaluate on the validation rows every so many steps too (reported as a curve; the score is the final step's)."""
    class_weights: str | None = None
    """balanced, or weights by name (`spam=5,ham=1`): classes count so much in the training loss, and in the held-out losses that ranks are
    decided on; reported losses and scores know no weights."""
    patience: MaybeWhole = None
    """Stop early when the loss on rows held out of training has not improved for so many checks (one an epoch)."""

    def __post_init__(self) -> None:
        _at_least(
            1, batch_size=self.batch_size, accumulate=self.accumulate, evaluate_every=self.evaluate_every
        )
        _at_least(1, patience=self.patience)
        _at_least(0, warmup_steps=self.warmup_steps)
        _above_zero(epochs=self.epochs, lr=self.lr)
        _share(warmup=self.warmup, beta2=self.beta2)
        _at_least(0, weight_decay=self.weight_decay, clip=self.clip)


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """A table of one's own instead of a task by name."""

    train_file: Annotated[tuple[Path, ...] | None, Parameter(parse=False)] = None
    """CSV, TSV, JSONL or Parquet; several with the same columns are one table."""
    validation: Path | None = None
    """Rows to evaluate on; split off the training file, stratified by label, when not given."""
    dataset: str | None = None
    """Instead of files: a data set of the Hugging Face hub (`owner/name`), or a folder that the `datasets` library loads."""
    dataset_config: str | None = None
    """Its configuration, where it has several."""
    train_split: str | None = None
    """Its split to train on. Default: `train`."""
    validation_split: str | None = None
    """Its split to evaluate on. Default: `validation` where it has one, else rows are split off."""
    text: str | None = None
    """Column of the text."""
    text_pair: str | None = None
    """Column of the second text of a pair."""
    label: tuple[str, ...] | None = None
    """Column of the label: a class, a number, or a list of labels. Several columns: one of 0s and 1s for each label."""
    problem: ProblemName | None = None
    """classification (one class a row), multi-label (any number of labels a row) or regression (a number). Default: by the label column:
    a list or several columns are multi-label, numbers with fractions regression, all else classification."""

    def __post_init__(self) -> None:
        if self.dataset is not None and self.train_file:
            raise RankwiseError(
                f"Both --dataset {self.dataset} and the file {self.train_file[0]} are named; leave one out."
            )
        for name in ("dataset_config", "train_split", "validation_split"):
            if self.dataset is None and getattr(self, name) is not None:
                raise RankwiseError(
                    f"--{name.replace('_', '-')} is for a data set, and --dataset names none."
                )
        if self.dataset is not None and self.validation is not None:
            raise RankwiseError(
                "--validation names a file; of a data set, name the split with --validation-split."
            )


def _at_least(smallest: float, **settings: float | None) -> None:
    _require(lambda value: smallest <= value < math.inf, f"a number, {smallest} or more", settings)


def _above_zero(**settings: float | None) -> None:
    _require(lambda value: 0 < value < math.inf, "a number above 0", settings)


def _share(**settings: float | None) -> None:
    _require(lambda value: 0 <= value < 1, "a share, from 0 to below 1", settings)


def _require(holds: Callable[[float], bool], what: str, settings: dict[str, float | None]) -> None:
    for name, value in settings.items():
        if value is not None and not holds(value):
            raise RankwiseError(f"--{name.replace('_', '-')} must be {what}; it is {value}.")


# On the command line the groups' fields are plain flags (`--epochs`, not `--train.epochs`) under a heading of their own.
Data = Annotated[DataOptions, Parameter(name="*", group="Data")]
Model = Annotated[ModelOptions, Parameter(name="*", group="Model")]
Lora = Annotated[LoraOptions, Parameter(name="*", group="LoRA")]
Train = Annotated[TrainOptions, Parameter(name="*", group="Training")]
Table = Annotated[TableOptions, Parameter(name="*", group="A table of one's own")]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: a task, a method, a seed."""

    task: str = "movies"
    """sst2, rte, mrpc, qnli, mnli, qqp, cola, stsb, wnli or movies; a table of one's own instead when a file is given."""
    method: str = "adaptive"
    """A method's name, with options of its own behind a colon: `adaptive`, `full`, `lora`, `lora:rank=4,targets=all-linear`,
    `full:lr=5e-5`."""
    seed: Whole = 0
    """Of the new head, the adapter's A, the order of rows, and dropout."""
    table: Table = field(default_factory=TableOptions)
    data: Data = field(default_factory=DataOptions)
    model: Model = field(default_factory=ModelOptions)
    lora: Lora = field(default_factory=LoraOptions)
    train: Train = field(default_factory=TrainOptions)


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """A grid: tasks × methods × seeds, one process a run."""

    tasks: tuple[str, ...] = ("movies",)
    """sst2, rte, mrpc, qnli, mnli, qqp, cola, stsb, wnli, movies."""
    methods: tuple[str, ...] = ("full", "lora")
    """Methods by name, with options of their own behind a colon: `lora:rank=4,targets=all-linear`,
    `full:lr=5e-5`."""
    seeds: Whole = 2
    """Seeds 0 … n−1."""
    out: Path = Path("runs/compare")
    """Folder of the grid; give it again to continue or add to it."""
    jobs: Whole = 1
    """Runs at a time. More than one shares the machine, so speed columns are left blank."""
    keep_models: bool = False
    """Keep the weights of fully fine-tuned models."""
    tensorboard: bool = False
    """Write each run's curves for TensorBoard too: `tensorboard --logdir` on the grid's folder shows them."""
    data: Data = field(default_factory=DataOptions)
    model: Model = field(default_factory=ModelOptions)
    lora: Lora = field(default_factory=LoraOptions)
    train: Train = field(default_factory=TrainOptions)

    def __post_init__(self) -> None:
        _at_least(1, seeds=self.seeds, jobs=self.jobs)
        for flag, names in (("--tasks", self.tasks), ("--methods", self.methods)):
            if not names:
                raise RankwiseError(f"{flag} names nothing to compare. Name one or more.")

    def runs(self) -> list[RunConfig]:
        """Every run of the grid; a seed is finished for all methods before the next begins, so a partial grid is paired."""
        shared = {"data": self.data, "model": self.model, "lora": self.lora, "train": self.train}
        return [
            RunConfig(task=task, method=method, seed=seed, **shared)
            for seed in range(self.seeds)
            for task in dict.fromkeys(self.tasks)
            for method in dict.fromkeys(self.methods)
        ]


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What fits: the peak of training from shapes alone, without weights and without training."""

    model: str = "minilm"
    """An architecture by name (`roberta-base`, `llama-3.1-8b`), a folder or file with a config.json, or a Hugging Face name."""
    task: str = "sst2"
    """A task, for the lengths of its rows: sst2, rte, mrpc, qnli, mnli, qqp, movies."""
    lengths: str | None = None
    """Instead of a task: tokens of every row, or a file with one number of tokens a line."""
    max_length: MaybeWhole = None
    """Tokens a row is truncated to. Default: the model's own limit, 512 at most."""
    methods: tuple[str, ...] = ("full", "lora", "adaptive")
    """full, lora, adaptive (at its largest rank)."""
    rank: Whole = 8
    """r of LoRA's adapters."""
    batch_size: Whole = 16
    """Rows an optimizer step."""
    memory: str | None = None
    """A size to fit in, such as 8GB."""
    memory_mode: Literal["fast", "lean", "both"] = "both"
    """How the run would be told to use memory; lean runs layers again in backward."""
    device: Literal["cpu", "cuda"] = "cpu"
    """cuda: a card, which also holds what isn't tensors. cpu: tensor bytes alone, as `rankwise train --memory` counts them."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number type of frozen weights and of the matrix products. auto: bfloat16 on a card and where this CPU has it in hardware."""
    base_bits: Literal[8, 4] | None = None
    """The frozen linear layers of lora and adaptive in 8 or 4 bits."""
    micro_batches: Whole = 1
    """Micro-batches that run side by side, as the first lines of a run say. Each has its own gradients."""
    speed: bool = False
    """Measure this machine for some seconds too, for the time an epoch takes."""

    def __post_init__(self) -> None:
        _at_least(1, rank=self.rank, batch_size=self.batch_size, micro_batches=self.micro_batches)
        _at_least(3, max_length=self.max_length)
        for method in self.methods or ("",):
            if method not in ("full", "lora", "adaptive"):
                raise RankwiseError(f"--methods takes full, lora and adaptive, not {method!r}.")


def to_json(config: Any) -> Any:
    """Nested dict of plain values: paths as strings, tuples as lists."""
    if is_dataclass(config):
        stored = [f.name for f in fields(config) if f.metadata.get("stored", True)]
        return {name: to_json(getattr(config, name)) for name in stored}
    if isinstance(config, Path):
        return str(config)
    if isinstance(config, tuple):
        return [to_json(value) for value in config]
    return config


def from_json(kind: type, values: Any) -> Any:
    """The inverse of `to_json` for a config dataclass `kind`."""
    hints = get_type_hints(kind)  # without the command line's annotations
    return kind(**{name: _from_json(hints[name], value) for name, value in values.items()})


def _from_json(kind: Any, value: Any) -> Any:
    if value is None:
        return None
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (arg for arg in get_args(kind) if arg is not type(None))
    if is_dataclass(kind):
        return from_json(kind, value)  # pyright: ignore[reportArgumentType]
    if kind is Path:
        return Path(value)
    if get_origin(kind) is tuple:
        values = [value] if isinstance(value, str) else value  # one alone
        return tuple(_from_json(get_args(kind)[0], one) for one in values)
    return value


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """`train.epochs: 3 there, 1 now` for every leaf in which two `to_json` forms differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in sorted(old.keys() | new.keys()):
            lines += differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        return lines
    return [] if old == new else [f"{prefix}: {old!r} there, {new!r} now"]
