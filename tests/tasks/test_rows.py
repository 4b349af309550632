"""Tasks by name and tables of one's own: which rows a run gets, and what is said about those it doesn't."""

import sys
import types
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise import downloads
from rankwise.config import DataOptions, RunConfig, TableOptions
from rankwise.errors import RankwiseError
from rankwise.tasks.encoding import Rows
from rankwise.tasks.load import load_dataset, load_split
from rankwise.tasks.objectives import OBJECTIVES
from rankwise.tasks.registry import TASKS
from rankwise.tasks.rows import read_rows
from rankwise.tasks.splits import Dataset, stratified_split
from rankwise.tasks.task import Task

SHARED = Path(__file__).parents[3] / "shared" / "data" / "glue"


def write(path: Path, lines: str) -> Path:
    path.write_text(lines, encoding="utf-8")
    return path


def load_table(path: Path, **options) -> Dataset:
    return load_dataset(RunConfig(table=TableOptions(train_file=(path,), **options)))


def label_of(task: Task, i: int) -> float:
    return 0.75 * i if task.problem == "regression" else i % len(task.label_names)


def glue_folder(folder: Path, task: Task, **splits: int) -> Path:
    """Parquet files with the task's columns: so many rows a split."""
    (folder / task.name).mkdir(parents=True)
    for split, n in splits.items():
        columns = {
            "label": [label_of(task, i) for i in range(n)],
            "idx": [i + 1000 for i in range(n)],
        }
        columns |= {
            name: [f"{split} {name} {i}" for i in range(n)] for name in (task.text, task.text_pair) if name
        }
        pq.write_table(pa.table(columns), folder / task.name / f"{split}.parquet")
    return folder


# Tasks by name


@pytest.mark.parametrize("name", [name for name in TASKS if name != "movies"])
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


def test_mnli_is_scored_on_matched_and_beside_it_on_mismatched(tmp_path):
    sizes = {"train": 6, "validation_matched": 4, "validation_mismatched": 3}
    folder = glue_folder(tmp_path, TASKS["mnli"], **sizes)
    validation = load_dataset(RunConfig(task="mnli", data=DataOptions(data=folder))).validation
    assert [(split, len(rows)) for split, rows in validation.items()] == [
        ("validation", 4),
        ("validation_mismatched", 3),
    ]
    rows, _ = load_split(TASKS["mnli"], "validation", folder)
    assert rows.text == validation["validation"].text


def test_the_hubs_own_file_names_are_read_too(tmp_path):
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


def test_a_hub_out_of_reach_points_to_a_folder(monkeypatch):
    def from_hub(*_, **__):
        raise ConnectionError("no route to host\nand much more")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=from_hub))
    with pytest.raises(RankwiseError, match=r"\(no route to host\)\. Give a folder .* with --data\.$"):
        load_dataset(RunConfig(task="rte"))


def test_movies_are_the_sentences_with_a_clear_rating():
    """Counted from the file itself: no row is lost, labels are the ratings' signs, no text is on both sides."""
    dataset = load_dataset(RunConfig(task="movies"))
    train, validation = dataset.train, dataset.validation["validation"]
    lines = [line.split("\t") for line in downloads.MOVIES.path().read_text(encoding="utf-8").splitlines()]
    expected = {int(number): (text, int(float(r) > 0)) for number, r, text in lines if abs(float(r)) >= 0.3}
    found = {
        int(i): (text, int(label))
        for rows in (train, validation)
        for i, text, label in zip(rows.idx, rows.text, rows.labels, strict=True)
    }
    assert found == expected
    assert len(train) + len(validation) == len(expected) == 10_318
    assert len(validation) / len(expected) == pytest.approx(0.15, abs=0.001)
    assert validation.labels.mean() == pytest.approx(train.labels.mean(), abs=0.001)
    assert not {text.lower() for text in train.text} & {text.lower() for text in validation.text}


# Limits


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


def test_a_limit_on_movies_which_go_by_label_keeps_both_labels():
    rows = load_dataset(RunConfig(data=DataOptions(limit_train=200, limit_eval=200)))
    for labels in (rows.train.labels, rows.validation["validation"].labels):
        assert 0.4 < labels.mean() < 0.6


# A table of one's own


def reviews(n: int, labels=("bad", "good")) -> str:
    return "text,label\n" + "".join(f"review {i},{labels[i % len(labels)]}\n" for i in range(n))


def test_labels_are_sorted_and_kept_as_strings(tmp_path):
    words = load_table(write(tmp_path / "words.csv", reviews(20)))
    assert words.task.label_names == ("bad", "good")
    numbers = load_table(write(tmp_path / "numbers.csv", reviews(40, labels=("10", "9", "-1"))))
    assert numbers.task.label_names == ("-1", "9", "10")
    assert [numbers.task.label_names[i] for i in numbers.train.labels[:1]] == [
        ("10", "9", "-1")[numbers.train.idx[0] % 3]
    ]


def test_integers_of_parquet_and_strings_of_csv_are_the_same_labels(tmp_path):
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
        ({}, "t.csv has no column 'label'. Its columns: review, stars. Say which with --label."),
        (
            {"label": ("stars",)},
            "t.csv has no column 'text'. Its columns: review, stars. Say which with --text.",
        ),
        ({"label": ("star",), "text": "review"}, "t.csv has no column 'star'."),
        (
            {"label": ("stars",), "text": "review", "text_pair": "reply"},
            "t.csv has no column 'reply'. Its columns: review, stars. Say which with --text-pair.",
        ),
    ],
)
def test_a_column_is_never_guessed(tmp_path, options, says):
    path = write(tmp_path / "t.csv", "review,stars\na,1\nb,2\n")
    with pytest.raises(RankwiseError) as error:
        load_table(path, **options)
    assert says in str(error.value)


def test_incomplete_rows_are_left_out_counted_and_named_by_line(tmp_path):
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


def test_lists_are_no_text(tmp_path):
    path = write(tmp_path / "t.jsonl", '{"text": "a", "label": 0}\n{"text": ["b"], "label": 1}\n')
    with pytest.raises(RankwiseError, match=r"t.jsonl line 2: column 'text' holds \['b'\], not text"):
        load_table(path)


def test_halves_of_surrogate_pairs_do_not_reach_the_tokenizer(tmp_path):
    path = write(tmp_path / "t.jsonl", '{"text": "cut \\ud83d"}\n{"text": "whole \\ud83d\\ude00 é"}\n')
    rows, _ = read_rows(path, TASKS["movies"], labelled=False)
    assert rows.text == ["cut \ufffd", "whole 😀 é"]


def test_validation_rows_that_stand_in_training_are_counted(tmp_path):
    train = write(tmp_path / "t.csv", reviews(8))
    held = write(tmp_path / "v.csv", "text,label\n review 1 ,good\nreview 2,good\nnew,bad\n")
    notes = load_table(train, validation=held).notes
    assert any(note.startswith("2 of 3 rows of v.csv also stand in t.csv") for note in notes)
    held = write(tmp_path / "v.csv", "text,label\nnew,bad\n")
    assert load_table(train, validation=held).notes[1:] == ()


def test_without_validation_a_fifth_of_each_class_is_split_off(tmp_path):
    dataset = load_table(write(tmp_path / "t.csv", reviews(300, labels=("a", "a", "b"))))
    validation = dataset.validation["validation"]
    assert np.bincount(validation.labels).tolist() == [40, 20]
    assert np.bincount(dataset.train.labels).tolist() == [160, 80]
    assert "60 rows of t.csv are split off for validation" in dataset.notes[-1]


def test_a_large_table_gives_two_thousand_rows_to_validation(tmp_path):
    assert len(load_table(write(tmp_path / "t.csv", reviews(20_000))).validation["validation"]) == 2_000


def test_a_table_too_small_to_split_is_refused(tmp_path):
    with pytest.raises(RankwiseError, match="too small to split validation rows off"):
        load_table(write(tmp_path / "t.csv", "text,label\na,0\nb,1\n"))


texts = st.text("abAB !", max_size=4)


@given(
    st.lists(st.tuples(texts, st.integers(0, 2)), min_size=1, max_size=60), st.floats(0.05, 0.5), st.randoms()
)
def test_the_split_is_a_partition_that_keeps_like_texts_together(rows, share, random):
    label_of = {text.casefold().replace("!", " ").strip(): label for text, label in rows}
    rows = [(text, label_of[text.casefold().replace("!", " ").strip()]) for text, _ in rows]

    def split(order: list[int]) -> tuple[Rows, Rows]:
        chosen = [rows[i] for i in order]
        labels = np.array([label for _, label in chosen], dtype=np.int64)
        return stratified_split(
            Rows([text for text, _ in chosen], None, labels, np.array(order)),
            share,
            OBJECTIVES["classification"],
        )

    order = list(range(len(rows)))
    train, validation = split(order)
    assert sorted([*train.idx.tolist(), *validation.idx.tolist()]) == order
    assert not {t.casefold() for t in train.text} & {t.casefold() for t in validation.text}
    assert set(train.labels.tolist()) == {label for _, label in rows}
    random.shuffle(order)
    assert set(split(order)[1].idx.tolist()) == set(validation.idx.tolist())


# Rows to evaluate or predict on


STARS = Task("stars", "text", None, "label", ("bad", "good"), ("accuracy",), "")


def test_prediction_needs_no_labels(tmp_path):
    path = write(tmp_path / "t.jsonl", '{"text": "a"}\n{"text": null}\n{"text": "c", "label": "odd"}\n')
    rows, notes = read_rows(path, STARS, labelled=False)
    assert (rows.text, rows.labels, rows.idx.tolist()) == (["a", "c"], None, [0, 2])
    assert notes == ("t.jsonl: 1 row without text left out (line 2).",)


def test_evaluation_names_a_label_the_model_does_not_know(tmp_path):
    path = write(tmp_path / "t.csv", "text,label\na,good\nb,odd\nc,odd\n")
    with pytest.raises(RankwiseError, match="t.csv lines 3, 4: label 'odd' is not one of"):
        read_rows(path, STARS, labelled=True)


def test_a_glue_model_evaluates_glues_own_class_ids(tmp_path):
    folder = glue_folder(tmp_path, TASKS["rte"], validation=4)
    rows, _ = read_rows(folder / "rte" / "validation.parquet", TASKS["rte"], labelled=True)
    assert rows.labels.tolist() == [0, 1, 0, 1]
    words = write(tmp_path / "w.csv", "sentence1,sentence2,label\na,b,not_entailment\nc,d,entailment\n")
    assert read_rows(words, TASKS["rte"], labelled=True)[0].labels.tolist() == [1, 0]


def test_a_file_without_any_text_is_refused(tmp_path):
    with pytest.raises(RankwiseError, match="t.csv has no row with text"):
        read_rows(write(tmp_path / "t.csv", "text,label\n,good\n"), STARS, labelled=False)
