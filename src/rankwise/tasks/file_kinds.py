"""Which kind of file a table is in, by its name and its first bytes; and why a file is none that can be read."""

import os
import re
import stat
from difflib import get_close_matches
from pathlib import Path

from rankwise.errors import RankwiseError

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
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an Excel file",
    b"\x1f\x8b": "a gzip file",
    b"\xfd7zXZ\x00": "an xz file",
    b"\x28\xb5\x2f\xfd": "a Zstandard file",
    b"\x04\x22\x4d\x18": "an LZ4 file",
    b"7z\xbc\xaf\x27\x1c": "a 7z file",
    b"Rar!\x1a\x07": "a RAR file",
    b"ARROW1\0\0": "an Arrow file",
    b"\xff\xff\xff\xff": "an Arrow file",
    b"FEA1": "a Feather file",
    b"PARE": "an encrypted Parquet file",
    b"Obj\x01": "an Avro file",
    b"SQLite format 3\0": "an SQLite data base",
    b"\x89HDF\r\n": "an HDF5 file",
    b"\x93NUMPY": "a NumPy file",
    b"%PDF-": "a PDF",
}
"""First bytes of files that people pass by mistake."""
BZIP2 = re.compile(rb"BZh[1-9](1AY&SY|\x17\x72\x45\x38\x50\x90)")
"""The first bytes of a bzip2 file: text may begin with `BZh` too, but not with the number behind it."""
SAVED_DATASET = ("dataset_dict.json", "state.json")
"""The folder that `save_to_disk` of the `datasets` library writes holds one of these."""


def is_saved_dataset(path: Path) -> bool:
    """Return whether a folder was written by `save_to_disk` of the `datasets` library."""
    return any(os.path.isfile(path / name) for name in SAVED_DATASET)  # noqa: PTH113 (takes names of any length)


def check_file(path: Path) -> None:
    """Check that a path is an ordinary file.

    Raises:
        RankwiseError: it is something else, or isn't there.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
            raise RankwiseError(
                f"{path} is a device or a pipe; a table is a file, which is read more than once."
            )
    except OSError as error:
        raise unreadable(path, error) from error


def is_blank(content: bytes) -> bool:
    """Return whether a file's content is nothing but white space."""
    return not content.removeprefix(b"\xef\xbb\xbf").strip()


def no_rows(name: str, kind: str) -> RankwiseError:
    """Return the error for a file without rows."""
    has = {"JSONL": "objects without keys", "Parquet": "columns"}.get(kind, "a header")
    return RankwiseError(f"{name} has {has} and no rows.")


def unreadable(path: Path, error: OSError) -> RankwiseError:
    """Return the error for a file that can't be opened or read."""
    return RankwiseError(_unreadable(path, error))


def _unreadable(path: Path, error: OSError) -> str:
    if is_saved_dataset(path):
        return f"{path} is a data set that `save_to_disk` wrote, not one table among several. Give it alone with `dataset=`."
    if isinstance(error, IsADirectoryError):
        return f"{path} is a folder; a table is one CSV, TSV, JSONL or Parquet file."
    if not isinstance(error, FileNotFoundError):
        return f"{path} can't be read: {error.strerror}."
    if not os.path.isdir(path.parent):  # noqa: PTH112 (takes names of any length)
        return f"There is no file {path}: the folder {path.parent} doesn't exist."
    tables = sorted(file.name for file in path.parent.iterdir() if file.suffix.lower() in SUFFIXES)
    close = get_close_matches(path.name, tables, n=3, cutoff=0.5)
    if close:
        return f"There is no file {path}. Nearest in that folder: {', '.join(close)}."
    return f"There is no file {path}. Tables in that folder: {', '.join(tables[:8]) or 'none'}."


def kind_of(path: Path, content: bytes) -> str:
    """Return the kind of a file by its suffix.

    Args:
        path: of the file.
        content: its beginning, the first line that isn't blank included.

    Raises:
        RankwiseError: the first bytes contradict it.
    """
    foreign = next((kind for start, kind in FOREIGN.items() if content.startswith(start)), None)
    foreign = "a bzip2 file" if BZIP2.match(content) else foreign
    if foreign is not None:
        raise RankwiseError(
            f"{path.name} is {foreign} by its content. Decompress or export it as CSV, TSV, JSONL or Parquet."
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
    # The readers report a broken first line of JSONL with its line; a TSV with one column looks like CSV.
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


def not_utf8(name: str, content: bytes, byte: int, at: int, line: int) -> RankwiseError:
    """Return the error for a file that isn't UTF-8.

    Args:
        name: of the file.
        content: its beginning.
        byte: the first that isn't UTF-8.
        at: its place in the file.
        line: on which it stands.
    """
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return RankwiseError(f"{name} is UTF-16, not UTF-8. Convert it: iconv -f UTF-16 -t UTF-8 {name}.")
    if b"\0" in content[:4096]:
        return RankwiseError(
            f"{name} isn't text, so it isn't UTF-8 either: byte 0x{byte:02x} at {at}. "
            "Export it as CSV, TSV, JSONL or Parquet."
        )
    return RankwiseError(
        f"{name} isn't UTF-8: byte 0x{byte:02x} on line {line}. Save it as UTF-8, "
        f"or convert it: iconv -f LATIN1 -t UTF-8 {name} (if Latin-1 is what it is)."
    )
