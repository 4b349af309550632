"""What rows of a language model ask for: prompts, and the references of each; the tasks e2e and gsm8k as their files have them."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankwise.errors import RankwiseError
from rankwise.tasks import registry
from rankwise.tasks.generation_scores import exact
from rankwise.tasks.load import load_split
from rankwise.tasks.prompts import Prompt, of_rows, of_table
from rankwise.tasks.table import Table
from rankwise.tasks.task import Task

SAID = [{"role": "user", "content": "how many?"}, {"role": "assistant", "content": "two and two\n#### 4"}]


@pytest.fixture
def data(tmp_path) -> Path:
    e2e, gsm8k = tmp_path / "e2e", tmp_path / "gsm8k"
    e2e.mkdir()
    gsm8k.mkdir()
    pq.write_table(pa.table({"prompt": ["a : b"], "completion": ["It is b ."]}), e2e / "train.parquet")
    pq.write_table(pa.table({"prompt": ["c", "d"], "references": [["x", "y"], ["z"]]}), e2e / "test.parquet")
    pq.write_table(pa.table({"messages": [SAID]}), gsm8k / "test.parquet")
    return tmp_path


def test_a_prompt_with_several_references_is_a_row_for_each(data):
    train, _ = load_split(registry.named("e2e"), "train", data)
    assert (train.text, train.text_pair) == (["a : b\n"], ["It is b ."])
    test, _ = load_split(registry.named("e2e"), "validation", data)
    assert (test.text, test.text_pair) == (["c\n", "c\n", "d\n"], ["x", "y", "z"])
    assert np.unique(test.idx).tolist() == [0, 1, 2]
    assert [(row.prompt, row.references) for row in of_rows(test)] == [
        (Prompt("c\n", chat=False), ["x"]),
        (Prompt("c\n", chat=False), ["y"]),
        (Prompt("d\n", chat=False), ["z"]),
    ]


def test_the_assistants_last_message_is_the_reference(data):
    task = registry.named("gsm8k")
    rows, _ = load_split(task, "validation", data)
    (row,) = of_rows(rows)
    assert row.prompt is not None
    assert (json.loads(row.prompt.text), row.references) == (SAID[:1], ["two and two\n#### 4"])
    assert of_table(Table("t", {"messages": [SAID, SAID[:1]]}), task)[0] == row
    assert of_table(Table("t", {"messages": [SAID, SAID[:1]]}), task)[1].references == []
    assert exact(["so it is 4."], [row.references], task.answer).tolist() == [True]


@pytest.mark.parametrize(
    ("columns", "references"),
    [
        ({}, []),
        ({"completion": ["p"]}, ["p"]),
        ({"completion": ["p"], "references": [["q", "", "r"]]}, ["q", "r"]),
        ({"references": ["q"]}, ["q"]),
        ({"references": [None]}, []),
    ],
)
def test_references_are_the_lists_or_else_the_completion(columns, references):
    (row,) = of_table(Table("t", {"prompt": ["a"], **columns}), registry.named("e2e"))
    assert (row.prompt, row.references, row.reason) == (Prompt("a\n", chat=False), references, None)


def test_a_row_without_a_prompt_says_why():
    task: Task = registry.named("e2e")
    cells = ["", None, [{"role": "user"}], 3.5, [{"role": "user", "content": "hi"}]]
    found = of_table(Table("t", {"prompt": cells}), task)
    assert [row.prompt is None for row in found] == [True, True, True, False, False]
    assert found[0].reason == "no text in 'prompt'"
    assert found[2].reason is not None
    assert "message 1 (user) has no content" in found[2].reason
    with pytest.raises(RankwiseError, match="has no column 'prompt'"):
        of_table(Table("t", {"text": ["a"]}), task)
