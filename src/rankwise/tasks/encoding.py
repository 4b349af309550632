"""Rows to token ids, as flat arrays that are cached on disk.

    Rows ─► tokenizer ─► Encoded:   input_ids     [a a a b b c c c c]    int32 [tokens]
                                    offsets       [0     3   5       9]  int64 [rows + 1]
                                    labels        [1     0   1]          of rows, or
                                    token_labels  [· a · b · · c c c]    int64 [tokens], -100 where there is none

Nothing is padded; row i is `input_ids[offsets[i]:offsets[i + 1]]`.
"""

import hashlib
import json
import zlib
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int8, Int32, Int64
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rankwise.errors import RankwiseError
from rankwise.tasks import language, words
from rankwise.tasks.labels import IGNORED, Labels
from rankwise.tasks.language import Learned

if TYPE_CHECKING:
    import transformers  # for its types alone: the grid's own process reads tasks and needs no tokenizer

CACHE_FORMAT = 1
"""Part of every cache key. Increase it when `encode` stores something else."""
BATCH = 1000
"""Rows tokenised at a time, which bounds the memory of the tokenizer's own objects."""


@dataclass(frozen=True)
class Rows:
    """Labelled texts of one split.

    Attributes:
        text: one text a row.
        text_pair: the second text of each row, if the task has pairs.
        labels: in the form of their objective (see `objectives`), or None for prediction.
        idx: the number that identifies each row; predictions.parquet records it.
        learned: how a language model's rows are read, whose texts are prompts and completions, messages, or texts; None elsewhere.
        of_words: a text is a list of words, one a line (`tasks.words`).
    """

    text: list[str]
    text_pair: list[str] | None
    labels: Labels | None
    idx: Int64[np.ndarray, "rows"]
    learned: Learned | None = None
    of_words: bool = False

    def __len__(self) -> int:
        return len(self.text)

    def select(self, rows: Int64[np.ndarray, "chosen"]) -> "Rows":
        """Return the rows of these numbers, in this order."""
        return Rows(
            text=[self.text[row] for row in rows],
            text_pair=None if self.text_pair is None else [self.text_pair[row] for row in rows],
            labels=None if self.labels is None else self.labels[rows],
            idx=self.idx[rows],
            learned=self.learned,
            of_words=self.of_words,
        )


@dataclass(frozen=True)
class Encoded:
    """Token ids of one split, all rows end to end.

    Attributes:
        input_ids: row i is input_ids[offsets[i]:offsets[i + 1]].
        offsets: where each row begins, and where the last one ends.
        token_type_ids: which text of a pair a token belongs to; None if the tokenizer doesn't make them.
        labels: of rows, in the form of their objective (see `objectives`); None for prediction, or where tokens have labels.
        idx: the numbers that identify the rows.
        n_truncated: texts (or pairs) that were longer than the limit when the split was encoded.
        token_labels: what the model's output at each token has to be, -100 where that doesn't count; None where rows have labels. A
            language model's output at a token is the next one, so its labels are its tokens, one place to the left.
        n_left_out: rows that aren't here, because nothing that a language model learns of them is within the limit.
    """

    input_ids: Int32[np.ndarray, "tokens"]
    offsets: Int64[np.ndarray, "bounds"]
    token_type_ids: Int8[np.ndarray, "tokens"] | None
    labels: Labels | None
    idx: Int64[np.ndarray, "rows"]
    n_truncated: int
    token_labels: Int64[np.ndarray, "tokens"] | None = None
    n_left_out: int = 0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int64[np.ndarray, "rows"]:
        """Number of tokens of each row."""
        return np.diff(self.offsets)

    def count_labels(self, rows: Int64[np.ndarray, "chosen"]) -> int:
        """Return the number of labels of some rows, which a mean loss divides by: one a row, or those of their tokens."""
        return len(rows) if self.token_labels is None else int(self.labels_a_row[rows].sum())

    @property
    def most_labels(self) -> int:
        """The most labels that a row's tokens have."""
        return int(self.labels_a_row.max(initial=0))

    @cached_property
    def labels_a_row(self) -> Int64[np.ndarray, "rows"]:
        """Number of labels of each row's tokens."""
        before = np.concatenate([[0], np.cumsum(self.token_labels != IGNORED)])
        return np.diff(before[self.offsets])

    def select(self, rows: Int64[np.ndarray, "chosen"]) -> "Encoded":
        """Return the rows of these numbers, in this order."""
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        tokens = np.repeat(self.offsets[:-1][rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return replace(
            self,
            input_ids=self.input_ids[tokens],
            offsets=offsets,
            token_type_ids=None if self.token_type_ids is None else self.token_type_ids[tokens],
            labels=None if self.labels is None else self.labels[rows],
            idx=self.idx[rows],
            token_labels=None if self.token_labels is None else self.token_labels[tokens],
        )


def encode(
    rows: Rows,
    tokenizer: "transformers.PreTrainedTokenizerBase",
    max_length: int,
    cache: Path | None = None,
    *,
    empty: bool = False,
) -> Encoded:
    """Return the token ids of rows, truncated (the longer text of a pair first) and never padded.

    Args:
        rows: texts or pairs.
        tokenizer: fast or slow; truncation and padding set in its own files are overridden.
        max_length: tokens a row may have, special tokens included.
        cache: folder that keeps encoded splits in `tokens/`. None tokenises anew.
        empty: accept texts that give no tokens.

    Raises:
        RankwiseError: the limit leaves no room for text, or a text gives no tokens.
    """
    if rows.learned is not None:
        return _encode_language(rows, rows.learned, tokenizer, max_length)
    special = tokenizer.num_special_tokens_to_add(pair=rows.text_pair is not None)
    if max_length <= special:
        raise RankwiseError(
            f"`max_length={max_length}` leaves no room for text beside {special} special tokens."
        )
    if rows.of_words:
        return _encode_words(rows, tokenizer, max_length)
    file = (
        None if cache is None else cache / "tokens" / f"{_cache_key(rows, tokenizer, max_length)}.safetensors"
    )
    tokens = None if file is None else _read_tokens(file, len(rows))
    if tokens is None:
        tokens = _tokenise(rows, tokenizer, max_length)
        if file is not None:
            _write_tokens(file, tokens)
    encoded = replace(tokens, labels=rows.labels, idx=rows.idx)
    if not empty and len(encoded) and not encoded.lengths.all():
        row = int(np.argmin(encoded.lengths))
        raise RankwiseError(
            f"Row {rows.idx[row]} gives no tokens with this tokenizer: {rows.text[row][:40]!r}."
        )
    return encoded


def _encode_language(
    rows: Rows, learned: Learned, tokenizer: "transformers.PreTrainedTokenizerBase", max_length: int
) -> Encoded:
    """Return a language model's rows, cut off behind `max_length` tokens, without those of which nothing is left to learn.

    Raises:
        RankwiseError: no row is left.
    """
    ids: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    kept: list[int] = []
    n_truncated = 0
    found = language.tokenise(rows.text, rows.text_pair, learned, tokenizer)
    for row, (row_ids, counts) in enumerate(found):
        tokens = np.array(row_ids[:max_length], dtype=np.int32)
        learnt = np.array(counts[1:max_length], dtype=bool)
        if learnt.any():
            kept.append(row)
            ids.append(tokens)
            labels.append(np.append(np.where(learnt, tokens[1:], IGNORED), IGNORED))
            n_truncated += len(row_ids) > max_length
    if not kept:
        raise RankwiseError(
            f"Nothing of any row that is to be learned is within `max_length={max_length}` tokens. Give more."
        )
    return Encoded(
        input_ids=np.concatenate(ids),
        offsets=np.cumsum([0, *map(len, ids)]).astype(np.int64),
        token_type_ids=None,
        labels=None if rows.labels is None else rows.labels[kept],
        idx=rows.idx[kept],
        n_truncated=n_truncated,
        token_labels=np.concatenate(labels).astype(np.int64),
        n_left_out=len(rows) - len(kept),
    )


def _encode_words(rows: Rows, tokenizer: "transformers.PreTrainedTokenizerBase", max_length: int) -> Encoded:
    """Return rows of words. Without labels, the label of a token is the number of the word that it begins."""
    ids, starts, types, n_truncated = words.tokenise(rows.text, tokenizer, max_length)
    labels = rows.labels
    if labels is None:
        most = max((len(words.load(text)) for text in rows.text), default=0)
        labels = np.tile(np.arange(most), (len(rows), 1))
    token_labels, kept = words.labels_of_tokens(starts, labels)
    return Encoded(
        input_ids=np.concatenate([np.asarray(row, np.int32) for row in ids]),
        offsets=np.cumsum([0, *map(len, ids)]).astype(np.int64),
        token_type_ids=None if types is None else np.concatenate([np.asarray(row, np.int8) for row in types]),
        labels=None if rows.labels is None else kept,
        idx=rows.idx,
        n_truncated=n_truncated,
        token_labels=token_labels,
    )


def _tokenise(rows: Rows, tokenizer: "transformers.PreTrainedTokenizerBase", max_length: int) -> Encoded:
    ids: list[np.ndarray] = [np.empty(0, np.int32)]
    types: list[np.ndarray] = [np.empty(0, np.int8)]
    n_truncated = 0
    lengths: list[int] = []
    for start in range(0, len(rows), BATCH):
        texts = rows.select(np.arange(start, min(start + BATCH, len(rows))))
        batch = _call(texts, tokenizer)
        too_long = [row for row, row_ids in enumerate(batch["input_ids"]) if len(row_ids) > max_length]
        if too_long:  # tokenised again, so that their number is the same for fast and slow tokenizers
            again = _call(texts.select(np.array(too_long)), tokenizer, max_length)
            for name, values in again.items():
                for row, value in zip(too_long, values, strict=True):
                    batch[name][row] = value
            n_truncated += len(too_long)
        lengths += map(len, batch["input_ids"])
        ids.append(np.concatenate([np.asarray(row, np.int32) for row in batch["input_ids"]]))
        types += [np.asarray(row, np.int8) for row in batch.get("token_type_ids", ())]
    return Encoded(
        input_ids=np.concatenate(ids),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        token_type_ids=np.concatenate(types) if "token_type_ids" in tokenizer.model_input_names else None,
        labels=None,
        idx=np.arange(len(rows)),
        n_truncated=n_truncated,
    )


def _call(
    rows: Rows, tokenizer: "transformers.PreTrainedTokenizerBase", max_length: int | None = None
) -> dict[str, list[list[int]]]:
    encoding = tokenizer(
        rows.text,
        rows.text_pair,
        truncation=False if max_length is None else "longest_first",
        max_length=max_length,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids="token_type_ids" in tokenizer.model_input_names,
        verbose=False,
    )
    return dict(encoding)


def _cache_key(rows: Rows, tokenizer: "transformers.PreTrainedTokenizerBase", max_length: int) -> str:
    """Return the SHA-256 of everything that token ids depend on."""
    from transformers import PreTrainedTokenizerFast

    if isinstance(tokenizer, PreTrainedTokenizerFast):
        vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())
        del vocabulary["truncation"], vocabulary["padding"]  # left over from an earlier call
    else:
        vocabulary = [
            type(tokenizer).__name__,
            tokenizer.get_vocab(),
            repr(sorted(tokenizer.init_kwargs.items())),
        ]
    settings = [CACHE_FORMAT, max_length, tokenizer.truncation_side, tokenizer.model_input_names]
    digest = hashlib.sha256()
    for part in (settings, vocabulary, rows.text, rows.text_pair):
        digest.update(json.dumps(part).encode() + b"\n")
    return digest.hexdigest()


def _write_tokens(file: Path, tokens: Encoded) -> None:
    """Write one safetensors file, which appears whole. Of two processes the last one wins, with equal tokens."""
    arrays = {"input_ids": tokens.input_ids, "offsets": tokens.offsets}
    if tokens.token_type_ids is not None:
        arrays["token_type_ids"] = tokens.token_type_ids
    metadata = {"n_truncated": str(tokens.n_truncated), "crc32": _checksum(arrays)}
    with suppress(OSError):  # a full or read-only disk costs only the time to tokenise again
        file.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=file.parent) as workspace:
            save_file(arrays, Path(workspace) / file.name, metadata)
            (Path(workspace) / file.name).replace(file)


def _read_tokens(file: Path, n_rows: int) -> Encoded | None:
    """Read what `_write_tokens` wrote; None if it isn't there or isn't whole."""
    try:
        with safe_open(file, "numpy") as stored:
            metadata = stored.metadata()
            arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (it is no dict)
        if metadata["crc32"] != _checksum(arrays):
            return None
        return Encoded(
            input_ids=arrays["input_ids"],
            offsets=arrays["offsets"],
            token_type_ids=arrays.get("token_type_ids"),
            labels=None,
            idx=np.arange(n_rows),
            n_truncated=int(metadata["n_truncated"]),
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def _checksum(arrays: dict[str, np.ndarray]) -> str:
    checksum = 0
    for name in sorted(arrays):
        checksum = zlib.crc32(arrays[name].tobytes(), checksum)
    return f"{checksum:08x}"
