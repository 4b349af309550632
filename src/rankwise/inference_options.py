"""The options of inference: where a trained model runs, and how a language model writes."""

import math
from dataclasses import dataclass

from rankwise.errors import RankwiseError
from rankwise.limits import above_zero, at_least, require


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
        at_least(1, threads=self.threads, batch_size=self.batch_size)
        at_least(3, max_length=self.max_length)


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
        at_least(1, max_new_tokens=self.max_new_tokens, num_beams=self.num_beams)
        at_least(0, no_repeat_ngram_size=self.no_repeat_ngram_size, top_k=self.top_k, seed=self.seed)
        above_zero(temperature=self.temperature)
        require(lambda value: 0 < value <= 1, "a fraction, above 0 and 1 at most", {"top_p": self.top_p})
        require(math.isfinite, "a number", {"length_penalty": self.length_penalty})
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
