"""The sizes of each adapter whose ranks were found: parameters against loss increase, measured after training (`rank.curve`)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rankwise.errors import RankwiseError
from rankwise.report.cells import Cells

if TYPE_CHECKING:
    from rankwise.rank.curve import Curve  # for its type alone: a grid's own process needs no torch


@dataclass(frozen=True)
class Sizes:
    """The sizes of one run's adapter.

    Attributes:
        task: its name.
        method: its name.
        seed: of the run.
        curve: its sizes, the largest first.
    """

    task: str
    method: str
    seed: int
    curve: "Curve"


def sizes(cells: Cells) -> tuple[list[Sizes], list[str]]:
    """Read the sizes of all runs that measured them, and make a sentence for each that can't be read."""
    from rankwise.adapters import curve_file

    made, notes = [], []
    for (task, method), seeds in cells.items():
        for seed, run in seeds.items():
            try:
                curve = curve_file.read(run.folder.path)
            except RankwiseError as error:
                notes.append(f"Left out of the adapters' sizes: {error}")
                continue
            if curve is not None and curve.gain > 0:
                made.append(Sizes(task, method, seed, curve))
    return made, notes
