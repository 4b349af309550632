"""Tasks by name, and a task that is added from outside."""

import json
from collections.abc import Iterator

import numpy as np
import pytest

from rankwise.bench.lengths import histogram
from rankwise.config import DataOptions, RunConfig
from rankwise.config_json import from_json, to_json
from rankwise.errors import RankwiseError
from rankwise.tasks import load, registry
from rankwise.tasks.encoding import Rows
from rankwise.tasks.registry import TASKS, named
from rankwise.tasks.task import Task


def squares(split: str, folder: object) -> tuple[Rows, tuple[str, ...]]:
    n = {"train": 6, "held": 4}[split]
    labels = np.arange(n, dtype=np.int64) % 2
    return Rows([f"{split} {i}" for i in range(n)], None, labels, np.arange(n)), (f"{n} rows",)


@pytest.fixture
def own() -> Iterator[Task]:
    """A task with a loader function of its own, registered for one test."""
    task = Task(
        name="squares",
        text="text",
        text_pair=None,
        label="label",
        label_names=("even", "odd"),
        metrics=("accuracy",),
        source="ours",
        validation=("held",),
        loader=squares,
        lengths={3: 10},
    )
    registry.register(task)
    yield task
    del TASKS["squares"]


def test_a_task_can_be_added_with_its_own_loader(own):
    dataset = load.load_dataset(RunConfig(task="squares", data=DataOptions(limit_train=5)))
    assert (len(dataset.train), len(dataset.validation["validation"])) == (5, 4)
    assert dataset.notes == ("6 rows", "4 rows")
    assert histogram("squares") == {3: 10}
    assert load.at_hand(own, None)


def test_a_task_that_a_run_recorded_is_found_again(own):
    recorded = from_json(Task, json.loads(json.dumps(to_json(own))))
    assert (recorded, recorded.loader) == (own, None)
    assert load.load_split(recorded, "validation")[0].text == ["held 0", "held 1", "held 2", "held 3"]


def test_a_name_is_given_once(own):
    with pytest.raises(RankwiseError, match="There is a task 'squares' already"):
        registry.register(own)


def test_a_table_named_like_a_task_is_not_that_task():
    table = Task("sst2", "text", None, "label", ("a", "b"), ("accuracy",), "sst2.csv")
    assert registry.entry(table) is None
    with pytest.raises(RankwiseError, match="sst2 is no task by name"):
        load.load_split(table, "validation")


def test_rows_of_the_hub_are_at_hand_only_in_a_folder(tmp_path):
    assert not load.at_hand(TASKS["rte"], None)
    assert load.at_hand(TASKS["rte"], tmp_path)


def test_a_misspelt_task_gets_the_nearest():
    with pytest.raises(RankwiseError, match="no task 'sst-2'. Did you mean 'sst2'?"):
        named("sst-2")
