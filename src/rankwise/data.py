"""Files to rows to token ids: tables of four formats, read strictly; tokens as flat arrays, cached on disk.

    reviews.csv ─► Table ─► Rows ─► tokenizer ─► Encoded:   input_ids  [a a a b b c c c c]    int32 [tokens]
                                                            offsets    [0     3   5       9]  int64 [rows + 1]

Nothing is padded; row i is `input_ids[offsets[i]:offsets[i + 1]]`. A table that can't be trusted is refused
with the line that is wrong, because a mistaken guess about texts or labels would only show as a poor score.
"""

import csv
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import platformdirs
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int8, Int32, Int64
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rankwise.errors import RankwiseError

if TYPE_CHECKING:
    import transformers  # for its types alone: the grid's own process reads tasks and needs no tokenizer

CACHE_FORMAT = 1
"""Part of every cache key; raise it when what `encode` stores changes."""
BATCH = 1000
"""Rows tokenised at a time: bounds the memory of the tokenizer's own objects."""
SUFFIXES = {
    ".csv": "CSV",
    ".tsv": "TSV",
    ".jsonl": "JSONL",
    ".ndjson": "JSONL",
    ".json": "JSONL",
    ".parquet": "Parquet",
}
FOREIGN = {
    b"PK\x03\x04": "a zip or Excel file",
    b"\x1f\x8b": "a gzip file",
    b"ARROW1": "an Arrow file",
    b"%PDF": "a PDF",
}
"""First bytes of files that people do hand over, but which hold no table this reads."""


@dataclass(frozen=True)
class Rows:
    """Labelled texts of one split.

    Attributes:
        text: one text a row.
        text_pair: the second text of each row, where the task has pairs.
        labels: class ids, or None for prediction.
        idx: the row's identity: what predictions.parquet calls idx.
    """

    text: list[str]
    text_pair: list[str] | None
    labels: Int64[np.ndarray, "rows"] | None
    idx: Int64[np.ndarray, "rows"]

    def __len__(self) -> int:
        return len(self.text)

    def select(self, rows: Int64[np.ndarray, "chosen"]) -> "Rows":
        """The rows of these numbers, in this order."""
        return Rows(
            text=[self.text[row] for row in rows],
            text_pair=None if self.text_pair is None else [self.text_pair[row] for row in rows],
            labels=None if self.labels is None else self.labels[rows],
            idx=self.idx[rows],
        )


@dataclass(frozen=True)
class Encoded:
    """Token ids of one split, all rows end to end.

    Attributes:
        input_ids: row i is input_ids[offsets[i]:offsets[i + 1]].
        offsets: where each row begins, and the end of the last.
        token_type_ids: which text of a pair a token belongs to; only where the tokenizer makes them.
        labels: class ids, or None for prediction.
        idx: the rows' identities.
        n_truncated: texts (or pairs) that were longer than the limit when the split was encoded.
    """

    input_ids: Int32[np.ndarray, "tokens"]
    offsets: Int64[np.ndarray, "bounds"]
    token_type_ids: Int8[np.ndarray, "tokens"] | None
    labels: Int64[np.ndarray, "rows"] | None
    idx: Int64[np.ndarray, "rows"]
    n_truncated: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int64[np.ndarray, "rows"]:
        """Tokens of each row."""
        return np.diff(self.offsets)

    def select(self, rows: Int64[np.ndarray, "chosen"]) -> "Encoded":
        """The rows of these numbers, in this order."""
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
        )


@dataclass(frozen=True)
class Table:
    """Columns of one file, and how to name its rows to a person.

    Attributes:
        name: of the file, for messages.
        columns: name → values, one a row.
        lines: line each row begins at; None where the file has none (Parquet), then rows are counted from 1.
    """

    name: str
    columns: Mapping[str, Sequence[Any] | pa.ChunkedArray]
    lines: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def column(self, name: str, flag: str) -> list[Any]:
        """Values of a column as Python objects.

        Raises:
            RankwiseError: there is no such column; the sentence says which `flag` names another.
        """
        if name not in self.columns:
            raise RankwiseError(
                f"{self.name} has no column {name!r}. Its columns: {', '.join(self.columns)}. "
                f"Say which with {flag}."
            )
        values = self.columns[name]
        return values.to_pylist() if isinstance(values, pa.ChunkedArray) else list(values)  # pyright: ignore[reportAttributeAccessIssue]

    def where(self, rows: Sequence[int]) -> str:
        """`line 7` or `lines 7, 9, 12 and 40 more`, for a message."""
        unit = "row" if self.lines is None else "line"
        shown = [str(row + 1 if self.lines is None else self.lines[row]) for row in rows[:5]]
        more = f" and {len(rows) - 5:,} more" if len(rows) > 5 else ""
        return f"{unit}{'s' if len(rows) > 1 else ''} {', '.join(shown)}{more}"


def cache_folder() -> Path:
    """Where fetched and computed files of this user are kept."""
    return platformdirs.user_cache_path("rankwise")


# ── Tables ────────────────────────────────────────────────────────────────────────────────────


def read_table(path: Path | str) -> Table:
    """Reads a CSV, TSV, JSONL or Parquet file whose content agrees with its name.

    Cells of CSV and TSV stay strings: nothing is guessed about `007`, `true` or `NA`.

    Args:
        path: `.csv` (commas or semicolons), `.tsv`, `.jsonl`, `.parquet`; for other names the content decides.

    Raises:
        RankwiseError: the file is missing, empty, another kind than its name says, not UTF-8, or malformed.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RankwiseError(_unreadable(path, error)) from error
    if not content.removeprefix(b"\xef\xbb\xbf").strip():
        raise RankwiseError(f"{path} is empty.")
    kind = _kind(path, content)
    if kind == "Parquet":
        return _parquet(path.name, content)
    text = _decode(path.name, content)
    table = _jsonl(path.name, text) if kind == "JSONL" else _delimited(path.name, text, kind)
    if not len(table):
        raise RankwiseError(f"{path.name} has a header and no rows.")
    return table


def _unreadable(path: Path, error: OSError) -> str:
    if path.is_dir():
        return f"{path} is a folder; a table is one CSV, TSV, JSONL or Parquet file."
    if not isinstance(error, FileNotFoundError):
        return f"{path} can't be read: {error.strerror}."
    if not path.parent.is_dir():
        return f"There is no file {path}: the folder {path.parent} doesn't exist."
    tables = sorted(file.name for file in path.parent.iterdir() if file.suffix.lower() in SUFFIXES)
    close = get_close_matches(path.name, tables, n=3, cutoff=0.5)
    if close:
        return f"There is no file {path}. Nearest in that folder: {', '.join(close)}."
    return f"There is no file {path}. Tables in that folder: {', '.join(tables[:8]) or 'none'}."


def _kind(path: Path, content: bytes) -> str:
    """The kind its name says, once the first bytes don't contradict it."""
    for start, foreign in FOREIGN.items():
        if content.startswith(start):
            raise RankwiseError(
                f"{path.name} is {foreign} by its content; export it as CSV, TSV, JSONL or Parquet."
            )
    first_line = content.lstrip(b"\xef\xbb\xbf\r\n\t ").splitlines()[0]
    if content.startswith(b"PAR1"):
        found = "Parquet"
    elif first_line.startswith(b"{") and first_line.rstrip().endswith(b"}"):
        found = "JSONL"
    else:
        found = "TSV" if b"\t" in first_line and b"," not in first_line else "CSV"
    named = SUFFIXES.get(path.suffix.lower(), found)
    if named == "JSONL" and first_line.startswith(b"["):
        raise RankwiseError(f"{path.name} holds one JSON array; write one object a line instead (JSONL).")
    # A broken first line of JSONL and a TSV with one column are for their readers to judge, with the line.
    if (
        named == found
        or (named == "JSONL" and first_line.startswith(b"{"))
        or (named == "TSV" and found == "CSV")
    ):
        return named
    raise RankwiseError(
        f"{path.name} isn't {named}: by its content it is {found} (it begins with "
        f"{first_line[:30].decode(errors='replace')!r}). Give it the suffix of what it is."
    )


def _decode(name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise RankwiseError(
                f"{name} is UTF-16, not UTF-8. Convert it: iconv -f UTF-16 -t UTF-8 {name}."
            ) from error
        if b"\0" in content[:4096]:
            raise RankwiseError(
                f"{name} isn't text, so it isn't UTF-8 either: byte 0x{error.object[error.start]:02x} at {error.start}. "
                "Export it as CSV, TSV, JSONL or Parquet."
            ) from error
        line = error.object.count(b"\n", 0, error.start) + 1
        raise RankwiseError(
            f"{name} isn't UTF-8: byte 0x{error.object[error.start]:02x} on line {line}. Save it as UTF-8, "
            f"or convert it: iconv -f LATIN1 -t UTF-8 {name} (if Latin-1 is what it is)."
        ) from error


def _parquet(name: str, content: bytes) -> Table:
    try:
        table = pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        raise RankwiseError(f"{name} is a damaged Parquet file: {str(error).splitlines()[0]}") from error
    if not table.num_rows:
        raise RankwiseError(f"{name} has columns and no rows.")
    return Table(name, dict(zip(table.column_names, table.columns, strict=True)))


def _jsonl(name: str, text: str) -> Table:
    lines, objects = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise RankwiseError(f"{name} line {number} isn't JSON: {error}.") from error
        if not isinstance(row, dict):
            raise RankwiseError(f"{name} line {number} isn't a JSON object: {line.strip()[:40]!r}.")
        lines.append(number)
        objects.append(row)
    columns = {
        key: [row.get(key) for row in objects] for key in dict.fromkeys(key for row in objects for key in row)
    }
    return Table(name, columns, lines)


def _delimited(name: str, text: str, kind: str) -> Table:
    first_line = text.lstrip("\r\n").split("\n", 1)[0]
    delimiter = "\t" if kind == "TSV" else max(",;", key=first_line.count)  # max takes the comma on a tie
    records = _records(name, text, delimiter)
    _, header = next(records)
    header = [column.strip() for column in header]
    twice = next((column for column in header if header.count(column) > 1), None)
    if twice is not None:
        raise RankwiseError(f"{name} has two columns named {twice!r}; rename one.")
    lines, rows = [], []
    for line, row in records:
        if len(row) != len(header):
            raise RankwiseError(
                f"{name} line {line} has {len(row)} fields where the header has {len(header)}. "
                f"Put quotes around texts that hold a {'tab' if kind == 'TSV' else repr(delimiter)}."
            )
        lines.append(line)
        rows.append(row)
    columns = {column: [row[i] for row in rows] for i, column in enumerate(header)}
    return Table(name, columns, lines)


def _records(name: str, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Each record that isn't a blank line, with the line it begins at."""
    csv.field_size_limit(1 << 30)  # the default refuses texts of 128 KB
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
    begins = 1
    try:
        for record in reader:
            if record:
                yield begins, record
            begins = reader.line_num + 1
    except csv.Error as error:
        raise RankwiseError(
            f"{name} line {begins} can't be read: {error}. "
            "A quote inside a quoted text is written twice, and each opened quote is closed."
        ) from error


# ── Token ids ─────────────────────────────────────────────────────────────────────────────────


def encode(
    rows: Rows, tokenizer: "transformers.PreTrainedTokenizerBase", max_length: int, cache: Path | None = None
) -> Encoded:
    """Token ids of rows, truncated (the longer text of a pair first) and never padded.

    Args:
        rows: texts or pairs.
        tokenizer: fast or slow; truncation and padding set in its own files are overridden.
        max_length: tokens a row may have, special tokens included.
        cache: folder whose `tokens/` keeps encoded splits. None tokenises anew.

    Raises:
        RankwiseError: the limit leaves no room for text, or a text gives no tokens at all.
    """
    special = tokenizer.num_special_tokens_to_add(pair=rows.text_pair is not None)
    if max_length <= special:
        raise RankwiseError(
            f"--max-length {max_length} leaves no room for text beside {special} special tokens."
        )
    file = (
        None if cache is None else cache / "tokens" / f"{_cache_key(rows, tokenizer, max_length)}.safetensors"
    )
    tokens = None if file is None else _read_tokens(file, len(rows))
    if tokens is None:
        tokens = _tokenise(rows, tokenizer, max_length)
        if file is not None:
            _write_tokens(file, tokens)
    encoded = replace(tokens, labels=rows.labels, idx=rows.idx)
    if len(encoded) and not encoded.lengths.all():
        empty = int(np.argmin(encoded.lengths))
        raise RankwiseError(
            f"Row {rows.idx[empty]} gives no tokens with this tokenizer: {rows.text[empty][:40]!r}."
        )
    return encoded


def _tokenise(rows: Rows, tokenizer: "transformers.PreTrainedTokenizerBase", max_length: int) -> Encoded:
    ids: list[np.ndarray] = [np.empty(0, np.int32)]
    types: list[np.ndarray] = [np.empty(0, np.int8)]
    n_truncated = 0
    lengths: list[int] = []
    for start in range(0, len(rows), BATCH):
        texts = rows.select(np.arange(start, min(start + BATCH, len(rows))))
        batch = _call(texts, tokenizer)
        too_long = [row for row, row_ids in enumerate(batch["input_ids"]) if len(row_ids) > max_length]
        if (
            too_long
        ):  # only these are tokenised again: counting them is then the same for fast and slow tokenizers
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
    """SHA-256 over all that token ids depend on."""
    from transformers import PreTrainedTokenizerFast

    if isinstance(tokenizer, PreTrainedTokenizerFast):
        vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())
        del vocabulary["truncation"], vocabulary["padding"]  # left over from whatever call came last
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
    """One safetensors file that appears whole; of two processes the last one wins, with equal tokens."""
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
    """What `_write_tokens` wrote, or None if it isn't there or isn't whole."""
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
