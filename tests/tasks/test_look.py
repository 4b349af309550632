"""A look at rows, beside pandas; and what it warns of."""

import json

import numpy as np
import pandas as pd
import pytest

from own_tables import load_table, write
from rankwise.config import DataOptions, RunConfig, TableOptions
from rankwise.tasks import look as looks
from rankwise.tasks.columns import columns
from rankwise.tasks.load import load_dataset
from rankwise.tasks.look import look
from rankwise.tasks.tables import read_table


def messy(folder, **options):
    """1,000 rows: every 50th without text, every 70th without label, every 90th with the text of the row before it."""
    rows, text = [], ""
    for i in range(1000):
        text = text if i % 90 == 1 else f"message {i} {'word ' * (i % 17)}"
        label = (
            ""
            if i % 70 == 5
            else ("rare" if i % 200 == 9 else "Spam" if i % 300 == 8 else ("spam", "ham")[i % 3 > 0])
        )
        rows.append({"text": "" if i % 50 == 3 else text, "label": label})
    path = folder / "t.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path, pd.DataFrame(rows)


def test_rows_classes_and_duplicates_are_those_that_pandas_counts(tmp_path):
    path, frame = messy(tmp_path)
    dataset = load_table(path)
    found = look(dataset)
    assert found.left_out == {
        "without text": (frame.text == "").sum(),
        "without label": ((frame.text != "") & (frame.label == "")).sum(),
    }
    train, validation = (frame.loc[rows.idx] for rows in (dataset.train, dataset.validation["validation"]))
    for split, part in (("train", train), ("validation", validation)):
        assert found.splits[split].rows == len(part)
        counts = part.label.value_counts()
        assert {name: n for name, n in found.splits[split].classes.items() if n} == counts.to_dict()
        assert list(found.splits[split].classes.values()) == sorted(
            found.splits[split].classes.values(), reverse=True
        )
        assert found.splits[split].repeated == part.text.str.strip().duplicated().sum()
        assert found.splits[split].lengths[2] == part.text.str.split().str.len().max()
    assert found.splits["validation"].in_train == validation.text.isin(train.text).sum()


def test_histograms_count_every_row_once(tmp_path):
    dataset = load_table(messy(tmp_path)[0])
    found = look(
        dataset,
        {
            "train": np.arange(len(dataset.train)),
            "validation": np.full(len(dataset.validation["validation"]), 7),
        },
    )
    assert found.unit == "tokens"
    assert {split: sum(counts) for split, counts in found.lengths.counts.items()} == {
        split: part.rows for split, part in found.splits.items()
    }
    assert len(found.lengths.edges) == len(found.lengths.counts["train"]) + 1 <= looks.BINS + 1


def test_numbers_have_a_range_and_no_classes(tmp_path):
    path = write(tmp_path / "t.csv", "text,label\n" + "".join(f"text {i},{i / 4}\n" for i in range(100)))
    dataset = load_table(path)
    found = look(dataset)
    assert found.splits["train"].classes == {}
    assert found.splits["train"].numbers == pytest.approx(
        (dataset.train.labels.min(), dataset.train.labels.mean(), dataset.train.labels.max())
    )
    assert "Numbers to predict: train 0" in looks.lines(found)[1]


def test_labels_of_a_row_are_counted_each(tmp_path):
    rows = [{"text": f"text {i}", "label": ["a"] * (i % 2) + ["b"] * (i % 3 == 0)} for i in range(60)]
    dataset = load_table(write(tmp_path / "t.jsonl", "".join(json.dumps(row) + "\n" for row in rows)))
    found = look(dataset)
    assert {n: sum(s.classes[n] for s in found.splits.values()) for n in "ab"} == {"a": 30, "b": 20}


def test_rows_left_out_by_a_limit_are_said(tmp_path):
    path, _ = messy(tmp_path)
    options = {"table": TableOptions(train_file=(path,)), "data": DataOptions(limit_train=100)}
    found = look(load_dataset(RunConfig(**options)))
    assert found.splits["train"].rows == 100
    kept = sum(split.rows for split in found.splits.values())
    assert sum(found.left_out.values()) == 1000 - kept


def test_warns_of_spellings_and_rare_classes(tmp_path):
    warnings = look(load_table(messy(tmp_path)[0])).warnings
    assert any(
        "'spam'" in line and "'Spam'" in line and "differ by case or spaces only" in line for line in warnings
    )
    assert any("fewer than 10 training rows: Spam" in line and "rare 4" in line for line in warnings)
    assert len(warnings) == 2


def test_stray_spaces_around_a_label_are_no_other_class(tmp_path):
    path = write(
        tmp_path / "t.csv",
        "text,label\n"
        + "".join(f"a text {i},{' yes' if i % 7 == 0 else 'yes' if i % 2 else 'no '}\n" for i in range(60)),
    )
    assert load_table(path).task.label_names == ("no", "yes")


def test_warns_of_a_label_column_with_many_classes(tmp_path):
    path = write(tmp_path / "t.csv", "text,kind\n" + "".join(f"a text {i},k{i // 3}\n" for i in range(120)))
    (warning,) = [w for w in look(load_table(path, label=("kind",))).warnings if "Is it an id?" in w]
    assert "Column 'kind' holds 40 classes" in warning


@pytest.mark.parametrize(
    ("text", "said"),
    [("colour {}", "have 4 different texts, such as"), ("R-{}{}", "No text is longer than a word")],
)
def test_warns_of_a_text_column_that_holds_something_else(tmp_path, text, said):
    rows = "".join(f"{text.format(i % 4, i)},{'ab'[i % 2]}\n" for i in range(200))
    held_out = write(tmp_path / "v.csv", f"text,label\n{rows[:200].rpartition(chr(10))[0]}\n")
    found = look(load_table(write(tmp_path / "t.csv", f"text,label\n{rows}"), validation=held_out))
    assert any(said in line and "`text=`" in line for line in found.warnings)


def test_an_ordinary_table_has_no_warning(tmp_path):
    path = write(
        tmp_path / "t.csv", "text,label\n" + "".join(f"some text {i},{'ab'[i % 2]}\n" for i in range(100))
    )
    assert look(load_table(path)).warnings == []


def test_a_look_is_stored_and_read_back(tmp_path):
    found = look(load_table(messy(tmp_path)[0]))
    assert looks.from_json(json.loads(json.dumps(found.to_json()))) == found
    with pytest.raises(ValueError, match="rows"):
        looks.from_json(json.loads(json.dumps(found.to_json()).replace('"rows": ', '"rows": "x", "was": ')))


def test_columns_look_like_what_they_hold(tmp_path):
    path = tmp_path / "t.jsonl"
    rows = [
        {
            "id": f"T-{i:04d}",
            "number": i,
            "said": f"a longer message about thing {i}",
            "kind": ("a", "b", "c")[i % 3],
            "stars": i % 5,
            "price": i / 3,
            "tags": ["x"],
            "nothing": None,
            "when": None if i % 4 else "May",
        }
        for i in range(200)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {column.name: column for column in columns(read_table(path))}
    kinds = {"id": "id", "number": "id", "said": "text", "kind": "label", "stars": "label"}
    kinds |= {"price": "number", "tags": "list", "nothing": "empty", "when": "label"}
    assert {name: column.kind for name, column in found.items()} == kinds
    assert (found["when"].empty, found["kind"].different, found["id"].example) == (150, 3, "T-0000")
