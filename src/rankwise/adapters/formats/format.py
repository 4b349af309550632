"""What an export format is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rankwise.adapters.adapter import Adapter


def no_notes(adapter: Adapter) -> tuple[str, ...]:
    """Say nothing."""
    return ()


@dataclass(frozen=True)
class ExportFormat:
    """A form in which an adapter is written for another program.

    Attributes:
        name: as in `export(format=...)`.
        write: writes the adapter to a path: a folder, or a file where `one_file`.
        one_file: the form is a single file.
        equal_ranks: every layer is padded with zeros to the highest rank.
        notes: what whoever loads the file has to know, as sentences.
    """

    name: str
    write: Callable[[Adapter, Path], None]
    one_file: bool = False
    equal_ranks: bool = False
    notes: Callable[[Adapter], tuple[str, ...]] = no_notes
