"""The options of a run, of a grid of runs and of a plan, as plain dataclasses.

`run.json` stores them, and the command line derives its flags and help texts from them (`cli.parameters`). `None` means that the recipe
decides: `runs.recipes.resolve` replaces each `None`. `run.json` keeps both the requested and the resolved options.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from rankwise.errors import RankwiseError

ProblemName = Literal["classification", "multi-label", "regression", "generation", "tokens"]
"""What the labels are: one class a row, any number of labels a row, a number, the next token, or a tag for each word."""
Preference = Literal["accuracy", "size"]
"""What adaptive rank prefers: to be as accurate as without pruning, or to be small."""
UNITS = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
"""Bytes of each unit that a size may be given in."""

SEEDS = 2
"""Seeds of a grid that names none."""
LARGEST = 1e9
"""No setting has a use for a larger number."""
MOST = {
    "epochs": 1e6,
    "lr": 1e40,
    "threads": 1024,
    "jobs": 1024,
    "seeds": 10_000,
    "folds": 1000,
    "seed": 2**63 - 1,
}
"""Settings whose largest number is another one."""


def parse_memory(text: str) -> int | str:
    """Read a memory option: return `fast` or `lean` as they are, a size (`2GB`, `500 MB`, `1.5GiB`) as a number of bytes.

    Raises:
        RankwiseError: the text is neither.
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
        raise RankwiseError(f"`memory=` takes fast, lean, or a size such as 2GB or 500MB, not {text!r}.")
    return int(size)


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where rows come from and how they become token ids."""

    data: Path | None = None
    """Folder with one subfolder of Parquet files for each task. Default: GLUE tasks come from the Hugging Face hub."""
    limit_train: int | None = None
    """Train on this many rows. They are drawn with seed 0, so that every method and seed gets the same ones."""
    limit_eval: int | None = None
    """Evaluate on this many rows of the validation split, drawn in the same way."""
    max_length: int | None = None
    """Truncate each text (or pair) to this many tokens. Default: the model's own limit, 512 at most."""

    def __post_init__(self) -> None:
        _at_least(1, limit_train=self.limit_train, limit_eval=self.limit_eval)
        _at_least(3, max_length=self.max_length)


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The pretrained model and where it runs."""

    model: str | None = None
    """`minilm` (embedded: all-MiniLM-L6-v2), `smollm2` (embedded language model: SmolLM2-135M-Instruct), a Hugging Face name, or a folder.
    `scratch:small` is an encoder with random weights, for full fine-tuning only: what a model reaches without pretraining.
    Default: the recipe's (minilm for the recipe rankwise)."""
    from_adapter: Path | None = None
    """Start from the folder of an earlier run. `{task}`, `{method}` and `{seed}` in it are replaced by the run's own
    (`runs/first/mnli.{method}.s{seed}`). If the labels differ, the head is new. full starts from a whole model, or merges the adapter."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number type of frozen weights and of matrix products. auto: bfloat16 if the hardware supports it."""
    base_bits: Literal[8, 4] | None = None
    """Keep frozen linear layers in 8 or 4 bits (QLoRA), with lora and adaptive. Needs bitsandbytes, on cpu or cuda."""
    device: str = "auto"
    """auto: cuda if there is one, then mps, then cpu."""
    threads: int | None = None
    """CPU threads. Default: every core that this process may use."""
    memory: str = "fast"
    """fast, lean (gradient checkpointing: less memory, more time), or a size such as 2GB. With a size, the fastest way is taken whose
    tensors stay below it. The Python process itself comes on top."""

    def __post_init__(self) -> None:
        _at_least(1, threads=self.threads)
        parse_memory(self.memory)


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """The adapter: each target layer computes W0 + s·B·A."""

    rank: int | None = None
    """Rank r: the rows of A and columns of B. Default: 8. adaptive starts every layer at this rank; its default is 16."""
    alpha: float | None = None
    """The scaling is s = alpha/r. Default: alpha = 2·r, so s = 2. adaptive uses √2 · 16 at any rank."""
    rslora: bool = False
    """Use s = alpha/√r instead (rank-stabilized LoRA, Kalajdzievski 2023)."""
    lora_dropout: float = 0.0
    """Dropout on the adapter's input."""
    prefer: Preference = "accuracy"
    """accuracy: adaptive prunes only what held-out rows don't miss. size: it prunes until they do, and loses up to a point of accuracy."""
    targets: tuple[str, ...] = ()
    """Layers that get an adapter: names, patterns, or `all-linear`. Default: query and value; with adaptive all linear layers."""

    @property
    def fixed_rank(self) -> int:
        """Return the rank of an adapter whose rank doesn't change."""
        return 8 if self.rank is None else self.rank

    def __post_init__(self) -> None:
        _at_least(1, rank=self.rank)
        _above_zero(alpha=self.alpha)
        _share(lora_dropout=self.lora_dropout)
        if self.prefer not in get_args(Preference):
            raise RankwiseError(f"`prefer=` takes accuracy or size, not {self.prefer!r}.")


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Settings that the recipe provides; each can be overridden."""

    recipe: str = "rankwise"
    """Provides the settings that aren't given: `rankwise`, `poster`, `lora-paper` or `lora-paper-e2e`."""
    epochs: float | None = None
    """Passes over the training rows."""
    batch_size: int | None = None
    """Rows in each optimizer step."""
    accumulate: int = 1
    """Split each batch by rows into this many forward and backward passes."""
    lr: float | None = None
    """Peak learning rate of all trained parameters."""
    optimizer: Literal["adamw", "adam"] | None = None
    """adamw applies weight decay apart from the gradient; adam adds it to the gradient."""
    beta2: float | None = None
    """Decay of the optimizer's second moments. Default: the recipe's, or 0.999. Short trainings are more stable with a smaller one."""
    schedule: Literal["linear", "cosine", "constant", "two-phase"] | None = None
    """How the learning rate falls after warm-up. two-phase: to half the peak at four fifths of the steps, from there to zero."""
    warmup: float | None = None
    """Fraction of the steps over which the learning rate rises to its peak."""
    warmup_steps: int | None = None
    """Fewest warm-up steps, but never more than a quarter of all. The recipe's number is ignored if `warmup` is given."""
    weight_decay: float | None = None
    """Weight decay of matrices. Biases and norms are never decayed."""
    clip: float | None = None
    """Clip the gradient to this norm, over all trained parameters. 0 turns clipping off."""
    padding: Literal["packed", "longest", "max_length"] | None = None
    """packed: no padding, if the model allows it. longest: pad to the longest text of a batch, with batches grouped by length.
    max_length: pad every text to `max_length`."""
    evaluate_every: int | None = None
    """Also evaluate on the validation rows every so many steps, for a curve. The score is always that of the last step."""
    class_weights: str | None = None
    """balanced, or a weight for each class (`spam=5,ham=1`). They weight the training loss and the held-out losses that decide ranks.
    Reported losses and scores are unweighted."""
    completion_only_loss: bool | None = None
    """Language models learn the completion alone (the default where there is a prompt and a completion), or the prompt, too."""
    assistant_only_loss: bool | None = None
    """Language models learn the assistant's messages alone. Default: whole conversations."""
    patience: int | None = None
    """Stop early if the loss on rows held out of training hasn't improved for so many epochs."""

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
    """A table of your own instead of a task by name."""

    train_file: tuple[Path, ...] | None = None
    """CSV, TSV, JSONL or Parquet files. Several files with the same columns are one table."""
    folds: int | None = None
    """Split the rows into this many parts, of which one is validated on."""
    fold: int | None = None
    """The part, from 0."""
    validation: Path | None = None
    """Rows to evaluate on. Default: they are split off the training file, stratified by label."""
    dataset: str | None = None
    """Instead of files: a data set of the Hugging Face hub (`owner/name`), or a folder that the `datasets` library loads."""
    dataset_config: str | None = None
    """The data set's configuration, if it has several."""
    train_split: str | None = None
    """The data set's split to train on. Default: `train`."""
    validation_split: str | None = None
    """The data set's split to evaluate on. Default: `validation` if there is one, else rows are split off."""
    text: str | None = None
    """Column that holds the text. Default: `text`; `tokens` where each word has a tag."""
    text_pair: str | None = None
    """Column that holds the second text of a pair."""
    label: tuple[str, ...] | None = None
    """Column that holds the label: a class, a number, or a list of labels or tags. Several columns: 0s and 1s, one column for each label.
    Default: `label`; `tags` where each word has one."""
    prompt: str | None = None
    """Column that holds the prompt of a language model: a text, or a list of messages. Default: `prompt`."""
    completion: str | None = None
    """Column that holds its completion, likewise. Default: `completion`."""
    messages: str | None = None
    """Instead of prompt and completion: column that holds whole conversations, lists of messages with `role` and `content`.
    Default: `messages`."""
    problem: ProblemName | None = None
    """classification (one class a row), multi-label (any number of labels a row), regression (a number), generation (a language model
    learns to write) or tokens (a tag for each word; both columns hold lists). Default: lists or several label columns are
    multi-label, numbers with fractions are regression, all else is classification."""

    def __post_init__(self) -> None:
        if self.dataset is not None and self.train_file:
            raise RankwiseError(
                f"Both `dataset={self.dataset}` and the file {self.train_file[0]} are given. Leave one out."
            )
        for name in ("dataset_config", "train_split", "validation_split"):
            if self.dataset is None and getattr(self, name) is not None:
                raise RankwiseError(f"`{name}=` needs a data set, and `dataset=` isn't given.")
        if self.dataset is not None and self.validation is not None:
            raise RankwiseError(
                "`validation=` takes a file. Name the split of a data set with `validation_split=`."
            )

    @property
    def given(self) -> bool:
        """Whether there is a table: files, or a data set."""
        return self.train_file is not None or self.dataset is not None

    @property
    def name(self) -> str:
        """Return the name of the task of a run on this table: the first file's, or the data set's; `table` for rows in memory."""
        if self.dataset is not None:
            return "-".join(filter(None, [Path(self.dataset).name, self.dataset_config]))
        return "table" if self.train_file is None else self.train_file[0].stem


@dataclass(frozen=True, kw_only=True)
class HowToRun:
    """Where and how a trained model runs."""

    device: str = "auto"
    """auto: cuda if there is one, then mps, then cpu."""
    threads: int | None = None
    """CPU threads. Default: PyTorch's own number, a thread a core."""
    batch_size: int | None = None
    """Rows that are run at a time. Default: as many as 2,048 tokens hold, on a GPU 16,384."""
    max_length: int | None = None
    """Truncate each text (or pair) to this many tokens. Default: as in training; for other models their own limit, 512 at most."""

    def __post_init__(self) -> None:
        _at_least(1, threads=self.threads, batch_size=self.batch_size)
        _at_least(3, max_length=self.max_length)


def _at_least(smallest: float, **settings: float | None) -> None:
    _require(lambda value: smallest <= value < math.inf, f"a number, {smallest} or more", settings)


def _above_zero(**settings: float | None) -> None:
    _require(lambda value: 0 < value < math.inf, "a number above 0", settings)


def _share(**settings: float | None) -> None:
    _require(lambda value: 0 <= value < 1, "a fraction, from 0 to below 1", settings)


def _require(holds: Callable[[float], bool], what: str, settings: dict[str, float | None]) -> None:
    for name, value in settings.items():
        if value is not None and not holds(value):
            raise RankwiseError(f"`{name}=` must be {what}; it is {value}.")
        most = MOST.get(name, LARGEST)
        if value is not None and value > most:
            shown = f"{most:,.0f}" if most < 1e15 else f"{most:g}"
            raise RankwiseError(f"`{name}=` must be {shown} at most; it is {value}.")


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """How a language model writes a text. Names and defaults are those of Transformers' `GenerationConfig`."""

    max_new_tokens: int = 256
    """Tokens a text may have."""
    num_beams: int = 1
    """Beams of beam search. Default: 1, greedy."""
    length_penalty: float = 1.0
    """Power of its length that a beam's log-likelihood is divided by: above 0 favours long texts, below 0 short ones."""
    no_repeat_ngram_size: int = 0
    """No sequence of that many tokens comes twice in a text. Default: 0, any may."""
    do_sample: bool = False
    """Draw each token by its probability."""
    temperature: float = 1.0
    """With do_sample: divides the logits."""
    top_k: int = 50
    """With do_sample: only that many tokens can be drawn, the likeliest. 0: any."""
    top_p: float = 1.0
    """With do_sample: only the likeliest tokens can be drawn whose probabilities make up this share."""
    seed: int = 0
    """With do_sample: seed of the draws."""

    def __post_init__(self) -> None:
        _at_least(1, max_new_tokens=self.max_new_tokens, num_beams=self.num_beams)
        _at_least(0, no_repeat_ngram_size=self.no_repeat_ngram_size, top_k=self.top_k, seed=self.seed)
        _above_zero(temperature=self.temperature)
        _require(lambda value: 0 < value <= 1, "a fraction, above 0 and 1 at most", {"top_p": self.top_p})
        _require(math.isfinite, "a number", {"length_penalty": self.length_penalty})
        if not self.do_sample:
            for name in ("temperature", "top_k", "top_p", "seed"):
                if getattr(self, name) != getattr(type(self), name):
                    raise RankwiseError(
                        f"`{name}=` is for texts that are drawn. Add `do_sample=True`, or leave it out."
                    )
        if self.num_beams == 1 and self.length_penalty != 1.0:
            raise RankwiseError("`length_penalty=` is for beam search. Add `num_beams=`, or leave it out.")


@dataclass(frozen=True, kw_only=True)
class TextOptions(GenerateOptions):
    """How texts are written and scored."""

    scores: tuple[str, ...] = ()
    """Scores of the texts a language model writes: bleu, chrf, rouge_l, exact. They need references: a column `references` (lists) or
    the completions themselves."""
    answer: str | None = None
    """Regular expression whose last match in a text is its answer, for the score exact. Default: the whole text."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: a task, a method, a seed."""

    task: str = "movies"
    """sst2, rte, mrpc, qnli, mnli, qqp, cola, stsb, wnli, movies, e2e or gsm8k. Ignored if a file or a data set is given."""
    method: str = "adaptive"
    """The name of a method, with its own options after a colon: `adaptive`, `full`, `lora`, `lora:rank=4,targets=all-linear`,
    `full:lr=5e-5`."""
    seed: int = 0
    """Seed of the new head, the adapter's A, the order of rows, and dropout."""
    table: TableOptions = field(default_factory=TableOptions)
    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    lora: LoraOptions = field(default_factory=LoraOptions)
    train: TrainOptions = field(default_factory=TrainOptions)

    def __post_init__(self) -> None:
        _at_least(0, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """A grid of runs: tasks × methods × seeds, each run in its own process."""

    tasks: tuple[str, ...] = ("movies",)
    """sst2, rte, mrpc, qnli, mnli, qqp, cola, stsb, wnli, movies, e2e, gsm8k."""
    methods: tuple[str, ...] = ("full", "lora")
    """Names of methods, with their own options after a colon: `lora:rank=4,targets=all-linear`, `full:lr=5e-5`."""
    seeds: int | None = None
    """Run each method with the seeds 0 … n−1. Default: 2, or one for each of --folds."""
    folds: int | None = None
    """Cross-validation on a table of your own: it is split into so many parts, each of which is validated on once."""
    out: Path = Path("runs/compare")
    """Folder of the grid. Give it again to continue the grid or add to it."""
    jobs: int = 1
    """Runs at a time. If more than one, they share the machine, so the speed columns stay empty."""
    wait: bool = True
    """When other processes do the last runs: wait for them, and do a run whose process is lost. Otherwise end and name them."""
    keep_models: bool = False
    """Also keep the weights of fully fine-tuned models."""
    report_to: tuple[str, ...] = ()
    """Also report each run's curves to tensorboard (`tensorboard --logdir` on the grid's folder shows them), wandb, mlflow or trackio."""
    table: TableOptions = field(default_factory=TableOptions)
    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    lora: LoraOptions = field(default_factory=LoraOptions)
    train: TrainOptions = field(default_factory=TrainOptions)

    def __post_init__(self) -> None:
        _at_least(1, seeds=self.seeds, jobs=self.jobs)
        _at_least(2, folds=self.folds)
        if self.folds is not None and self.seeds is not None:
            raise RankwiseError("`folds=` gives each fold a seed of its own. Leave out `seeds=`.")
        for argument, names in (("tasks", self.tasks), ("methods", self.methods)):
            if not names:
                raise RankwiseError(f"`{argument}=` names nothing to compare. Name one or more.")

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks by name, or the name of the table."""
        return (self.table.name,) if self.table.given else self.tasks

    @property
    def repeats(self) -> int:
        """How often each method is run on each task: seeds, or folds."""
        return self.folds or self.seeds or SEEDS

    def runs(self) -> list[RunConfig]:
        """Return every run of the grid, seed by seed: a grid that was stopped has the same seeds for every method.

        Raises:
            RankwiseError: folds of a task by name are asked for.
        """
        if self.folds is not None and not self.table.given:
            raise RankwiseError(
                "`folds=` is for a table of your own: rankwise compare reviews.csv --folds 5."
            )
        tables = [
            replace(self.table, folds=self.folds, fold=fold) if self.folds else self.table
            for fold in range(self.repeats)
        ]
        shared = {"data": self.data, "model": self.model, "lora": self.lora, "train": self.train}
        return [
            RunConfig(task=task, method=method, seed=seed, table=table, **shared)
            for seed, table in enumerate(tables)
            for task in dict.fromkeys(self.names)
            for method in dict.fromkeys(self.methods)
        ]


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What fits in memory, computed from shapes alone: no weights are loaded and nothing is trained."""

    problem: Literal["classification", "generation", "tokens"] = "classification"
    """What is trained: a sequence classifier, a language model (generation), or a token classifier (tokens)."""
    model: str | None = None
    """An architecture by name (`roberta-base`, `llama-3.1-8b`), a folder or file with a config.json, or a Hugging Face name. Default:
    minilm, or smollm2 for generation."""
    task: str | None = None
    """Take the lengths of this task's rows: sst2 (the default), rte, mrpc, qnli, mnli, qqp, movies; e2e (default for generation), gsm8k."""
    lengths: str | None = None
    """Instead of a task: the tokens of every row, or a file with one number of tokens in each line."""
    max_length: int | None = None
    """Truncate each row to this many tokens. Default: the model's own limit, 512 at most, for language models 1,024."""
    methods: tuple[str, ...] = ("full", "lora", "adaptive")
    """full, lora, adaptive (at its start rank and at its largest)."""
    rank: int = 8
    """Rank of LoRA's adapters."""
    prefer: Preference = "accuracy"
    """accuracy: adaptive prunes only what held-out rows don't miss. size: it prunes until they do, and loses up to a point of accuracy."""
    targets: tuple[str, ...] = ()
    """Layers that get an adapter: names, patterns, or `all-linear`. Default: query and value; with adaptive all linear layers."""
    batch_size: int = 16
    """Rows in each optimizer step."""
    memory: str | None = None
    """The size to fit in, such as 8GB."""
    memory_mode: Literal["fast", "lean", "both"] = "both"
    """The memory option of the run: fast, lean (gradient checkpointing), or both in turn."""
    device: Literal["cpu", "cuda"] = "cpu"
    """cuda: the memory of a GPU, including what isn't tensors. cpu: tensors alone, as `rankwise train --memory` counts them."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number type of frozen weights and of matrix products. auto: bfloat16 on a GPU, and if this CPU supports it."""
    base_bits: Literal[8, 4] | None = None
    """Frozen linear layers in 8 or 4 bits, with lora and adaptive."""
    micro_batches: int = 1
    """Micro-batches that run side by side, as a run's first line says. Each holds gradients of its own."""
    processes: int = 1
    """Processes that train together, each on its share of the batch (torchrun). The plan is then for the one that takes most."""
    speed: bool = False
    """Also measure this machine for some seconds, to estimate the time of an epoch."""

    def __post_init__(self) -> None:
        _at_least(1, rank=self.rank, batch_size=self.batch_size, micro_batches=self.micro_batches)
        _at_least(1, processes=self.processes)
        _at_least(3, max_length=self.max_length)
        if not self.methods:
            raise RankwiseError("`methods=` names nothing to plan. Name one or more.")


def to_json(config: Any) -> Any:
    """Return the options as a nested dict of plain values: paths as strings, tuples as lists."""
    if is_dataclass(config):
        stored = [f.name for f in fields(config) if f.metadata.get("stored", True)]
        return {name: to_json(getattr(config, name)) for name in stored}
    if isinstance(config, Path):
        return str(config)
    if isinstance(config, tuple):
        return [to_json(value) for value in config]
    return config


def from_json(kind: type, values: Any) -> Any:
    """Make a `kind`, one of the dataclasses above, from what `to_json` returned.

    Raises:
        ValueError: an option is unknown or of another type; the message names it.
        RankwiseError: an option has a value that it can't have.
    """
    return _from_json(kind, values, kind.__name__)


def _from_json(kind: Any, value: Any, name: str) -> Any:
    if get_origin(kind) in (Union, UnionType):
        if value is None and type(None) in get_args(kind):
            return None
        (kind,) = (arg for arg in get_args(kind) if arg is not type(None))
    if is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{name} is {value!r:.40}, not an object")
        stored = {f.name for f in fields(kind) if f.metadata.get("stored", True)}
        hints = {key: hint for key, hint in get_type_hints(kind).items() if key in stored}
        if unknown := value.keys() - hints.keys():
            raise ValueError(f"there is no option {min(unknown):.60}")
        try:
            return kind(**{key: _from_json(hints[key], one, key) for key, one in value.items()})  # pyright: ignore[reportCallIssue]
        except TypeError as error:  # a field without a default is missing
            raise ValueError(str(error)) from None
    if kind is Path:
        return Path(_leaf(str, value, name))
    if get_origin(kind) is tuple:
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list):
            raise ValueError(f"{name} is {value!r:.40}, not a list")
        return tuple(_from_json(get_args(kind)[0], one, name) for one in values)
    return _leaf(kind, value, name)


def _leaf(kind: Any, value: Any, name: str) -> Any:
    """Return a value that is of one of the plain types, or one of a `Literal`."""
    kinds = tuple(type(one) for one in get_args(kind)) or ((int, float) if kind is float else (kind,))
    fits = isinstance(value, kinds) and isinstance(value, bool) == (kind is bool)
    if not fits or (get_args(kind) and value not in get_args(kind)):
        raise ValueError(f"{name} is {value!r:.40}")
    return value


def flat(config: Any) -> dict[str, Any]:
    """Return the options that differ from their defaults by name, those of groups too, as `to_json` gives values."""
    found = {}
    for option in fields(config):
        value = getattr(config, option.name)
        if is_dataclass(value):
            found |= flat(value)
        elif value != option.default:
            found[option.name] = to_json(value)
    return found


def options_of(config: Any, out: Path) -> dict[str, Any]:
    """Return what a file for `--config` holds to ask for a run or a grid again: its files, method and seed, and what isn't a default."""
    found = flat(config)
    always = {
        "files": found.pop("train_file", None),
        "method": getattr(config, "method", None),
        "seed": getattr(config, "seed", None),
    }
    if isinstance(config, RunConfig) and not config.table.train_file and config.table.dataset is None:
        always["task"] = config.task
    return {name: value for name, value in always.items() if value is not None} | found | {"out": str(out)}


def same_run(request: dict[str, Any]) -> dict[str, Any]:
    """Return the `to_json` of a RunConfig without what may differ where a run is continued: its threads, which change only its speed."""
    model = {name: value for name, value in request.get("model", {}).items() if name != "threads"}
    return {**request, "model": model}


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Return a line (`train.epochs: 3 there, 1 now`) for each option in which two `to_json` forms differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in sorted(old.keys() | new.keys()):
            lines += differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        return lines
    return [] if old == new else [f"{prefix}: {old!r} there, {new!r} now"]
