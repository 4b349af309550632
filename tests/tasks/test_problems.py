"""Classes, sets of labels and numbers: what a table's labels are taken for, and the loss and predictions that fit."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from rankwise.config import RunConfig, TableOptions
from rankwise.errors import RankwiseError
from rankwise.tasks.load import load_dataset
from rankwise.tasks.losses import class_weights, example_losses
from rankwise.tasks.problems import PROBLEMS, of_config, problem_of
from rankwise.tasks.rows import read_rows
from rankwise.tasks.splits import Dataset
from rankwise.tasks.task import Task


def write(path: Path, lines: str) -> Path:
    path.write_text(lines, encoding="utf-8")
    return path


def load_table(*paths: Path, **options) -> Dataset:
    return load_dataset(RunConfig(table=TableOptions(train_file=paths, **options)))


def jsonl(path: Path, labels: list) -> Path:
    rows = [{"text": f"review {i}", "label": label} for i, label in enumerate(labels)]
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def labels_by_row(dataset: Dataset) -> dict[int, object]:
    splits = (dataset.train, dataset.validation["validation"])
    return {int(i): label.tolist() for rows in splits for i, label in zip(rows.idx, rows.labels, strict=True)}


# What a label column is taken for


@pytest.mark.parametrize("cell", [lambda x: x, str], ids=["numbers", "text"])
def test_numbers_with_fractions_are_regression(tmp_path, cell):
    values = [0.5 * i for i in range(20)]
    dataset = load_table(jsonl(tmp_path / "t.jsonl", [cell(v) for v in values]))
    assert (dataset.task.problem, dataset.task.metrics) == ("regression", ("pearson", "spearman"))
    assert dataset.task.label_names == ("label",)
    assert labels_by_row(dataset) == dict(enumerate(values))
    assert (
        dataset.notes[0]
        == "Regression on numbers from 0 to 9.5; --problem classification takes them as classes."
    )


def test_whole_numbers_are_classes_unless_regression_is_asked_for(tmp_path):
    path = write(tmp_path / "t.csv", "text,label\n" + "".join(f"r {i},{i % 5 + 1}\n" for i in range(40)))
    classes = load_table(path)
    assert (classes.task.problem, classes.task.label_names) == ("classification", ("1", "2", "3", "4", "5"))
    assert classes.notes[0] == (
        "Classification, 5 classes: 1, 2, 3, 4, 5; --problem regression takes them as numbers."
    )
    numbers = load_table(path, problem="regression")
    assert numbers.task.problem == "regression"
    assert labels_by_row(numbers)[4] == 5.0
    fractions = load_table(jsonl(tmp_path / "f.jsonl", [0.5, 1.5] * 8), problem="classification")
    assert fractions.task.label_names == ("0.5", "1.5")


def test_a_number_column_with_a_word_in_it_is_asked_about(tmp_path):
    path = write(tmp_path / "t.csv", "text,label\na,0.5\nb,1.5\nc,NA\nd,2\n")
    with pytest.raises(RankwiseError, match="numbers with fractions, and 'NA'. Say what it is: --problem"):
        load_table(path)
    with pytest.raises(
        RankwiseError, match="t.csv line 4: column 'label' holds 'NA'; regression takes numbers"
    ):
        load_table(path, problem="regression")


@pytest.mark.parametrize("odd", ["1_000", "inf", "nan", "0x10", "1,5"])
def test_what_only_python_calls_a_number_is_none(tmp_path, odd):
    path = jsonl(tmp_path / "t.jsonl", ["0.5", odd, "1e-1", "-2.", "+.5"])
    with pytest.raises(RankwiseError, match="regression takes numbers"):
        load_table(path, problem="regression")


def test_numbers_that_are_all_the_same_teach_nothing(tmp_path):
    with pytest.raises(
        RankwiseError, match="only the number 0.5 in column 'label'; there is nothing to learn"
    ):
        load_table(jsonl(tmp_path / "t.jsonl", [0.5] * 10))


def test_large_numbers_get_a_warning(tmp_path):
    notes = load_table(jsonl(tmp_path / "t.jsonl", [1000.5 * i for i in range(10)])).notes
    assert "Smaller units train faster" in notes[0]


def test_lists_are_several_labels(tmp_path):
    sets = [["fun"], ["sad", "long"], [], ["fun", "long"], None] * 6
    dataset = load_table(jsonl(tmp_path / "t.jsonl", sets))
    assert (dataset.task.problem, dataset.task.label_names) == ("multi-label", ("fun", "long", "sad"))
    assert dataset.task.metrics[:2] == ("micro_f1", "macro_f1")
    found = labels_by_row(dataset)
    assert [found[i] for i in range(4)] == [[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 0]]
    assert 4 not in found
    pq.write_table(pa.table({"text": [f"t {i}" for i in range(30)], "label": sets}), tmp_path / "t.parquet")
    assert labels_by_row(load_table(tmp_path / "t.parquet")).keys() == found.keys()


def test_several_columns_of_0_and_1_are_several_labels(tmp_path):
    lines = "text,toxic,insult\n" + "a,1,0\nb,0,0\nc,1,1\nd,,1\n" + "".join(f"e{i},0,1\n" for i in range(9))
    path = write(tmp_path / "t.csv", lines)
    dataset = load_table(path, label=("toxic", "insult"))
    assert (dataset.task.label, dataset.task.label_names) == (None, ("toxic", "insult"))
    found = labels_by_row(dataset)
    assert [found[i] for i in (0, 1, 2)] == [[1, 0], [0, 0], [1, 1]]
    assert 3 not in found
    held_out, _ = read_rows(path, dataset.task, labelled=True)
    assert held_out.labels.tolist() == [found[int(i)] for i in held_out.idx]
    with pytest.raises(RankwiseError, match="names 2 columns, and regression has one"):
        load_table(path, label=("toxic", "insult"), problem="regression")
    with pytest.raises(
        RankwiseError, match="t.csv line 2: column 'text' holds 'a'; a column of a label holds 0 and 1"
    ):
        load_table(path, label=("toxic", "text"))


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (["fun,sad"] * 4, r"holds 'fun,sad'; several labels are a list in each row .* --label toxic insult"),
        ([[1, 0, 1]] * 4, "a list names the labels that a row has, each once"),
        ([[["fun"]]] * 4, "labels are strings or numbers"),
        ([[None]] * 4, "each once"),
    ],
)
def test_other_forms_of_several_labels_are_refused(tmp_path, labels, says):
    with pytest.raises(RankwiseError, match=says):
        load_table(jsonl(tmp_path / "t.jsonl", labels), problem="multi-label")


def test_a_label_that_the_model_does_not_know_is_named(tmp_path):
    task = Task("t", "text", None, "label", ("fun", "sad"), ("micro_f1",), "", problem="multi-label")
    path = jsonl(tmp_path / "t.jsonl", [["fun"], ["fun", "odd"], ["odd"]])
    with pytest.raises(
        RankwiseError, match="t.jsonl lines 2, 3: label 'odd' is not one of the task's classes: fun, sad"
    ):
        read_rows(path, task, labelled=True)


# Several files


def test_several_files_are_one_table(tmp_path):
    one = write(tmp_path / "part-1.csv", "text,label\n" + "".join(f"a {i},good\n" for i in range(10)))
    two = write(tmp_path / "part-2.csv", "label,text\n" + "".join(f"bad,b {i}\n" for i in range(10)))
    more = jsonl(tmp_path / "more.jsonl", ["good", "bad"] * 5)
    dataset = load_table(one, two, more)
    assert (dataset.task.name, len(labels_by_row(dataset))) == ("part-1", 30)
    by_pattern = load_table(tmp_path / "part-*.csv", more)
    assert by_pattern.train.text == dataset.train.text


def test_a_fault_in_one_of_several_files_names_that_file_and_its_line(tmp_path):
    one = write(tmp_path / "one.csv", "text,label\na,good\nb,bad\n")
    two = write(tmp_path / "two.csv", "text,label\nc,good\n,bad\n")
    notes = load_table(one, two, problem="classification", validation=one).notes
    assert any("1 row without text left out (line two.csv:3)" in note for note in notes)
    other = write(tmp_path / "other.csv", "text,stars\nc,good\n")
    with pytest.raises(RankwiseError, match=r"other.csv has no column 'label', which one.csv has\."):
        load_table(one, other)
    wider = write(tmp_path / "wider.csv", "text,label,id\nc,good,1\n")
    with pytest.raises(RankwiseError, match="one.csv has no column 'id', which wider.csv has"):
        load_table(one, wider)
    with pytest.raises(RankwiseError, match=r"No file matches .*none-\*.csv"):
        load_table(tmp_path / "none-*.csv")


# A data set of the hub


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


def test_a_data_set_is_loaded_by_name_with_its_own_splits_and_class_names(dataset_folder):
    dataset = load_dataset(RunConfig(table=TableOptions(dataset=str(dataset_folder))))
    assert (dataset.task.name, dataset.task.label_names) == ("films", ("bad", "good"))
    assert dataset.train.text == [f"train {i}" for i in range(1, 12)]  # −1 is no label
    assert dataset.train.labels.tolist() == [i % 2 for i in range(1, 12)]
    assert dataset.validation["validation"].text == [f"validation {i}" for i in range(1, 4)]
    other = load_dataset(RunConfig(table=TableOptions(dataset=str(dataset_folder), validation_split="test")))
    assert len(other.validation["validation"]) == 5
    with pytest.raises(
        RankwiseError,
        match="has no split 'dev'. It has: train, validation, test. Say which with --validation-split",
    ):
        load_dataset(RunConfig(table=TableOptions(dataset=str(dataset_folder), validation_split="dev")))


def test_a_data_set_out_of_reach_is_said(monkeypatch):
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
        ({"dataset": "a/b", "train_file": (Path("t.csv"),)}, "Both --dataset a/b and the file t.csv"),
        ({"dataset_config": "x"}, "--dataset-config is for a data set, and --dataset names none"),
        ({"dataset": "a/b", "validation": Path("v.csv")}, "name the split with --validation-split"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, says):
    with pytest.raises(RankwiseError, match=says):
        TableOptions(**options)


# Losses


def test_the_loss_of_an_example_is_the_one_that_fits_its_labels():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 3, generator=generator)
    classes, several, numbers = torch.randint(3, (7,)), torch.randint(2, (7, 3)).float(), torch.randn(7)
    assert example_losses(logits, classes).mean().item() == pytest.approx(
        F.cross_entropy(logits, classes).item()
    )
    assert example_losses(logits, several).mean().item() == pytest.approx(
        torch.nn.BCEWithLogitsLoss()(logits, several).item()
    )
    assert example_losses(logits[:, :1], numbers).mean().item() == pytest.approx(
        torch.nn.MSELoss()(logits[:, 0], numbers).item()
    )


@pytest.mark.parametrize(
    "labels", [np.array([0, 1]), np.array([[0, 1]], np.float32), np.array([0.5], np.float32)]
)
def test_transformers_takes_the_same_labels_for_the_same_problem(labels):
    """Its models fill `config.problem_type` in when they are first given labels."""
    import tiny

    model = tiny.classifier("bert", num_labels=1 if labels.dtype == np.float32 and labels.ndim == 1 else 2)
    ids = torch.tensor([[1, 4, 2]] * len(labels))
    loss = model(input_ids=ids, labels=torch.from_numpy(labels)).loss
    assert model.config.problem_type == problem_of(labels).problem_type
    assert of_config(model.config) is problem_of(labels)
    with torch.no_grad():
        ours = example_losses(model(input_ids=ids).logits, torch.from_numpy(labels)).mean()
    assert ours.item() == pytest.approx(loss.item(), abs=1e-6)


def test_predictions_have_the_form_of_the_labels():
    logits = np.array([[0.1, 2.0], [0.5, -1.0]], dtype=np.float32)
    assert PROBLEMS["classification"].predict(logits).tolist() == [1, 0]
    assert PROBLEMS["multi-label"].predict(logits).tolist() == [[1, 1], [1, 0]]
    assert PROBLEMS["regression"].predict(logits[:, :1]).tolist() == pytest.approx([0.1, 0.5])


# Class weights


def test_balanced_class_weights_are_scikit_learns():
    labels = np.array([0] * 12 + [1] * 3 + [2] * 5)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert class_weights("balanced", ["a", "b", "c"], labels).tolist() == pytest.approx(expected.tolist())


def test_balanced_weights_of_several_labels_make_both_sides_count_the_same():
    labels = np.array([[1, 0], [0, 0], [0, 1], [0, 1]], dtype=np.float32)
    weights = class_weights("balanced", ["a", "b"], labels)
    assert weights.tolist() == [3.0, 1.0]
    logits = torch.zeros(4, 2)
    side = F.binary_cross_entropy_with_logits(
        logits, torch.from_numpy(labels), pos_weight=weights, reduction="none"
    )
    assert side[labels == 1].sum().item() == pytest.approx(side[labels == 0].sum().item())


def test_weights_by_name_multiply_the_loss_of_a_class():
    labels = np.array([0, 1, 1])
    weights = class_weights("spam=2.5", ["ham", "spam"], labels)
    assert weights.tolist() == [1.0, 2.5]
    logits = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    plain, weighted = (example_losses(logits, torch.from_numpy(labels), w) for w in (None, weights))
    assert (weighted / plain).tolist() == pytest.approx([1.0, 2.5, 2.5])


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("spam", "takes balanced, or weights by name such as ham=2, not 'spam'"),
        ("spa=2", "there is no class 'spa'. Did you mean 'spam'?"),
        ("spam=-1", "the weight of spam must be a number above 0; it is '-1'"),
        ("spam=x", "it is 'x'"),
    ],
)
def test_class_weights_that_make_no_sense_are_refused(spec, says):
    with pytest.raises(RankwiseError, match=says):
        class_weights(spec, ["ham", "spam"], np.array([0, 1]))


def test_class_weights_need_classes_with_rows():
    with pytest.raises(RankwiseError, match="this is regression"):
        class_weights("balanced", ["price"], np.array([0.5], np.float32))
    with pytest.raises(RankwiseError, match="no weight for 'b': no training row has it"):
        class_weights("balanced", ["a", "b"], np.array([0, 0]))
    with pytest.raises(RankwiseError, match="no weight for 'a': every training row has it"):
        class_weights("balanced", ["a", "b"], np.array([[1, 0], [1, 1]], np.float32))
