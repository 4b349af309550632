"""The request of a measurement. Its fields are the flags of `rankwise bench` and are stored with the result."""

from dataclasses import dataclass
from typing import Literal

DEFAULTS = {"classification": ("minilm", "sst2"), "generation": ("smollm2", "e2e")}
"""For each problem the model and the lengths that are taken where none are named."""


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Training with rankwise, with PEFT + Trainer and fully, measured side by side on this machine."""

    problem: Literal["classification", "generation"] = "classification"
    """classification: sequence classifiers, beside the Transformers Trainer. generation: language models, beside TRL's SFTTrainer."""
    model: str | None = None
    """A Hugging Face name, or a folder. Default: the embedded model, `minilm`, or `smollm2` for generation."""
    random_weights: str | None = None
    """Instead of `model`: an architecture with random weights, by name (`roberta-base`) or as a folder with a config.json."""
    lengths: str | None = None
    """Tokens per row: a task, from whose distribution lengths are drawn, or one number for all. Default: sst2, or e2e for generation."""
    batch_size: int = 16
    """Rows per optimizer step."""
    rows: int = 320
    """Rows per repeat, rounded up to whole batches."""
    repeats: int = 5
    """Turns of each contender. Medians and ranges are over these."""
    contenders: tuple[str, ...] = ()
    """Who takes part, by the names of the table's rows. Default: all but the optional ones (ablations and the padded variant)."""
    rank: int = 8
    """r of every adapter."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number type of the matrix products of every contender. auto: bfloat16 where the machine has it in hardware."""
    device: str = "auto"
    """auto: cuda, then cpu."""
    threads: int | None = None
    """CPU threads of each contender. Default: every core this process may use."""
    processes: int = 1
    """Also measure rankwise's contenders in this many processes, which share the contender's threads, or have a GPU each."""
    seed: int = 0
    """Seed of lengths, token ids and the order of rows, which are the same for every contender."""

    @property
    def model_name(self) -> str:
        """The model, where none is named the default."""
        return self.model or DEFAULTS[self.problem][0]

    @property
    def lengths_name(self) -> str:
        """The lengths, where none are named the default."""
        return self.lengths or DEFAULTS[self.problem][1]
