"""Rows of words, each with a tag: lists in a table, and their tokens.

    ["EU", "rejects", "calls"] ─► EU rejects calls, one a line ─► tokens  [CLS] E ##U rejects calls [SEP]
    ["B-ORG", "O", "O"]                                          labels    ·   2  ·    0       0     ·

A word's tag is the label of its first token; its other tokens have none. Source: Transformers' example
`examples/pytorch/token-classification/run_ner.py`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import Int64

from rankwise.errors import RankwiseError
from rankwise.tasks.cells import OddCell, plain, whole_text
from rankwise.tasks.labels import IGNORED

if TYPE_CHECKING:
    import transformers  # for its types alone: the grid's own process reads tasks and needs no tokenizer

COLUMNS = ("tokens", "tags")
"""Columns of the words and of their tags, where no others are named."""


def dump(value: Any) -> str:
    """Return a list of words as one text, a word a line; empty for a missing cell or an empty list.

    Raises:
        OddCell: it is no list of words, or a word is empty or of several lines.
    """
    value = plain(value)
    if value is None or value == []:
        return ""
    if not isinstance(value, list):
        raise OddCell(value, "words are a list in each row (JSONL, Parquet)")
    for word in value:
        if not isinstance(word, str) or not word.strip() or len(word.splitlines()) > 1:
            raise OddCell(word, "a word is a string that isn't empty, and has no line break")
    return "\n".join(map(whole_text, value))


def load(text: str) -> list[str]:
    """Return the words that `dump` was given."""
    return text.split("\n") if text else []


def tokenise(
    texts: Sequence[str], tokenizer: "transformers.PreTrainedTokenizerBase", max_length: int
) -> tuple[list[list[int]], list[list[int]], list[list[int]] | None, int]:
    """Return the token ids of rows of words, truncated; where each word begins; token types, where there are any; and how many were cut.

    Args:
        texts: as `dump` returns them.
        tokenizer: a fast one.
        max_length: tokens a row may have, special tokens included.

    Returns:
        ids, and for each token the number of the word that it begins, or `IGNORED`; token types; truncated rows.

    Raises:
        RankwiseError: the tokenizer doesn't say which word a token belongs to, or has no token for a word.
    """
    if not tokenizer.is_fast:
        raise RankwiseError(
            f"{type(tokenizer).__name__} doesn't say which word a token belongs to. Take a model with a fast tokenizer."
        )
    space = " " if "ByteLevel" in str(cast(Any, tokenizer).backend_tokenizer.pre_tokenizer) else ""
    rows = [[space + word for word in load(text)] for text in texts]
    encoding = _call(tokenizer, rows, None)
    for row, words in enumerate(rows):
        found = set(encoding.word_ids(row))
        for word in range(len(words)):
            if word not in found:  # such as a character without width, which normalisation removes
                if tokenizer.unk_token is None:
                    raise RankwiseError(
                        f"The tokenizer has no token for the word {words[word].strip()!r:.40} (row {row})."
                    )
                words[word] = str(tokenizer.unk_token)
    encoding = _call(tokenizer, rows, None)
    too_long = [row for row, ids in enumerate(encoding["input_ids"]) if len(ids) > max_length]
    encoding = _call(tokenizer, rows, max_length) if too_long else encoding
    starts = [_starts(encoding.word_ids(row)) for row in range(len(rows))]
    return encoding["input_ids"], starts, encoding.get("token_type_ids"), len(too_long)


def _call(tokenizer: Any, rows: Sequence[Sequence[str]], max_length: int | None) -> Any:
    return tokenizer(
        list(rows),
        is_split_into_words=True,
        truncation=max_length is not None,
        max_length=max_length,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids="token_type_ids" in tokenizer.model_input_names,
        verbose=False,
    )


def _starts(words: Sequence[int | None]) -> list[int]:
    before = [None, *words]
    return [
        IGNORED if word is None or word == last else word for last, word in zip(before, words, strict=False)
    ]


def labels_of_tokens(
    starts: Sequence[Sequence[int]], labels: Int64[np.ndarray, "rows words"]
) -> tuple[Int64[np.ndarray, "tokens"], Int64[np.ndarray, "rows kept"]]:
    """Return the label of each token, end to end; and the labels of the words that weren't cut off, row by row.

    Args:
        starts: for each token of each row the number of the word that it begins, or `IGNORED`.
        labels: of the words; `IGNORED` behind a row's last.
    """
    flat, kept = [], np.full_like(labels, IGNORED)
    for row, words in enumerate(starts):
        begun = np.array(words, dtype=np.int64)
        first = begun != IGNORED
        flat.append(np.where(first, labels[row][np.where(first, begun, 0)], IGNORED))
        kept[row, : first.sum()] = labels[row, begun[first]]
    most = max((int((row != IGNORED).sum()) for row in kept), default=0)
    return np.concatenate(flat), kept[:, :most]
