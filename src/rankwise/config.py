"""The options of a training: of a run, and of the plan for one.

    RunConfig   task, method, seed
    ├─ table, data           the rows
    └─ model, lora, train    what is trained, and how

They are plain dataclasses. `run.json` stores them (`config_json`), and the command line derives its flags and help texts from them
(`cli.parameters`). `None` means that the recipe decides: `runs.recipes.resolve` replaces each `None`. `run.json` keeps both the requested
and the resolved options.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from rankwise.errors import RankwiseError
from rankwise.limits import above_zero, at_least, parse_memory, share

ProblemName = Literal["classification", "multi-label", "regression", "generation", "tokens"]
"""What the labels are: one class a row, any number of labels a row, a number, the next token, or a tag for each word."""
Preference = Literal["accuracy", "size"]
"""What adaptive rank prefers: to be as accurate as without pruning, or to be small."""


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
    """Truncate each text (or pair) to this many tokens. Default: the model's own limit, 512 at most; 1,024 for language models."""

    def __post_init__(self) -> None:
        at_least(1, limit_train=self.limit_train, limit_eval=self.limit_eval)
        at_least(3, max_length=self.max_length)


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
    shard: bool = False
    """Share out the layers' weights over the processes that torchrun starts (FSDP2), with lora, adaptive and full."""

    def __post_init__(self) -> None:
        at_least(1, threads=self.threads)
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
    """accuracy: adaptive prunes only what held-out rows don't miss. size: it prunes until they do, and loses about a point of accuracy."""
    targets: tuple[str, ...] = ()
    """Layers that get an adapter: names, patterns, or `all-linear`. Default: query and value; with adaptive all linear layers."""

    @property
    def fixed_rank(self) -> int:
        """Return the rank of an adapter whose rank doesn't change."""
        return 8 if self.rank is None else self.rank

    def __post_init__(self) -> None:
        at_least(1, rank=self.rank)
        above_zero(alpha=self.alpha)
        share(lora_dropout=self.lora_dropout)
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
        at_least(
            1, batch_size=self.batch_size, accumulate=self.accumulate, evaluate_every=self.evaluate_every
        )
        at_least(1, patience=self.patience)
        at_least(0, warmup_steps=self.warmup_steps)
        above_zero(epochs=self.epochs, lr=self.lr)
        share(warmup=self.warmup, beta2=self.beta2)
        at_least(0, weight_decay=self.weight_decay, clip=self.clip)


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
        at_least(0, seed=self.seed)


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
    """accuracy: adaptive prunes only what held-out rows don't miss. size: it prunes until they do, and loses about a point of accuracy."""
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
    shard: bool = False
    """The processes share out the layers' weights, as with `rankwise train --shard`."""
    speed: bool = False
    """Also measure this machine for some seconds, to estimate the time of an epoch."""

    def __post_init__(self) -> None:
        at_least(1, rank=self.rank, batch_size=self.batch_size, micro_batches=self.micro_batches)
        at_least(1, processes=self.processes)
        at_least(3, max_length=self.max_length)
        if not self.methods:
            raise RankwiseError("`methods=` names nothing to plan. Name one or more.")
