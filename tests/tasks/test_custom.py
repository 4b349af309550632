"""Your own table: what its labels are taken for, which rows are trained and validated on, and what is refused."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from own_tables import jsonl, labels_by_row, load_table, reviews, write
from rankwise.errors import RankwiseError
from rankwise.tasks.rows import read_rows


def test_labels_are_sorted_and_kept_as_strings(tmp_path):
    words = load_table(write(tmp_path / "words.csv", reviews(20)))
    assert words.task.label_names == ("bad", "good")
    numbers = load_table(write(tmp_path / "numbers.csv", reviews(40, labels=("10", "9", "-1"))))
    assert numbers.task.label_names == ("-1", "9", "10")
    assert [numbers.task.label_names[i] for i in numbers.train.labels[:1]] == [
        ("10", "9", "-1")[numbers.train.idx[0] % 3]
    ]


def test_integers_and_strings_are_the_same_labels(tmp_path):
    pq.write_table(
        pa.table({"text": [f"t{i}" for i in range(21)], "label": [i % 3 for i in range(20)] + [None]}),
        tmp_path / "t.parquet",
    )
    held = write(tmp_path / "held.csv", "text,label\nx,2\ny,0\n")
    dataset = load_table(tmp_path / "t.parquet", validation=held)
    assert dataset.task.label_names == ("0", "1", "2")
    assert dataset.validation["validation"].labels.tolist() == [2, 0]
    assert dataset.notes[1:] == ("t.parquet: 1 row without label left out (row 21).",)


def test_columns_are_the_ones_named(tmp_path):
    path = write(
        tmp_path / "t.csv", "id,a,b,stars\n" + "".join(f"{i},x {i},y {i},{i % 2}\n" for i in range(10))
    )
    dataset = load_table(path, text="a", text_pair="b", label=("stars",))
    rows = dataset.train
    assert rows.text == [f"x {i}" for i in rows.idx]
    assert rows.text_pair == [f"y {i}" for i in rows.idx]
    assert rows.labels.tolist() == [i % 2 for i in rows.idx]
    assert (dataset.task.name, dataset.task.metrics[0]) == ("t", "accuracy")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "t.csv has no column 'label'. Its columns: review, stars. Say which with `label=`."),
        (
            {"label": ("stars",)},
            "t.csv has no column 'text'. Its columns: review, stars. Say which with `text=`.",
        ),
        ({"label": ("star",), "text": "review"}, "t.csv has no column 'star'."),
        (
            {"label": ("stars",), "text": "review", "text_pair": "reply"},
            "t.csv has no column 'reply'. Its columns: review, stars. Say which with `text_pair=`.",
        ),
    ],
)
def test_a_column_is_never_guessed(tmp_path, options, says):
    path = write(tmp_path / "t.csv", "review,stars\na,1\nb,2\n")
    with pytest.raises(RankwiseError) as error:
        load_table(path, **options)
    assert says in str(error.value)


def test_incomplete_rows_are_left_out_and_named_by_line(tmp_path):
    lines = reviews(20) + ",good\nno label,\n   ,bad\n,\n" + "".join(f"no label {i},\n" for i in range(9))
    dataset = load_table(write(tmp_path / "t.csv", lines))
    kept = np.concatenate([dataset.train.idx, dataset.validation["validation"].idx])
    assert sorted(kept.tolist()) == list(range(20))
    assert dataset.notes[1:3] == (
        "t.csv: 3 rows without text left out (lines 22, 24, 25).",
        "t.csv: 10 rows without label left out (lines 23, 26, 27, 28, 29 and 5 more).",
    )


def test_a_validation_label_unseen_in_training_is_named(tmp_path):
    train = write(tmp_path / "t.csv", reviews(8))
    held = write(tmp_path / "v.csv", "text,label\na,good\nb,great\nc,1\n")
    with pytest.raises(
        RankwiseError, match=r"v.csv line 3: label 'great' is not one of .* classes: bad, good"
    ):
        load_table(train, validation=held)
    held = write(
        tmp_path / "v.csv", "text,label\nc,1\n"
    )  # a number is no class id where the labels are words
    with pytest.raises(RankwiseError, match="label '1'"):
        load_table(train, validation=held)


def test_one_class_only_is_refused(tmp_path):
    with pytest.raises(RankwiseError, match="t.csv has only the label 'good' in column 'label'"):
        load_table(write(tmp_path / "t.csv", "text,label\na,good\nb,good\n,bad\n"))
    with pytest.raises(RankwiseError, match="no row with both text and label"):
        load_table(write(tmp_path / "t.csv", "text,label\na,\n,bad\n"))


def test_validation_rows_found_in_training_are_counted(tmp_path):
    train = write(tmp_path / "t.csv", reviews(8))
    held = write(tmp_path / "v.csv", "text,label\n review 1 ,good\nreview 2,good\nnew,bad\n")
    notes = load_table(train, validation=held).notes
    assert any(note.startswith("2 of 3 rows of v.csv also stand in t.csv") for note in notes)
    held = write(tmp_path / "v.csv", "text,label\nnew,bad\n")
    assert load_table(train, validation=held).notes[1:] == ()


def test_a_fifth_of_each_class_is_split_off_by_default(tmp_path):
    dataset = load_table(write(tmp_path / "t.csv", reviews(300, labels=("a", "a", "b"))))
    validation = dataset.validation["validation"]
    assert np.bincount(validation.labels).tolist() == [40, 20]
    assert np.bincount(dataset.train.labels).tolist() == [160, 80]
    assert "60 rows of t.csv are split off for validation" in dataset.notes[-1]


def test_a_large_table_gives_two_thousand_rows_to_validation(tmp_path):
    assert len(load_table(write(tmp_path / "t.csv", reviews(11_000))).validation["validation"]) == 2_000


def test_a_table_too_small_to_split_is_refused(tmp_path):
    with pytest.raises(RankwiseError, match="too small to split validation rows off"):
        load_table(write(tmp_path / "t.csv", "text,label\na,0\nb,1\n"))


def test_one_text_alone_is_not_split(tmp_path):
    path = write(tmp_path / "t.csv", "text,label\n" + "a,0\n" * 20 + "a,1\n" * 20)
    with pytest.raises(
        RankwiseError, match="t.csv has 1 different text on 40 rows, such as 'a', too few to split"
    ):
        load_table(path)


@pytest.mark.parametrize("label", ["row {}", "{}"])
def test_a_column_of_ids_is_no_label(tmp_path, label):
    path = write(
        tmp_path / "t.csv",
        "text,id\n" + "".join(f"t {i},{label.format(i // 2 * 2 if i < 9 else i)}\n" for i in range(50)),
    )
    with pytest.raises(
        RankwiseError, match=r"'id' holds 46 different labels on 50 rows, 42 of them once: ids, .* `label=`"
    ):
        load_table(path, label=("id",))
    assert load_table(
        write(tmp_path / "n.csv", "text,id\n" + "".join(f"t {i},{i}\n" for i in range(50))),
        label=("id",),
        problem="regression",
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"label": ("text",)}, "`text=` and `label=` name the column 'text'"),
        ({"text_pair": "label"}, "`label=` and `text_pair=` name the column 'label'"),
        ({"text_pair": "text"}, "`text=` and `text_pair=` name the column 'text'"),
        ({"label": ("label", "label")}, "`label=` names twice the column 'label'"),
    ],
)
def test_one_column_has_one_place(tmp_path, options, says):
    with pytest.raises(RankwiseError, match=says):
        load_table(write(tmp_path / "t.csv", reviews(20)), **options)


def test_words_for_missing_values_are_said(tmp_path):
    lines = reviews(20) + "NA,good\nNA,bad\n" + "".join(f"r {i},NA\n" for i in range(5))
    dataset = load_table(write(tmp_path / "t.csv", lines))
    assert dataset.task.label_names == ("NA", "bad", "good")
    assert (
        "t.csv: 'NA' is a text (lines 22, 23); where a text is missing, the cell is empty." in dataset.notes
    )
    assert "t.csv: 'NA' is a class; where a label is missing, the cell is empty." in dataset.notes
    path = write(tmp_path / "n.csv", reviews(20, labels=("0", "1")) + "x,NA\n")
    with pytest.raises(RankwiseError, match="'label' holds numbers, and 'NA'. Leave the cell empty"):
        load_table(path)
    assert load_table(path, problem="classification").task.label_names == ("0", "1", "NA")


def test_texts_that_are_numbers_are_said(tmp_path):
    path = write(tmp_path / "t.csv", "id,text,label\n" + "".join(f"{i},a {i},{i % 2}\n" for i in range(20)))
    assert any("every text is a number, such as '0'" in note for note in load_table(path, text="id").notes)
    assert not any("number, such as" in note for note in load_table(path).notes)


def test_texts_with_two_labels_are_counted(tmp_path):
    path = write(tmp_path / "t.csv", reviews(40) + "review 3,bad\nreview 4,good\n")
    assert "t.csv: 4 rows have a text that stands there with another label too." in load_table(path).notes


def test_white_space_is_no_label(tmp_path):
    lines = "text,label\n" + "".join(f"r {i},{i / 4}\n" for i in range(20)) + "x, \ny,\u00a0\n"
    dataset = load_table(write(tmp_path / "t.csv", lines))
    assert dataset.task.problem == "regression"
    assert sorted(labels_by_row(dataset)) == list(range(20))


@pytest.mark.parametrize("cell", [lambda x: x, str], ids=["numbers", "text"])
def test_numbers_with_fractions_are_regression(tmp_path, cell):
    values = [0.5 * i for i in range(20)]
    dataset = load_table(jsonl(tmp_path / "t.jsonl", [cell(v) for v in values]))
    assert (dataset.task.problem, dataset.task.metrics) == ("regression", ("pearson", "spearman"))
    assert dataset.task.label_names == ("label",)
    assert labels_by_row(dataset) == dict(enumerate(values))
    assert (
        dataset.notes[0]
        == 'Regression on numbers from 0 to 9.5; `problem="classification"` takes them as classes.'
    )


def test_whole_numbers_are_classes_by_default(tmp_path):
    path = write(tmp_path / "t.csv", "text,label\n" + "".join(f"r {i},{i % 5 + 1}\n" for i in range(40)))
    classes = load_table(path)
    assert (classes.task.problem, classes.task.label_names) == ("classification", ("1", "2", "3", "4", "5"))
    assert classes.notes[0] == (
        'Classification, 5 classes: 1, 2, 3, 4, 5; `problem="regression"` takes them as numbers.'
    )
    numbers = load_table(path, problem="regression")
    assert numbers.task.problem == "regression"
    assert labels_by_row(numbers)[4] == 5.0
    fractions = load_table(jsonl(tmp_path / "f.jsonl", [0.5, 1.5] * 8), problem="classification")
    assert fractions.task.label_names == ("0.5", "1.5")


def test_numbers_with_fractions_and_a_word_are_refused(tmp_path):
    path = write(tmp_path / "t.csv", "text,label\na,0.5\nb,1.5\nc,NA\nd,2\n")
    with pytest.raises(RankwiseError, match="numbers with fractions, and 'NA'. Say what it is: `problem="):
        load_table(path)
    with pytest.raises(
        RankwiseError, match="t.csv line 4: column 'label' holds 'NA'; regression takes numbers"
    ):
        load_table(path, problem="regression")


@pytest.mark.parametrize("odd", ["1_000", "inf", "nan", "0x10", "1,5"])
def test_python_only_number_syntax_is_refused(tmp_path, odd):
    path = jsonl(tmp_path / "t.jsonl", ["0.5", odd, "1e-1", "-2.", "+.5"])
    with pytest.raises(RankwiseError, match="regression takes numbers"):
        load_table(path, problem="regression")


def test_a_constant_label_is_refused(tmp_path):
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
    held_out, _ = read_rows(path, dataset.task)
    assert held_out.labels.tolist() == [found[int(i)] for i in held_out.idx]
    with pytest.raises(RankwiseError, match="names 2 columns, and regression has one"):
        load_table(path, label=("toxic", "insult"), problem="regression")
    with pytest.raises(
        RankwiseError, match="t.csv line 2: column 'text' holds 'a'; a column of a label holds 0 and 1"
    ):
        load_table(path, text="insult", label=("toxic", "text"))


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (["fun,sad"] * 4, r"holds 'fun,sad'; several labels are a list in each row .* named with `label=`"),
        ([[1, 2, 1]] * 4, "a list names the labels that a row has, each once"),
        ([[0.3, 0.7]] * 4, "and no fractions"),
        ([[1], [0]] * 4, "it may name labels or mark them with 0 and 1; write names as strings"),
        ([[1, 0], []] * 4, r"holds \[\]; the other rows have a list of 2 marks, each 0 or 1"),
        ([[["fun"]]] * 4, "labels are strings or numbers"),
        ([[None]] * 4, "each once"),
    ],
)
def test_other_forms_of_several_labels_are_refused(tmp_path, labels, says):
    with pytest.raises(RankwiseError, match=says):
        load_table(jsonl(tmp_path / "t.jsonl", labels), problem="multi-label")


def test_a_file_is_read_once(tmp_path, monkeypatch):
    path = write(tmp_path / "t.csv", reviews(20))
    (tmp_path / "link.csv").symlink_to(path)
    monkeypatch.chdir(tmp_path)
    files = (path, Path("t.csv"), tmp_path / "link.csv", tmp_path / "*.csv")
    assert len(labels_by_row(load_table(*files))) == 20


def test_several_files_are_one_table(tmp_path):
    one = write(tmp_path / "part-1.csv", "text,label\n" + "".join(f"a {i},good\n" for i in range(10)))
    two = write(tmp_path / "part-2.csv", "label,text\n" + "".join(f"bad,b {i}\n" for i in range(10)))
    more = jsonl(tmp_path / "more.jsonl", ["good", "bad"] * 5)
    dataset = load_table(one, two, more)
    assert (dataset.task.name, len(labels_by_row(dataset))) == ("part-1", 30)
    by_pattern = load_table(tmp_path / "part-*.csv", more)
    assert by_pattern.train.text == dataset.train.text


def test_an_error_in_one_of_several_files_names_file_and_line(tmp_path):
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
