"""Prompts that a language model writes a text for, and the references that such a text is scored against.

prompt, completion            the completion is the one reference
prompt, references            several, as a list, or one text
messages                      the last message, where it is the assistant's; the prompt is what comes before
text                          none: the whole text is the prompt
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from rankwise.tasks import messages
from rankwise.tasks.cells import OddCell, is_empty, plain, text_of
from rankwise.tasks.encoding import Rows
from rankwise.tasks.table import Table
from rankwise.tasks.task import Task

REFERENCES = "references"
"""Column that holds several completions of a prompt."""


class Prompt(NamedTuple):
    """What a text is written for.

    Attributes:
        text: as it stands before a completion in training; a conversation as `messages.dump` writes it.
        chat: it is a conversation.
    """

    text: str
    chat: bool


@dataclass(frozen=True)
class Asked:
    """What a row asks for.

    Attributes:
        prompt: None where there is none.
        references: of the text; empty where there are none.
        reason: why there is no prompt.
    """

    prompt: Prompt | None
    references: list[str] = field(default_factory=list)
    reason: str | None = None


def of_rows(rows: Rows) -> list[Asked]:
    """Return the prompts and references of a language model's rows."""
    assert rows.learned is not None
    chat, asked = rows.learned.chat, []
    for text, completion in zip(rows.text, rows.text_pair or [None] * len(rows), strict=True):
        if completion is None:
            asked.append(_of_conversation(text) if chat else Asked(Prompt(text, chat=False)))
        else:
            said = _said(messages.load(completion)) if chat else completion.strip()
            asked.append(Asked(Prompt(text, chat), [said]))
    return asked


def of_table(table: Table, task: Task) -> list[Asked]:
    """Return what each row of a table asks for. Completions and references may be missing.

    Raises:
        RankwiseError: there is no column of prompts.
    """
    cells = map(plain, table.column(task.text, "prompt" if task.text_pair else "text"))
    source = next((name for name in (REFERENCES, task.text_pair) if name in table.columns), None)
    answers = [None] * len(table) if source is None else map(plain, table.column(source, source))
    return [_of_cells(cell, answer, task) for cell, answer in zip(cells, answers, strict=True)]


def _of_cells(cell: Any, answer: Any, task: Task) -> Asked:
    if is_empty(cell) or cell == []:
        return Asked(None, reason=f"no text in {task.text!r}")
    chat = isinstance(cell, list)
    try:
        text = messages.dump(cell) if chat else text_of(cell) + task.separator
    except OddCell as odd:
        return Asked(None, reason=f"{task.text!r} holds {odd.value!r:.40}; {odd.expected}")
    asked = _of_conversation(text) if chat and task.text_pair is None else Asked(Prompt(text, chat))
    try:
        return replace(asked, references=_references(answer) or asked.references)
    except OddCell as odd:
        return Asked(None, reason=f"a reference is {odd.value!r:.40}; {odd.expected}")


def _of_conversation(text: str) -> Asked:
    """Return a conversation up to the assistant's last message, which is the reference; all of it where somebody else has the last word."""
    conversation = messages.load(text)
    if len(conversation) == 1 or conversation[-1]["role"] != "assistant":
        return Asked(Prompt(text, chat=True))
    before = json.dumps(conversation[:-1], ensure_ascii=False)
    return Asked(Prompt(before, chat=True), [_said(conversation[-1:])])


def _said(conversation: messages.Messages) -> str:
    """Return what the assistant says first in messages."""
    return str(conversation[0]["content"]).strip()


def _references(cell: Any) -> list[str]:
    """Return the references that a cell holds: texts, or one message of the assistant.

    Raises:
        OddCell: it holds something else.
    """
    if is_empty(cell):
        return []
    if isinstance(cell, list) and cell and isinstance(cell[0], dict):
        return [_said(messages.load(messages.dump(cell)))]
    texts = [text_of(one).strip() for one in (cell if isinstance(cell, list) else [cell])]
    return [text for text in texts if text]


def one_completion_a_row(table: Table, task: Task) -> Table:
    """Return a table of prompts with lists of references as one of prompts and completions; any other as it is."""
    pair = task.text_pair
    if task.loss_on is None or pair is None or pair in table.columns or REFERENCES not in table.columns:
        return table
    prompts, cells = table.column(task.text, "prompt"), map(plain, table.column(REFERENCES, REFERENCES))
    several: list[Sequence[Any]] = [
        cell if isinstance(cell, list) and cell else [cell or ""] for cell in cells
    ]
    rows = [row for row, some in enumerate(several) for _ in some]
    return replace(
        table,
        columns={task.text: [prompts[row] for row in rows], pair: [one for some in several for one in some]},
        lines=[row + 1 if table.lines is None else table.lines[row] for row in rows],
    )
