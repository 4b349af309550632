"""Texts that a language model writes behind prompts, by Transformers' own `generate`: greedy, beams or sampling, with a KV cache.

    prompts [■■■] [■■■■■] [■■]   ─►   · · ■■      ─►  new tokens up to the end-of-text token  ─►  texts, in the prompts' order
                                      · ■■■
                                      ■■■■■           rows of similar length share a batch, padded on the left

Adapters work as in training: their layers are in the model.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from rankwise.engine.batches import token_batches
from rankwise.engine.compute import Compute
from rankwise.engine.row_check import refused_by_name
from rankwise.errors import RankwiseError
from rankwise.inference_options import GenerateOptions
from rankwise.models import loading
from rankwise.models.families import position_limit
from rankwise.seeding import stream_seed

CACHED_TOKENS = {"cpu": 8192, "cuda": 131_072}
"""Tokens that a batch keeps keys and values of, at most: prompts, new tokens and padding, once for each beam."""


@dataclass(frozen=True)
class Generated:
    """What a model wrote.

    Attributes:
        texts: in the order of the prompts, without special tokens.
        cut: which of them had as many new tokens as there may be, and no end.
    """

    texts: list[str]
    cut: Bool[np.ndarray, "rows"]


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    options: GenerateOptions,
    *,
    compute: Compute,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> Generated:
    """Write a text behind each prompt.

    Args:
        model: a causal language model, with adapters or without; left in eval mode.
        tokenizer: the model's. A text ends with its end-of-text token, or with one that the model's generation config names.
        prompts: token ids of each.
        options: how the next token is chosen, and how many there may be.
        compute: how the model is run; prompts are padded on the left whatever its padding.
        on_progress: called with (prompts done, of all) after each batch.

    Raises:
        RankwiseError: the model writes no text, there are no prompts or an empty one, or one leaves no place for the new tokens.
    """
    writer = cast(Any, model)
    ends = _ends(writer, tokenizer)
    lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
    _check(model, lengths, options)
    config = _config(options, ends, pad=loading.pad_id(model, tokenizer))
    texts, cut, done = [""] * len(prompts), np.zeros(len(prompts), dtype=bool), 0
    model.eval()
    cached = (lengths + options.max_new_tokens) * options.num_beams
    most = CACHED_TOKENS.get(compute.device.type, CACHED_TOKENS["cpu"])
    autocast = torch.autocast(
        compute.device.type, dtype=compute.autocast, enabled=compute.autocast is not None
    )
    for which in reversed(
        token_batches(cached, most)
    ):  # the longest first: if memory is too small, it shows at once
        ids, mask = _padded_left([prompts[row] for row in which], int(config.pad_token_id), compute.device)
        with _seeded(options, int(which[0]), compute.device), refused_by_name(model), autocast:
            written = writer.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        for row, new in zip(which.tolist(), written[:, ids.shape[1] :].cpu().numpy(), strict=True):
            end = np.flatnonzero(np.isin(new, ends))
            cut[row] = not len(end)
            texts[row] = str(tokenizer.decode(new[: end[0]] if len(end) else new, skip_special_tokens=True))
        done += len(which)
        on_progress(done, len(prompts))
    return Generated(texts, cut)


def _ends(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of the tokens that end a text."""
    config = getattr(model, "generation_config", None)
    if not callable(getattr(model, "generate", None)) or config is None or model.config.is_encoder_decoder:
        raise RankwiseError(f"{type(model).__name__} writes no text. Take a causal language model.")
    stored = config.eos_token_id
    ids = [*(stored if isinstance(stored, list) else [stored]), tokenizer.eos_token_id]
    ends = sorted({one for one in ids if isinstance(one, int) and one >= 0})
    if not ends:
        raise RankwiseError(
            f"Neither {type(model).__name__} nor its tokenizer has an end-of-text token (eos_token), so no text would end."
        )
    return ends


def _check(model: nn.Module, lengths: Int64[np.ndarray, "rows"], options: GenerateOptions) -> None:
    if not len(lengths):
        raise RankwiseError("There are no prompts to write a text behind.")
    if not lengths.all():
        raise RankwiseError(
            f"Prompt {int(lengths.argmin())} is empty: there is nothing to write a text behind."
        )
    longest, limit = int(lengths.max()), position_limit(model)
    if limit is not None and longest + options.max_new_tokens > limit:
        raise RankwiseError(
            f"Prompt {int(lengths.argmax())} has {longest:,} tokens, and {type(model).__name__} takes {limit:,} in all. "
            + (
                f"Give `max_new_tokens={limit - longest}` or less."
                if longest < limit
                else "Leave it out, or make it shorter."
            )
        )


def _config(options: GenerateOptions, ends: list[int], pad: int) -> GenerationConfig:
    """Return Transformers' config. Each setting is given: what is None there, Transformers takes from the model's own config."""
    return GenerationConfig(
        max_new_tokens=options.max_new_tokens,
        min_length=0,
        num_beams=options.num_beams,
        do_sample=options.do_sample,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        length_penalty=options.length_penalty,
        no_repeat_ngram_size=options.no_repeat_ngram_size,
        repetition_penalty=1.0,
        early_stopping=False,
        num_return_sequences=1,
        use_cache=True,
        eos_token_id=ends,
        pad_token_id=pad,
    )


def _padded_left(
    prompts: Sequence[Sequence[int]], pad: int, device: torch.device
) -> tuple[Int64[Tensor, "rows length"], Int64[Tensor, "rows length"]]:
    """Return token ids that end at one place, and their attention mask."""
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


@contextlib.contextmanager
def _seeded(options: GenerateOptions, batch: int, device: torch.device) -> Iterator[None]:
    """Draw from the stream of a batch where texts are sampled, for a block of code; the caller's generators stay as they are."""
    if not options.do_sample:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(stream_seed(options.seed, "generate", batch))
        yield
