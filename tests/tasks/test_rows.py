"""Rows of a file, to evaluate or predict on."""

import pytest

from own_tables import glue_folder, jsonl, load_table, write
from rankwise.errors import RankwiseError
from rankwise.tasks.registry import TASKS
from rankwise.tasks.rows import read_rows, survey, texts_or_reasons
from rankwise.tasks.streams import open_stream
from rankwise.tasks.task import Task

STARS = Task("stars", "text", None, "label", ("bad", "good"), ("accuracy",), "")


def test_prediction_needs_no_labels_and_keeps_every_row(tmp_path):
    path = write(tmp_path / "t.jsonl", '{"text": "a"}\n{"text": null}\n{"text": ["c"], "label": "odd"}\n')
    (piece,) = open_stream(path).pieces(None)
    texts, reasons = texts_or_reasons(piece, STARS)
    assert texts == [["a", "", ""]]
    assert reasons == [None, "no text in 'text'", "'text' holds ['c'], not text"]


def test_evaluation_names_an_unknown_label(tmp_path):
    path = write(tmp_path / "t.csv", "text,label\na,good\nb,odd\nc,odd\n")
    with pytest.raises(RankwiseError, match="t.csv lines 3, 4: label 'odd' is not one of"):
        read_rows(path, STARS)


def test_a_glue_model_evaluates_glues_own_class_ids(tmp_path):
    folder = glue_folder(tmp_path, TASKS["rte"], validation=4)
    rows, _ = read_rows(folder / "rte" / "validation.parquet", TASKS["rte"])
    assert rows.labels.tolist() == [0, 1, 0, 1]
    words = write(tmp_path / "w.csv", "sentence1,sentence2,label\na,b,not_entailment\nc,d,entailment\n")
    assert read_rows(words, TASKS["rte"])[0].labels.tolist() == [1, 0]


def test_a_file_without_any_text_is_refused(tmp_path):
    path = write(tmp_path / "t.csv", "text,label\n,good\n")
    with pytest.raises(RankwiseError, match="t.csv has no row with text"):
        survey(open_stream(path), STARS)
    lists = write(tmp_path / "t.jsonl", '{"text": [1]}\n')
    with pytest.raises(
        RankwiseError, match=r"t.jsonl line 1: column 'text' holds \[1\], not text. Say which"
    ):
        survey(open_stream(lists), STARS)


def test_lists_are_no_text(tmp_path):
    path = write(tmp_path / "t.jsonl", '{"text": "a", "label": 0}\n{"text": ["b"], "label": 1}\n')
    with pytest.raises(RankwiseError, match=r"t.jsonl line 2: column 'text' holds \['b'\], not text"):
        load_table(path)


def test_halves_of_surrogate_pairs_are_replaced(tmp_path):
    path = write(tmp_path / "t.jsonl", '{"text": "cut \\ud83d"}\n{"text": "whole \\ud83d\\ude00 é"}\n')
    (piece,) = open_stream(path).pieces(["text"])
    assert texts_or_reasons(piece, TASKS["movies"])[0][0] == ["cut \ufffd", "whole 😀 é"]


def test_an_unknown_label_in_a_list_is_named(tmp_path):
    task = Task("t", "text", None, "label", ("fun", "sad"), ("micro_f1",), "", problem="multi-label")
    path = jsonl(tmp_path / "t.jsonl", [["fun"], ["fun", "odd"], ["odd"]])
    with pytest.raises(
        RankwiseError, match="t.jsonl lines 2, 3: label 'odd' is not one of the task's classes: fun, sad"
    ):
        read_rows(path, task)
