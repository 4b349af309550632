"""Which rows a run gets: of tasks by name, from folders, the hub or a package, and within limits."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from own_tables import glue_folder, label_of
from rankwise.config import DataOptions, RunConfig
from rankwise.errors import RankwiseError
from rankwise.tasks.load import load_dataset, load_split
from rankwise.tasks.registry import TASKS
from rankwise.tasks.splits import Dataset

SHARED = Path(__file__).parents[3] / "shared" / "data" / "glue"


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.benchmark == "GLUE"])
def test_every_glue_task_loads_from_a_folder(tmp_path, name):
    task = TASKS[name]
    folder = glue_folder(tmp_path, task, train=7, **{task.validation[0]: 5})
    dataset = load_dataset(RunConfig(task=name, data=DataOptions(data=folder)))
    assert dataset.task is task
    assert dataset.train.text[3] == f"train {task.text} 3"
    assert dataset.train.text_pair is None or dataset.train.text_pair[3] == f"train {task.text_pair} 3"
    assert dataset.train.labels.tolist() == [label_of(task, i) for i in range(7)]
    assert dataset.train.idx.tolist() == list(range(1000, 1007))
    assert {split: len(rows) for split, rows in dataset.validation.items()} == {"validation": 5}
    assert dataset.notes == (
        f"{name} here has 7 of GLUE's {task.official_train_rows:,} training rows: "
        "comparable between methods, not with published figures.",
    )


def test_mnli_has_matched_and_mismatched_validation_rows(tmp_path):
    sizes = {"train": 6, "validation_matched": 4, "validation_mismatched": 3}
    folder = glue_folder(tmp_path, TASKS["mnli"], **sizes)
    validation = load_dataset(RunConfig(task="mnli", data=DataOptions(data=folder))).validation
    assert [(split, len(rows)) for split, rows in validation.items()] == [
        ("validation", 4),
        ("validation_mismatched", 3),
    ]
    rows, _ = load_split(TASKS["mnli"], "validation", folder)
    assert rows.text == validation["validation"].text


def test_a_shard_without_a_column_is_refused(tmp_path):
    folder = glue_folder(tmp_path, TASKS["rte"], train=4, validation=3) / "rte"
    table = pq.read_table(folder / "train.parquet")
    (folder / "train.parquet").unlink()
    pq.write_table(table, folder / "train-00000-of-00002.parquet")
    pq.write_table(table.drop_columns(["label"]), folder / "train-00001-of-00002.parquet")
    with pytest.raises(RankwiseError, match="train-00001-of-00002.parquet has no column 'label'"):
        load_split(TASKS["rte"], "train", tmp_path)


def test_sharded_files_of_the_hub_are_read(tmp_path):
    folder = glue_folder(tmp_path, TASKS["rte"], train=4, validation=3)
    whole = folder / "rte" / "train.parquet"
    table = pq.read_table(whole)
    pq.write_table(table.slice(0, 3), folder / "rte" / "train-00000-of-00002.parquet")
    pq.write_table(table.slice(3), folder / "rte" / "train-00001-of-00002.parquet")
    expected, _ = load_split(TASKS["rte"], "train", folder)
    whole.unlink()
    rows, _ = load_split(TASKS["rte"], "train", folder)
    assert (rows.text, rows.text_pair, rows.labels.tolist()) == (
        expected.text,
        expected.text_pair,
        expected.labels.tolist(),
    )


@pytest.mark.skipif(not SHARED.is_dir(), reason="the GLUE folder isn't beside the checkout")
@pytest.mark.parametrize(
    ("name", "n_train", "n_validation", "positives"),
    [("sst2", 67_349, 872, 444), ("mrpc", 3_668, 408, 279), ("rte", 2_490, 277, 131)],
)
def test_the_published_splits_are_whole(name, n_train, n_validation, positives):
    dataset = load_dataset(RunConfig(task=name, data=DataOptions(data=SHARED)))
    validation = dataset.validation["validation"]
    assert (len(dataset.train), len(validation), int(validation.labels.sum())) == (
        n_train,
        n_validation,
        positives,
    )
    assert dataset.notes == ()


def test_mrpcs_test_split_can_be_asked_for(tmp_path):
    folder = glue_folder(tmp_path, TASKS["mrpc"], train=4, validation=3, test=6)
    assert len(load_split(TASKS["mrpc"], "test", folder)[0]) == 6


def test_a_missing_task_or_split_says_what_the_folder_holds(tmp_path):
    folder = glue_folder(tmp_path, TASKS["rte"], train=4)
    with pytest.raises(RankwiseError, match=r"rte/validation.parquet. .*rte holds: train.parquet"):
        load_dataset(RunConfig(task="rte", data=DataOptions(data=folder)))
    with pytest.raises(RankwiseError, match=r"mrpc/train.parquet. .* holds: rte"):
        load_dataset(RunConfig(task="mrpc", data=DataOptions(data=folder)))
    with pytest.raises(RankwiseError, match="There is no folder"):
        load_dataset(RunConfig(task="mrpc", data=DataOptions(data=folder / "no")))


def test_unlabelled_rows_are_refused(tmp_path):
    (tmp_path / "rte").mkdir()
    columns = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [-1, -1], "idx": [0, 1]}
    pq.write_table(pa.table(columns), tmp_path / "rte" / "test.parquet")
    with pytest.raises(
        RankwiseError, match="label '-1' is not one of the task's classes: entailment, not_entail"
    ):
        load_split(TASKS["rte"], "test", tmp_path)


def test_limits_take_the_same_rows_every_time(tmp_path):
    folder = glue_folder(tmp_path, TASKS["rte"], train=40, validation=9)

    def limited(**limits) -> Dataset:
        return load_dataset(
            RunConfig(task="rte", seed=limits.pop("seed", 0), data=DataOptions(data=folder, **limits))
        )

    few, more = limited(limit_train=5), limited(limit_train=12, limit_eval=4, seed=3)
    assert more.train.idx[:5].tolist() == few.train.idx.tolist()
    assert len(set(more.train.idx.tolist())) == 12
    drawn = more.validation["validation"].idx.tolist()
    assert len(set(drawn)) == 4
    assert set(drawn) < set(few.validation["validation"].idx.tolist())
    assert limited(limit_eval=4, seed=1).validation["validation"].idx.tolist() == drawn
    assert len(limited(limit_train=99, limit_eval=99).train) == 40


def test_a_limit_on_sorted_rows_keeps_both_labels():
    rows = load_dataset(RunConfig(data=DataOptions(limit_train=200, limit_eval=200)))
    for labels in (rows.train.labels, rows.validation["validation"].labels):
        assert 0.4 < labels.mean() < 0.6
