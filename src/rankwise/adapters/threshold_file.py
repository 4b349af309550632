"""threshold.json beside an adapter or a model: from which probability on `predict` takes a row for a class."""

from collections.abc import Sequence
from pathlib import Path

from rankwise.errors import RankwiseError
from rankwise.files import damaged, read_json, write_json
from rankwise.tasks import threshold
from rankwise.tasks.threshold import Threshold

NAME = "threshold.json"
REMEDY = "Remove this file; predictions then go by the highest probability."


def write(folder: Path, found: Threshold) -> None:
    """Write a threshold beside what was trained.

    Raises:
        RankwiseError: the file can't be written.
    """
    try:
        write_json(folder / NAME, found.to_json())
    except OSError as error:
        raise RankwiseError(f"{folder / NAME} can't be written: {error.strerror or error}.") from None


def read(folder: Path, names: Sequence[str]) -> Threshold | None:
    """Read the threshold of a model with these outputs; None if there is none.

    Raises:
        RankwiseError: the file is damaged, or for another class.
    """
    file = folder / NAME
    if not file.is_file():
        return None
    try:
        found = threshold.from_json(read_json(file, REMEDY))
    except ValueError as error:
        raise damaged(file, str(error).splitlines()[0], REMEDY) from None
    if found.name not in names:
        raise damaged(file, f"the model has no class {found.name!r}", REMEDY)
    return found
