"""Files and folders: where caches are kept, whether a place can be written, and writing so that a reader never finds half a file."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import platformdirs

from rankwise.errors import RankwiseError


def cache_folder() -> Path:
    """Where fetched and computed files of this user are kept."""
    return platformdirs.user_cache_path("rankwise")


def check_place(out: Path, folder: Path, kind: str) -> None:
    """Makes sure that files can be written to the folder that `out`, a file or folder, is or lies in; it needn't exist.

    Raises:
        RankwiseError: they can't.
    """
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise RankwiseError(
            f"{out} can't be written: {place} takes no files. Name another {kind} with --out."
        )


def check_folder(out: Path, source: Path, foreign: str) -> None:
    """Makes sure that what is made from an adapter may be written to a folder; writes nothing itself.

    Args:
        out: needn't exist; what was written there the same way before is replaced.
        source: the adapter's folder or file.
        foreign: name of a file that, with what is to be written beside it, would make a folder neither one thing nor the other.

    Raises:
        RankwiseError: it is the source itself, holds another run or what is foreign, or can't be written.
    """
    if out.exists() and out.samefile(source):
        raise RankwiseError(f"{out} holds the adapter itself. Name another folder with --out.")
    for name in (foreign, "result.json"):
        if (out / name).exists():
            what = "a run" if name == "result.json" else f"something else ({name})"
            raise RankwiseError(f"{out} holds {what}, which would be spoilt. Name another folder with --out.")
    check_place(out, out, "folder")


def make_folder(path: Path) -> None:
    """Makes a folder that can be written to.

    Raises:
        RankwiseError: it can't be.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RankwiseError(
            f"{path} can't be written: {error.strerror or error}. Give another folder with --out."
        ) from None


def damaged(file: Path, why: object, remedy: str = "Remove its folder to run it again.") -> RankwiseError:
    """The error for a file that isn't what was written there."""
    if not file.exists():
        return RankwiseError(f"{file} is missing. {remedy}")
    reason = (str(why).strip() or type(why).__name__).splitlines()[0]
    return RankwiseError(f"{file} is damaged ({reason}). {remedy}")


def read_json(
    file: Path, keys: Sequence[str] = (), remedy: str = "Remove its folder to run it again."
) -> dict[str, Any]:
    """A JSON object that has all these keys."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(file, error, remedy) from None
    if not isinstance(document, dict):
        raise damaged(file, "not a JSON object", remedy)
    missing = [key for key in keys if key not in document]
    if missing:
        raise damaged(file, f"it lacks {', '.join(missing)}", remedy)
    return document


def append_lines(file: Path, lines: list[dict[str, Any]]) -> None:
    with file.open("a", encoding="utf-8") as opened:
        opened.writelines(json.dumps(line) + "\n" for line in lines)


def read_lines(file: Path, what: str) -> list[dict[str, Any]]:
    """Lines of JSON that say their step."""
    if not file.is_file():
        return []
    entries = []
    for number, line in enumerate(file.read_bytes().split(b"\n")[:-1], start=1):
        try:
            entries.append(json.loads(line))
            entries[-1]["step"]
        except (ValueError, KeyError, TypeError):
            raise damaged(file, f"line {number} is no {what}") from None
    return entries


def write_json(file: Path, document: dict[str, Any]) -> None:
    write(file, (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())


def write(file: Path, content: bytes) -> None:
    partial = file.with_name(f"{file.name}.partial")
    with partial.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    partial.replace(file)


def flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
