"""Files and folders: where caches are kept, whether a place can be written, and writes that a reader sees whole or not at all."""

import contextlib
import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import platformdirs

from rankwise.errors import RankwiseError, first_line

DEEPEST = 100
"""JSON nested deeper than this many levels is refused. Without a limit Python's recursion limit would decide."""
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
"""How the address of an object store begins, where a path has taken two slashes for one."""
RERUN = "Remove its folder to run it again."
"""What to do about a damaged file of a run."""


def cache_folder() -> Path:
    """Return the folder that keeps this user's fetched and computed files."""
    return platformdirs.user_cache_path("rankwise")


def check_place(out: Path, folder: Path, kind: str) -> None:
    """Check that files can be written to a folder, which needn't exist yet.

    Args:
        out: the file or folder to be written, for the message.
        folder: `out` itself, or the folder that it lies in.
        kind: `file` or `folder`, for the message.

    Raises:
        RankwiseError: they can't be.
    """
    _refuse_address(out)
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise RankwiseError(
            f"{out} can't be written: {place} takes no files. Name another {kind} with `out=`."
        )


def check_folder(out: Path, source: Path, foreign: str) -> None:
    """Check that what is made from an adapter may be written to a folder. Writes nothing.

    Args:
        out: the folder; it needn't exist. Files of the same names will be replaced.
        source: the adapter's folder or file.
        foreign: name of a file that doesn't belong beside what is to be written.

    Raises:
        RankwiseError: `out` is the source itself, holds a run or the foreign file, or can't be written.
    """
    if out.exists() and out.samefile(source):
        raise RankwiseError(f"{out} holds the adapter itself. Name another folder with `out=`.")
    for name in (foreign, "result.json"):
        if (out / name).exists():
            what = "a run" if name == "result.json" else f"something else ({name})"
            raise RankwiseError(
                f"{out} holds {what}, which would be spoilt. Name another folder with `out=`."
            )
    check_place(out, out, "folder")


def make_folder(path: Path) -> None:
    """Make a folder that can be written to.

    Raises:
        RankwiseError: that isn't possible.
    """
    _refuse_address(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink(missing_ok=True)  # another machine's process may have the same number
    except OSError as error:
        raise RankwiseError(
            f"{path} can't be written: {error.strerror or error}. Give another folder with `out=`."
        ) from None


def _refuse_address(path: Path) -> None:
    if found := ADDRESS.match(str(path)):
        raise RankwiseError(
            f"`out=` takes a folder of this machine, not an address ({found[0]}…). Name one, or where the storage is mounted."
        )


def damaged(file: Path, why: object, remedy: str = RERUN) -> RankwiseError:
    """Return the error for a file that is missing or isn't what was written there."""
    if not file.exists():
        return RankwiseError(f"{file} is missing. {remedy}")
    return RankwiseError(f"{file} is damaged ({first_line(why)}). {remedy}")


def parse_json(text: str | bytes, *, constant: Callable[[str], Any] | None = None) -> Any:
    """Read one JSON value that anybody may have written.

    Args:
        text: UTF-8 where it is bytes.
        constant: what becomes of `NaN`, `Infinity` and `-Infinity`, which Python writes and JSON doesn't have. Default: they are refused.

    Raises:
        ValueError: saying what is wrong: not UTF-8, not JSON, deeper than `DEEPEST`, a name twice in one object, or a number too large
            for a float.
    """
    text = text.decode("utf-8") if isinstance(text, bytes) else text
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_float=_float, parse_constant=constant or _no_constant
        )
    except RecursionError:
        raise _too_deep() from None
    if text.count("[") + text.count("{") > DEEPEST and _deeper(value):
        raise _too_deep()
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{twice!r:.60} is there twice")
    return found


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits:.20} is too large for a number")
    return value


def _no_constant(word: str) -> float:
    raise ValueError(f"{word} is no number")


def _too_deep() -> ValueError:
    return ValueError(f"nested deeper than {DEEPEST} levels")


def _deeper(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        level = [
            part
            for whole in level
            if isinstance(whole, dict | list)
            for part in (whole.values() if isinstance(whole, dict) else whole)
        ]
    return any(isinstance(part, dict | list) for part in level)


def read_json(file: Path, remedy: str = RERUN) -> dict[str, Any]:
    """Read a JSON object. `NaN` and `Infinity` become None.

    Raises:
        RankwiseError: the file is missing or damaged; `remedy` ends the message.
    """
    try:
        document = parse_json(file.read_bytes(), constant=lambda word: None)
    except (OSError, ValueError) as error:
        raise damaged(file, error, remedy) from None
    if not isinstance(document, dict):
        raise damaged(file, "not a JSON object", remedy)
    return document


def append_lines(file: Path, lines: list[dict[str, Any]]) -> None:
    """Add one line of JSON for each entry."""
    with naming(file), file.open("a", encoding="utf-8") as opened:
        opened.writelines(json.dumps(line) + "\n" for line in lines)


def read_lines(file: Path, what: str) -> list[dict[str, Any]]:
    """Read lines of JSON that have a whole number as `step`. A last line without an end is left out, since a kill may have cut it short.

    Raises:
        RankwiseError: another line is damaged; `what` names what it should be.
    """
    entries = []
    for number, line in enumerate(whole_lines(file), start=1):
        entry = step_line(line)
        if entry is None:
            raise damaged(file, f"line {number} is no {what}")
        entries.append(entry)
    return entries


def whole_lines(file: Path) -> list[bytes]:
    """Return the lines of a log, without a last one that has no end; none where there is no log."""
    return file.read_bytes().split(b"\n")[:-1] if file.is_file() else []


def step_line(line: bytes) -> dict[str, Any] | None:
    """Return a line of a log, or None where it is no JSON object with a whole number as `step`."""
    try:
        entry = parse_json(line, constant=float)
    except ValueError:
        return None
    step = entry.get("step") if isinstance(entry, dict) else None
    fits = isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 2**53
    return entry if fits else None


def write_json(file: Path, document: dict[str, Any]) -> None:
    """Write a JSON object as `write` does.

    Raises:
        RankwiseError: a string in it isn't Unicode text: it holds half of a surrogate pair.
    """
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        found = text[max(0, error.start - 20) : error.end].rpartition('"')[2]
        raise RankwiseError(
            f"{found!r} can't be stored: it ends in half of a character. Rename the file, column or label."
        ) from None
    write(file, content)


def write_yaml(file: Path, comment: str, options: dict[str, Any]) -> None:
    """Write options as YAML, as `write` does, below a line of comment."""
    import yaml

    text = yaml.safe_dump(options, sort_keys=False, allow_unicode=True, default_flow_style=None, width=1000)
    write(file, f"# {comment}\n{text}".encode())


def is_text(text: str) -> bool:
    """Return whether UTF-8 can hold a text. Halves of surrogate pairs come from names and data in other encodings."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def write(file: Path, content: bytes) -> None:
    """Replace a file in one step: a reader finds the old content or the new, even after a crash."""
    with replacing(file) as partial:
        partial.write_bytes(content)


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Give a `with` block a name to write to; what was written there then takes the file's place, flushed to disk.

    Where the block fails nothing is left of it, and the old file stays. An `OSError` gets the file's name.
    """
    partial = file.with_name(f"{file.name}.partial")
    try:
        with naming(file):
            yield partial
            flush(partial)
            partial.replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # not every file system can flush a folder
        flush(file.parent)


@contextlib.contextmanager
def naming(file: Path) -> Iterator[None]:
    """Give an `OSError` in a `with` block the name of the file that it is about. The error of a full disk has none."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(file)
        raise


def flush(path: Path) -> None:
    """Flush a file or folder from the system's cache to disk."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ── Measured numbers that are kept, and checksums ─────────────────────────────────────────────

LOCK_SECONDS = 60.0
"""Longest wait for another process that measures the same."""


def remembered(
    file: Path | None, key: str, measure: Callable[[], float], *, largest: float = math.inf
) -> float:
    """Return a number that is measured once and then kept in a file, for every process of this user.

    The file only saves time. Where it can't be read, locked or written, or holds no such number, the number is measured anew.

    Args:
        file: JSON object, key → number; None keeps nothing.
        key: names the number.
        measure: returns it.
        largest: upper limit. A stored number above it, or not above 0, is measured anew.
    """
    if file is None:
        return measure()
    from filelock import FileLock  # slow to import

    with contextlib.ExitStack() as lock:
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            # fails at once where nothing can be written; a lock would be tried again and again
            file.with_suffix(".lock").touch()
            lock.enter_context(FileLock(file.with_suffix(".lock"), timeout=LOCK_SECONDS))
        known = _numbers(file)
        if not 0 < known.get(key, 0) <= largest:
            known[key] = measure()
            with contextlib.suppress(OSError):
                write(file, json.dumps(known, indent=1).encode())
    return known[key]


def _numbers(file: Path) -> dict[str, float]:
    """Return the numbers in a JSON object, and none where there is no such file."""
    try:
        known = parse_json(file.read_bytes())
    except (OSError, ValueError):
        return {}
    found = known.items() if isinstance(known, dict) else ()
    return {key: value for key, value in found if isinstance(value, int | float) and abs(value) < 1e300}


SUMS = "SHA256SUMS"
"""Name of the file of checksums in a folder, in the format of the command sha256sum."""


def write_sums(folder: Path) -> None:
    """Write the SHA-256 of every file in a folder beside them."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    write(folder / SUMS, "".join(f"{_sha256(file)}  {file.name}\n" for file in files).encode())


def check_sums(folder: Path) -> None:
    """Check that a folder's files are those that `write_sums` found there.

    Raises:
        OSError: a file is missing.
        ValueError: a file has changed.
    """
    lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    sums = {name: sha256 for sha256, _, name in (line.partition("  ") for line in lines)}
    for name in sorted(sums.keys() | {file.name for file in folder.iterdir()} - {SUMS}):
        if Path(name).name != name or _sha256(folder / name) != sums.get(name):
            raise ValueError(f"{name!r:.80} isn't what was written there")


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
