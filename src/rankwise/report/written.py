"""What language models write for the same prompts of the validation rows, one method beside the other."""

from dataclasses import dataclass
from typing import Any

from rankwise.errors import RankwiseError
from rankwise.report.cells import Cells, Run

REFERENCES = 3
"""References shown of a prompt."""


@dataclass(frozen=True)
class Written:
    """A prompt for which methods write different texts.

    Attributes:
        task: its task's name.
        idx: the number of its row.
        prompt: as people read it.
        references: some of those that the rows have.
        texts: method → the text that the first of its seeds wrote.
    """

    task: str
    idx: int
    prompt: str
    references: tuple[str, ...]
    texts: dict[str, str]


def written(cells: Cells) -> tuple[list[Written], list[str]]:
    """Find the prompts of each task for which two methods or more wrote a text, and not all the same.

    Returns:
        Them, in the order of the rows; and a sentence for each file that is damaged.
    """
    found: list[Written] = []
    notes: list[str] = []
    for task in dict.fromkeys(task for task, _ in cells):
        methods = {method: next(iter(runs.values())) for (of, method), runs in cells.items() if of == task}
        found += _of_task(task, methods, notes)
    return found, notes


def _of_task(task: str, methods: dict[str, Run], notes: list[str]) -> list[Written]:
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    texts: dict[tuple[int, str], dict[str, str]] = {}
    for method, run in methods.items():
        try:
            stored = run.folder.read_texts()
        except RankwiseError as error:
            notes.append(f"What it wrote isn't shown: {error}")
            continue
        for one in stored:
            key = (one["idx"], one["prompt"])
            rows.setdefault(key, one)
            texts.setdefault(key, {})[method] = one["text"]
    return [
        Written(task, idx, prompt, tuple(row["references"][:REFERENCES]), texts[idx, prompt])
        for (idx, prompt), row in rows.items()
        if len(set(texts[idx, prompt].values())) > 1
    ]
