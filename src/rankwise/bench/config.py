"""What a measurement is: these fields are the flags of `rankwise bench` and are stored with its result."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Ours against PEFT + Trainer and full fine-tuning, side by side on this machine, this model and these lengths."""

    model: str = "minilm"
    """`minilm` (embedded), a Hugging Face name, or a folder."""
    random_weights: str | None = None
    """Instead of `model`: an architecture by name (`roberta-base`), or a folder with a config.json, with random weights."""
    lengths: str = "sst2"
    """Tokens a row: a task, whose distribution is drawn from, or one number for all rows."""
    batch_size: int = 16
    """Rows an optimizer step."""
    rows: int = 320
    """Rows a repeat, rounded up to whole batches."""
    repeats: int = 5
    """Turns of each contender; medians and ranges are over these."""
    contenders: tuple[str, ...] = ()
    """Who takes part, by the names of the table's rows. Default: all but those that have to be asked for."""
    rank: int = 8
    """r of every adapter."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number type of the matrix products, for every contender. auto: bfloat16 where the machine has it in hardware."""
    device: str = "auto"
    """auto: cuda, then cpu."""
    threads: int | None = None
    """CPU threads of each contender. Default: every core this process may use."""
    seed: int = 0
    """Draws lengths, token ids and the order of rows, the same for every contender."""
