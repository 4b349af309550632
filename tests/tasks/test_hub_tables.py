"""Rows from the Hugging Face hub, and from folders that the `datasets` library loads."""

import sys
import types
from pathlib import Path

import pytest

from rankwise.config import RunConfig, TableOptions
from rankwise.errors import RankwiseError
from rankwise.tasks.load import load_dataset
from rankwise.tasks.rows import read_rows


class HubSplit(dict):
    column_names = property(list)


def test_the_hub_is_asked_without_a_folder(monkeypatch):
    def from_hub(path, name, split):
        assert (path, name) == ("nyu-mll/glue", "rte")
        n = {"train": 5, "validation": 3}[split]
        columns = {"sentence1": ["a"] * n, "sentence2": ["b"] * n, "label": [1] * n, "idx": list(range(n))}
        return HubSplit(columns)

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=from_hub))
    dataset = load_dataset(RunConfig(task="rte"))
    assert (len(dataset.train), len(dataset.validation["validation"])) == (5, 3)


def test_an_unreachable_hub_points_to_a_folder(monkeypatch):
    def from_hub(*_, **__):
        raise ConnectionError("no route to host\nand much more")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=from_hub))
    with pytest.raises(RankwiseError, match=r"\(no route to host\)\. Give a folder .* with `data=`\.$"):
        load_dataset(RunConfig(task="rte"))


@pytest.fixture
def dataset_folder(tmp_path, monkeypatch) -> Path:
    """What `datasets` loads without the hub: a folder of files by split, with classes by name."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "films"
    folder.mkdir()
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    for split, n in (("train", 12), ("validation", 4), ("test", 6)):
        rows = {"text": [f"{split} {i}" for i in range(n)], "label": [i % 2 if i else -1 for i in range(n)]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / f"{split}.parquet"))
    return folder


def test_a_data_set_is_loaded_with_its_splits_and_class_names(dataset_folder):
    dataset = load_dataset(RunConfig(table=TableOptions(dataset=str(dataset_folder))))
    assert (dataset.task.name, dataset.task.label_names) == ("films", ("bad", "good"))
    assert dataset.train.text == [f"train {i}" for i in range(1, 12)]  # −1 is no label
    assert dataset.train.labels.tolist() == [i % 2 for i in range(1, 12)]
    assert dataset.validation["validation"].text == [f"validation {i}" for i in range(1, 4)]
    other = load_dataset(RunConfig(table=TableOptions(dataset=str(dataset_folder), validation_split="test")))
    assert len(other.validation["validation"]) == 5
    with pytest.raises(
        RankwiseError,
        match="has no split 'dev'. It has: train, validation, test. Say which with `validation_split=`",
    ):
        load_dataset(RunConfig(table=TableOptions(dataset=str(dataset_folder), validation_split="dev")))


def test_an_unreachable_data_set_is_reported(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        RankwiseError, match=r"The data set nobody/nothing can't be loaded \(.*\)\. Without the hub"
    ):
        load_dataset(RunConfig(table=TableOptions(dataset="nobody/nothing")))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dataset": "a/b", "train_file": (Path("t.csv"),)}, "Both `dataset=a/b` and the file t.csv"),
        ({"dataset_config": "x"}, "`dataset_config=` needs a data set"),
        (
            {"dataset": "a/b", "validation": Path("v.csv")},
            "Name the split of a data set with `validation_split=`",
        ),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, says):
    with pytest.raises(RankwiseError, match=says):
        TableOptions(**options)


@pytest.fixture
def saved(tmp_path) -> Path:
    """What `save_to_disk` writes: `one` data set, and `splits` of it."""
    import datasets

    names = datasets.ClassLabel(names=["good", "bad"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    rows = {"text": [f"text {i}" for i in range(12)], "label": [i % 2 for i in range(12)]}
    one = datasets.Dataset.from_dict(rows, features=features)
    datasets.disable_progress_bars()
    one.save_to_disk(tmp_path / "one")
    both = datasets.DatasetDict(train=one, validation=one.select(range(4)))
    both.save_to_disk(tmp_path / "splits")
    return tmp_path


def test_what_save_to_disk_wrote_is_read(saved):
    for options in (TableOptions(dataset=str(saved / "one")), TableOptions(train_file=(saved / "one",))):
        dataset = load_dataset(RunConfig(table=options))
        assert (dataset.task.name, dataset.task.label_names) == ("one", ("bad", "good"))
        rows = [dataset.train, dataset.validation["validation"]]
        assert {int(i): int(y) for part in rows for i, y in zip(part.idx, part.labels, strict=True)} == {
            i: 1 - i % 2 for i in range(12)
        }
    for options in (
        TableOptions(dataset=str(saved / "splits")),
        TableOptions(train_file=(saved / "splits",)),
    ):
        dataset = load_dataset(RunConfig(table=options))
        assert (len(dataset.train), len(dataset.validation["validation"])) == (12, 4)


def test_what_save_to_disk_wrote_is_evaluated(saved):
    task = load_dataset(RunConfig(table=TableOptions(train_file=(saved / "one",)))).task
    rows, _ = read_rows(saved / "splits" / "validation", task)
    assert rows.labels.tolist() == [1, 0, 1, 0]
    with pytest.raises(RankwiseError, match="holds the splits train, validation. Give the folder of one"):
        read_rows(saved / "splits", task)
    with pytest.raises(RankwiseError, match="is a data set that `save_to_disk` wrote"):
        load_dataset(RunConfig(table=TableOptions(train_file=(saved / "one", saved / "splits"))))


def test_text_files_of_a_folder_are_read_as_they_are_one_by_one(tmp_path, monkeypatch):
    """The `datasets` library would read 007 as 7, NA as missing, and true as a truth value."""
    folder = tmp_path / "films"
    folder.mkdir()
    lines = "text,label\n" + "".join(f"NA {i},{('007', '008', 'true')[i % 3]}\n" for i in range(30))
    for split in ("train", "test"):
        (folder / f"{split}.csv").write_text(lines)
    by_folder = load_dataset(RunConfig(table=TableOptions(dataset=str(folder), validation_split="test")))
    by_file = load_dataset(
        RunConfig(table=TableOptions(train_file=(folder / "train.csv",), validation=folder / "test.csv"))
    )
    assert by_folder.task.label_names == by_file.task.label_names == ("007", "008", "true")
    assert by_folder.train.text == by_file.train.text
    assert by_folder.train.labels.tolist() == by_file.train.labels.tolist()


def test_columns_that_are_not_asked_for_are_not_read(tmp_path):
    import datasets

    rows = {
        "text": [f"t {i}" for i in range(20)],
        "label": [i % 2 for i in range(20)],
        "image": [{"path": None, "bytes": b"no image"}] * 20,
    }
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.Value("int64"), "image": datasets.Image()}
    )
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    options = TableOptions(train_file=(tmp_path / "saved",))
    assert load_dataset(RunConfig(table=options)).task.label_names == ("0", "1")
    with pytest.raises(RankwiseError, match="column 'image' can't be read"):
        load_dataset(RunConfig(table=TableOptions(train_file=(tmp_path / "saved",), text="image")))
