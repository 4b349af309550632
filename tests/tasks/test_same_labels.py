"""Files and rows given in Python are read alike: the same labels, or both refuse.

A case is a column of labels. It is written to every kind of file that can hold it, and given in every form that Python has for it.
"""

import csv
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise.config import TableOptions, TrainOptions
from rankwise.errors import RankwiseError
from rankwise.tasks import custom, mappings, objectives
from rankwise.tasks.rows import read_rows, rows_of
from rankwise.tasks.splits import Dataset
from rankwise.tasks.table import Table

COPIES = 6
"""A column is repeated, so that there are enough rows to split validation rows off."""


def rows_with(labels: list[Any]) -> list[dict[str, Any]]:
    return [{"text": f"text {i}", "label": label} for i, label in enumerate(labels * COPIES)]


# ── Files ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def delimited(folder: Path, labels: list[Any], suffix: str) -> Path:
    path = folder / f"t.{suffix}"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if suffix == "tsv" else ",")
        writer.writerows([("text", "label"), *((row["text"], row["label"]) for row in rows_with(labels))])
    return path


def json_lines(folder: Path, labels: list[Any]) -> Path:
    path = folder / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_with(labels)))
    return path


def parquet(folder: Path, labels: list[Any]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows_with(labels)), folder / "t.parquet")
    return folder / "t.parquet"


def saved_dataset(folder: Path, labels: list[Any]) -> Path:
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset.from_list(rows_with(labels)).save_to_disk(folder / "saved")
    return folder / "saved"


FILES: dict[str, Callable[[Path, list[Any]], Path]] = {
    "csv": lambda folder, labels: delimited(folder, labels, "csv"),
    "tsv": lambda folder, labels: delimited(folder, labels, "tsv"),
    "jsonl": json_lines,
    "parquet": parquet,
    "save_to_disk": saved_dataset,
}


# ── Python ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def hugging_face(rows: list[dict[str, Any]]) -> Any:
    import datasets

    return datasets.Dataset.from_list(rows)


def in_numpy(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "label": np.asarray(row["label"])[()]} for row in rows]


def in_torch(rows: list[dict[str, Any]]) -> Any:
    return [{**row, "label": torch.tensor(row["label"])} for row in rows]


FORMS: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "dicts": list,
    "generator": iter,
    "numpy": in_numpy,
    "torch": in_torch,
    "pandas": pd.DataFrame,
    "pyarrow": pa.Table.from_pylist,
    "datasets": hugging_face,
}


def labels_of_dataset(dataset: Dataset) -> list[Any]:
    parts = (dataset.train, dataset.validation["validation"])
    found = {int(i): y for part in parts for i, y in zip(part.idx, np.asarray(part.labels), strict=True)}
    return [found[i].tolist() for i in sorted(found)]


TEXT = ("csv", "tsv")
TYPED = ("jsonl", "parquet", "save_to_disk")
CASES: dict[str, tuple[str | None, list[Any], tuple[str, ...] | None, list[Any] | None, tuple[str, ...]]] = {
    # name: problem, column, names of the outputs, labels, kinds of file. Without labels both refuse, for outputs of these names.
    "words": (None, ["b", "a"], ("a", "b"), [1, 0], (*TEXT, *TYPED)),
    "words with white space": (None, [" b ", "a"], ("a", "b"), [1, 0], (*TEXT, *TYPED)),
    "integers": (None, [2, 10, 1], ("1", "2", "10"), [1, 2, 0], (*TEXT, *TYPED)),
    "integers from 0": (None, [0, 1], ("0", "1"), [0, 1], (*TEXT, *TYPED)),
    "signs": (None, [-1, 1], ("-1", "1"), [0, 1], (*TEXT, *TYPED)),
    "whole floats": (None, [1.0, 2.0], ("1", "2"), [0, 1], (*TEXT, *TYPED)),
    "strings of integers": (None, ["1", "1.0", "2"], ("1", "2"), [0, 0, 1], (*TEXT, *TYPED)),
    "strings of signed integers": (None, ["+1", "-1", "-0"], ("-1", "0", "1"), [2, 0, 1], (*TEXT, *TYPED)),
    "strings of exponents": (None, ["1e3", "2E0", "1000"], ("2", "1000"), [1, 0, 1], (*TEXT, *TYPED)),
    "large whole floats": (None, [2.0**70, 5.0], ("5", str(2**70)), [1, 0], (*TEXT, *TYPED)),
    "codes with an e": (None, ["1e3", "abc"], ("1e3", "abc"), [0, 1], (*TEXT, *TYPED)),
    "truth values in small letters": (None, ["true", "false"], ("false", "true"), [1, 0], (*TEXT, *TYPED)),
    "digits beyond Python's integers": (None, ["9" * 5000, "1"], ("1", "9" * 5000), [1, 0], TEXT),
    "codes": (None, ["007", "008"], ("007", "008"), [0, 1], (*TEXT, *TYPED)),
    "truth values": (None, [True, False], ("False", "True"), [1, 0], (*TEXT, *TYPED)),
    "fractions": (None, [0.5, 1.25], ("label",), [0.5, 1.25], (*TEXT, *TYPED)),
    "strings of fractions": (None, ["0.5", "1.25e1"], ("label",), [0.5, 12.5], (*TEXT, *TYPED)),
    "fractions as classes": ("classification", [0.5, 1.5], ("0.5", "1.5"), [0, 1], (*TEXT, *TYPED)),
    "integers as numbers": ("regression", [3, 1], ("label",), [3.0, 1.0], (*TEXT, *TYPED)),
    "decimals": ("regression", [Decimal("0.5"), Decimal(2)], ("label",), [0.5, 2.0], ("parquet",)),
    "decimal classes": (None, [Decimal(1), Decimal(2)], ("1", "2"), [0, 1], ("parquet",)),
    "lists of names": (None, [["a"], ["b", "a"], []], ("a", "b"), [[1, 0], [1, 1], [0, 0]], TYPED),
    "lists of ids": (None, [[0], [1, 0], [2]], ("0", "1", "2"), [[1, 0, 0], [1, 1, 0], [0, 0, 1]], TYPED),
    "marks": (None, [[1, 0], [0, 1]], ("LABEL_0", "LABEL_1"), [[1, 0], [0, 1]], TYPED),
    "marks, none and all": (None, [[1, 1], [0, 0]], ("LABEL_0", "LABEL_1"), [[1, 1], [0, 0]], TYPED),
    "marks as floats": (None, [[1.0, 0.0], [0.0, 1.0]], ("LABEL_0", "LABEL_1"), [[1, 0], [0, 1]], TYPED),
    "marks as truth values": (
        None, [[True, False], [False, True]], ("LABEL_0", "LABEL_1"), [[1, 0], [0, 1]], TYPED,
    ),
    "twelve marks": (
        None, [[int(i == j) for j in range(12)] for i in range(12)], tuple(f"LABEL_{i}" for i in range(12)),
        np.eye(12).tolist(), TYPED,
    ),
    # ── refused ──
    "soft labels": (None, [[0.25, 0.75]], ("a", "b"), None, TYPED),
    "marks of several lengths": (None, [[1, 0, 1], [1, 1]], ("a", "b", "c"), None, TYPED),
    "marks and an empty list": (None, [[1, 0], []], ("a", "b"), None, TYPED),
    "lists of lists": (None, [[["a"]], [["b"]]], ("a", "b"), None, TYPED),
    "a label twice": (None, [["a", "a"], ["b"]], ("a", "b"), None, TYPED),
    "words as numbers": ("regression", ["a", "b"], ("label",), None, (*TEXT, *TYPED)),
    "truth values as numbers": ("regression", [True, False], ("label",), None, (*TEXT, *TYPED)),
    "squares beyond float32": ("regression", [1e20, 0.5], ("label",), None, (*TEXT, *TYPED)),
    "beyond float32": ("regression", [1e39, 0.5], ("label",), None, (*TEXT, *TYPED)),
    "lists as numbers": ("regression", [[0.5], [1.5]], ("label",), None, TYPED),
    "lists as classes": ("classification", [["a"], ["b"]], ("a", "b"), None, TYPED),
    "infinity": ("classification", [float("inf"), 0.5], ("0.5", "inf"), None, ("parquet",)),
    "bytes": (None, [b"a", b"b"], ("a", "b"), None, ("parquet",)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_files_and_python_give_the_same_labels_or_refuse_both(tmp_path, name):
    problem, column, names, labels, kinds = CASES[name]
    for kind in kinds:
        path = FILES[kind](tmp_path, column)
        options = TableOptions(train_file=(path,), problem=problem)
        if labels is None:
            with pytest.raises(RankwiseError):
                custom.load_table(options, TrainOptions())
            continue
        dataset = custom.load_table(options, TrainOptions())
        assert dataset.task.label_names == names, kind
        assert labels_of_dataset(dataset) == labels * COPIES, kind
        again, _ = read_rows(path, dataset.task)
        assert np.asarray(again.labels).tolist() == labels * COPIES, kind
    inferred = "multi-label" if isinstance(column[0], list) else "classification"
    inferred = "regression" if names == ("label",) else inferred
    objective = objectives.named(problem or inferred)
    flat = [one for cell in column for one in (cell if isinstance(cell, list) else [cell])]
    for form, made in FORMS.items():
        if form == "torch" and not all(isinstance(one, int | float) for one in flat):
            continue  # a tensor holds numbers
        if form == "numpy" and len({type(one) for one in flat}) > 1:
            continue  # an array has one type
        rows = made(rows_with(column))
        if labels is None:
            with pytest.raises(RankwiseError):
                mappings.read(rows, mappings.Columns(), objective, names)
        else:
            read = mappings.read(rows, mappings.Columns(), objective, names)
            assert np.asarray(read.labels).tolist() == labels * COPIES, form


@pytest.mark.parametrize("missing", [None, float("nan"), np.nan, pd.NA, ""], ids=repr)
@pytest.mark.parametrize("problem", ["classification", "regression", "multi-label"])
def test_a_missing_label_is_never_a_class(missing, problem):
    filled: list[Any] = {"classification": [1, 2], "regression": [0.5, 1], "multi-label": [["1"], ["2"]]}[
        problem
    ]
    names = ("label",) if problem == "regression" else ("1", "2")
    objective = objectives.named(problem)
    task = load_table_of(filled, problem).task
    rows, notes = rows_of(Table("t", {"text": ["a", "b", "c"], "label": [*filled, missing]}), task)
    assert len(rows) == 2
    assert notes == ("t: 1 row without label left out (row 3).",)
    given = [{"text": "a", "label": label} for label in (*filled, missing)]
    np.testing.assert_array_equal(
        mappings.read(given[:2], mappings.Columns(), objective, names).labels, rows.labels
    )
    with pytest.raises(RankwiseError, match="Row 2 has the label"):
        mappings.read(given, mappings.Columns(), objective, names)


def load_table_of(labels: list[Any], problem: str) -> Dataset:
    table = Table("t", {"text": [f"t {i}" for i in range(COPIES * len(labels))], "label": labels * COPIES})
    return custom._dataset(TableOptions(train_file=(Path("t.csv"),), problem=problem), TrainOptions(), table)


@pytest.mark.parametrize(
    "labels",
    [
        *(["0.5", "0.50"], ["7", "007"], [True, "true"], ["True", "TRUE"]),
        *(["\u00e9", "e\u0301"], ["pos", "pos\u200b"], ["1e3", "1000", "f4"]),
    ],
    ids=ascii,
)
def test_one_value_in_two_spellings_is_refused(labels):
    with pytest.raises(RankwiseError, match="which are the same value. Write it in one way"):
        load_table_of(labels, "classification")


def test_parts_of_a_table_agree_on_whole_numbers(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"a {i},{i % 2}\n" for i in range(20)))
    (tmp_path / "b.csv").write_text("text,label\n" + "".join(f"b {i},{i % 2}.0\n" for i in range(20)))
    dataset = custom.load_table(
        TableOptions(train_file=(tmp_path / "a.csv", tmp_path / "b.csv")), TrainOptions()
    )
    assert dataset.task.label_names == ("0", "1")
    assert labels_of_dataset(dataset) == [i % 2 for i in range(20)] * 2


def test_a_truth_value_is_the_class_of_that_name_however_it_is_written():
    classes = objectives.named("classification")
    assert classes.read(["true", "False", True, "TRUE"], ("False", "True")) == [
        "True",
        "False",
        "True",
        "True",
    ]
    assert classes.read(["True", "false", False], ("false", "true")) == ["true", "false", "false"]


def test_numbers_are_texts_in_files_and_in_python(tmp_path):
    rows = [{"text": [5, 2.5, "x", True, Decimal("1.50")][i % 5], "label": i % 2} for i in range(20)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row, default=str) + "\n" for row in rows))
    task = custom.load_table(TableOptions(train_file=(tmp_path / "t.jsonl",)), TrainOptions()).task
    expected = ["5", "2.5", "x", "True", "1.50"] * 4
    assert read_rows(tmp_path / "t.jsonl", task)[0].text == expected
    for form in ("dicts", "datasets", "pandas"):
        if form != "datasets":  # whose columns have one type
            assert mappings.read(FORMS[form](rows), mappings.Columns()).text == expected
    numbers = [{"text": np.int64(7)}, {"text": torch.tensor(8)}]
    assert mappings.read(numbers, mappings.Columns()).text == ["7", "8"]
    with pytest.raises(RankwiseError, match=r"Row 0 has \['a', 'b'\] in 'text', not a text"):
        mappings.read([{"text": ["a", "b"]}], mappings.Columns())


def test_a_repeated_column_is_refused():
    columns = mappings.Columns()
    for table in (
        pd.DataFrame([["a", "b", 1]], columns=["text", "text", "label"]),
        pa.Table.from_arrays([pa.array(["a"])] * 2, names=["text", "text"]),
    ):
        with pytest.raises(RankwiseError, match="The table has two columns named 'text'; rename one"):
            mappings.read(table, columns)


def test_a_class_id_beyond_the_data_sets_names_is_refused(tmp_path):
    import datasets

    folder = saved_dataset(tmp_path, [0, 1])
    info = json.loads((folder / "dataset_info.json").read_text())
    info["features"]["label"] = {"names": ["neg"], "_type": "ClassLabel"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(RankwiseError, match="column 'label' can't be read .*the data set has 1 class"):
        custom.load_table(TableOptions(train_file=(folder,)), TrainOptions())
    rows, classes = datasets.load_from_disk(folder), objectives.named("classification")
    with pytest.raises(RankwiseError, match="Row 1 has the label 1 in 'label'; the data set has 1 class"):
        mappings.read(rows, mappings.Columns(), classes, ("neg", "pos"))


def test_halves_of_surrogate_pairs_in_labels_are_replaced(tmp_path):
    path, rows = json_lines(tmp_path, ["a\ud83d", "b"]), rows_with(["a\ud83d", "b"])
    dataset = custom.load_table(TableOptions(train_file=(path,)), TrainOptions())
    assert dataset.task.label_names == ("a\ufffd", "b")
    read = mappings.read(rows, mappings.Columns(), objectives.named("classification"), ("a\ufffd", "b"))
    assert np.asarray(read.labels).tolist() == labels_of_dataset(dataset)


def test_an_integer_is_the_class_of_that_name_before_it_is_an_id():
    columns, classes = mappings.Columns(), objectives.named("classification")
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 2}]
    assert mappings.read(rows, columns, classes, ("1", "2")).labels.tolist() == [0, 1]
    assert mappings.read(rows, columns, classes, ("one", "two", "three")).labels.tolist() == [1, 2]
    with pytest.raises(RankwiseError, match="Row 0 has the label 0 in 'label'; the model knows"):
        mappings.read([{"text": "a", "label": 0}], columns, classes, ("1", "2"))


def test_a_data_set_gives_its_classes_by_name():
    import datasets

    feature = datasets.ClassLabel(names=["neg", "pos"])
    features = datasets.Features({"text": datasets.Value("string"), "label": feature})
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features=features)
    columns, classes = mappings.Columns(), objectives.named("classification")
    assert mappings.read(rows, columns, classes, ("pos", "neg")).labels.tolist() == [1, 0]
    assert mappings.read(rows, columns, classes, ("LABEL_0", "LABEL_1")).labels.tolist() == [0, 1]
    with pytest.raises(RankwiseError, match="Row 0 has the label 'neg' in 'label'; the model knows"):
        mappings.read(rows, columns, classes, ("bad", "good"))


def test_marks_are_told_from_names_by_the_whole_column():
    columns, several = mappings.Columns(), objectives.named("multi-label")

    def read(labels: list[Any], names: tuple[str, ...]) -> list[Any]:
        rows = [{"text": "a", "label": label} for label in labels]
        return mappings.read(rows, columns, several, names).labels.tolist()

    assert read([[0, 1]], ("a", "b")) == [[0, 1]]
    assert read([[0, 1], [1]], ("0", "1")) == [[1, 1], [0, 1]]
    assert read([[0, 1], [1, 1]], ("0", "1")) == [[0, 1], [1, 1]]
    assert read([["0", "1"]], ("0", "1")) == [[1, 1]]
    with pytest.raises(
        RankwiseError, match="it may name labels or mark them with 0 and 1; write names as strings"
    ):
        read([[0, 1]], ("0", "1"))
    with pytest.raises(
        RankwiseError, match=r"Row 1 has the label \[1\] .* a 0 or 1 for each of the 2 labels"
    ):
        read([[0, 1], [1]], ("a", "b"))


@pytest.mark.parametrize("rows", [["text", "label"], {"text": ["a"]}, [("a", 1)]], ids=str)
def test_rows_that_are_no_mappings_are_refused(rows):
    with pytest.raises(RankwiseError, match="not a mapping of columns to values"):
        mappings.read(rows, mappings.Columns())


labels = st.one_of(st.integers(-3, 12), st.booleans(), st.floats(allow_nan=False), st.text(max_size=3))


@given(st.lists(st.one_of(labels, st.lists(labels, max_size=3)), min_size=2, max_size=8))
def test_any_column_has_the_same_labels_in_files_and_in_python(column):
    table = Table("t", {"text": [f"t {i}" for i in range(len(column) * COPIES)], "label": column * COPIES})
    try:
        task, _ = custom._task(table, TableOptions(train_file=(Path("t.jsonl"),)), TrainOptions())
        expected, _ = rows_of(table, task)
    except RankwiseError:
        return
    rows = [{"text": "a", "label": label} for label in column * COPIES]
    rows = [rows[int(i)] for i in expected.idx]
    read = mappings.read(rows, mappings.Columns(), objectives.named(task.problem), task.label_names)
    np.testing.assert_array_equal(read.labels, expected.labels)
