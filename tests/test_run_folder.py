"""The run folder: whatever is killed at whatever moment, a reader finds the old file or the new one, and damage is named."""

import os
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.errors import RankwiseError
from rankwise.run_folder import RESULT, FollowedRun, RunFolder, read_grid, run_folders, run_name, write_grid


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    run = RunFolder(tmp_path / "sst2.lora.s0")
    run.write_request({"task": "sst2"})
    return run


def save_number(number: int):
    """Writes a checkpoint that says which one it is."""
    return lambda path: (path / "state").write_text(str(number), encoding="utf-8")


def number_of(checkpoint: Path | None) -> int | None:
    return checkpoint and int((checkpoint / "state").read_text(encoding="utf-8"))


def names(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


# Names


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("full", "sst2.full.s3"),
        ("lora:rank=4", "sst2.lora-rank-4.s3"),
        ("lora:targets=query+key,rank=2", "sst2.lora-targets-query-key-rank-2.s3"),
        ("lora:", "sst2.lora.s3"),
    ],
)
def test_a_run_is_named_after_its_task_method_and_seed(method, name):
    assert run_name("sst2", method, 3) == name


@given(st.text(min_size=1, max_size=40))
def test_a_name_is_one_folder_whatever_the_method_is_called(method):
    name = run_name("sst2", method, 0)
    assert Path(name).name == name
    assert name.isascii()
    assert name.isprintable()


# What was asked for


def test_a_request_makes_the_folder_and_can_be_read_back(tmp_path):
    run = RunFolder(tmp_path / "a" / "b")
    assert not run.has_run
    run.write_request({"task": "größe", "data": {"limit": None}}, {"threads": 2})
    assert run.has_run
    assert not run.finished
    assert run.read_run() == {
        "requested": {"task": "größe", "data": {"limit": None}},
        "assigned": {"threads": 2},
    }


def test_asking_again_keeps_what_an_earlier_start_recorded(folder):
    folder.update_run_json(facts={"dtype": "bfloat16"})
    folder.write_request({"task": "rte"}, {"threads": 1})
    assert folder.read_run() == {
        "requested": {"task": "rte"},
        "assigned": {"threads": 1},
        "facts": {"dtype": "bfloat16"},
    }


def test_a_reader_sees_the_old_file_or_the_new_one(folder):
    """Two documents of very different length take turns while another thread reads."""
    short, long = {"task": "sst2", "pad": ""}, {"task": "rte", "pad": "x" * 500_000}
    folder.write_request(short)
    done = threading.Event()

    def write():
        for i in range(30):
            folder.write_request(long if i % 2 else short)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    while not done.is_set():
        seen.append(folder.read_run()["requested"])
    writer.join()
    assert seen
    assert all(document in (short, long) for document in seen)


# Steps


def test_steps_are_read_in_the_order_they_were_added(folder):
    folder.append_steps([{"step": 1, "loss": 0.7}])
    folder.append_steps([{"step": 2, "loss": 0.6}, {"step": 3, "loss": float("inf")}])
    assert folder.read_steps() == [
        {"step": 1, "loss": 0.7},
        {"step": 2, "loss": 0.6},
        {"step": 3, "loss": float("inf")},
    ]


def test_a_run_without_steps_has_none(folder):
    assert folder.read_steps() == []


@pytest.mark.parametrize("kept", range(1, len('{"step": 2, "loss": 0.5}') + 1))
def test_a_last_line_cut_short_is_left_out_wherever_it_is_cut(folder, kept):
    folder.append_steps([{"step": 1, "loss": 0.7}])
    with (folder.path / "steps.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 2, "loss": 0.5}'[:kept])
    assert folder.read_steps() == [{"step": 1, "loss": 0.7}]


def test_truncating_forgets_later_steps_and_a_line_cut_short(folder):
    folder.append_steps([{"step": step} for step in range(1, 6)])
    with (folder.path / "steps.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"st')
    folder.truncate_steps(3)
    folder.append_steps([{"step": 4}])
    assert [line["step"] for line in folder.read_steps()] == [1, 2, 3, 4]


def test_truncating_to_nothing_leaves_an_empty_log(folder):
    folder.append_steps([{"step": 1}])
    folder.truncate_steps(0)
    assert folder.read_steps() == []


@pytest.mark.parametrize(
    "line",
    [
        *(
            b'{"step": 2, "lo',
            b"\xff\xfe",
            b"3",
            b"\0\0\0",
            b'{"loss": 0.5}',
            b"null",
            b"",
            b'{"step": 2}{"step": 3}',
        ),
        *(
            b'{"step": "2"}',
            b'{"step": true}',
            b'{"step": -1}',
            b'{"step": 1e2}',
            b'{"step": ' + b"9" * 40 + b"}",
        ),
        *(
            b'{"step": 2, "step": 3}',
            b"[" * 60_000,
            b'{"step": 2, "a": ' + b"[" * 60_000 + b"]" * 60_000 + b"}",
        ),
    ],
)
def test_a_damaged_line_among_steps_is_named(folder, line):
    (folder.path / "steps.jsonl").write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(RankwiseError, match=r"steps\.jsonl is damaged \(line 2 .*Remove its folder"):
        folder.read_steps()


# Checkpoints


def test_a_checkpoint_takes_the_place_of_the_last(folder):
    assert folder.checkpoint is None
    for number in range(12):  # so that 10 comes after 9
        folder.replace_checkpoint(save_number(number))
        assert number_of(folder.checkpoint) == number
        assert len(list(folder.path.glob("checkpoint-*"))) == 1


def test_a_checkpoint_that_was_not_written_to_its_end_is_ignored(folder):
    folder.replace_checkpoint(save_number(1))

    def break_off(path):
        (path / "state").write_text("half", encoding="utf-8")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.replace_checkpoint(break_off)
    assert number_of(folder.checkpoint) == 1
    folder.replace_checkpoint(save_number(2))
    assert number_of(folder.checkpoint) == 2
    assert names(folder.checkpoint) == {"state", "SHA256SUMS"}


def test_a_first_checkpoint_that_was_not_written_to_its_end_is_none(folder):
    (folder.path / "checkpoint-partial").mkdir()
    assert folder.checkpoint is None


def test_of_two_checkpoints_the_later_counts(folder):
    """A kill between the new one's rename and the old one's removal leaves both."""
    for number in (9, 10):
        path = folder.path / f"checkpoint-{number}"
        path.mkdir()
        save_number(number)(path)
    assert number_of(folder.checkpoint) == 10
    folder.replace_checkpoint(save_number(11))
    assert number_of(folder.checkpoint) == 11


def test_removing_checkpoints_leaves_none_of_any_kind(folder):
    folder.replace_checkpoint(save_number(1))
    (folder.path / "checkpoint-partial").mkdir()
    (folder.path / "checkpoint-7").mkdir()
    folder.remove_checkpoint()
    assert names(folder.path) == {"run.json"}


# What it made


def result(**entries):
    words = {"task": "sst2", "method": "lora", "model": "minilm", "metric": "accuracy"}
    return {**dict.fromkeys(RESULT, 0), **words, "scores": {"validation": {"accuracy": 0.0}}, **entries}


def test_predictions_come_back_as_they_were(folder):
    logits = np.array([[0.25, -1.5], [3.0, 4.0]], dtype=np.float32)
    idx, label, prediction = np.array([70, 3]), np.array([1, 0]), np.array([0, 1])
    folder.write_predictions(idx, label, prediction, logits)
    table = folder.read_predictions()
    assert table.column_names == ["idx", "label", "prediction", "logits"]
    assert table["idx"].to_pylist() == [70, 3]
    assert table["label"].to_pylist() == [1, 0]
    assert table["prediction"].to_pylist() == [0, 1]
    assert np.array_equal(np.array(table["logits"].to_pylist(), dtype=np.float32), logits)
    assert names(folder.path) == {"run.json", "predictions.parquet"}


@pytest.mark.parametrize(
    "entries",
    [
        {"score": None},
        {"score": "0.9"},
        {"score": float("nan")},
        {"task": 3},
        {"seed": "0"},
        {"scores": [1]},
        {"n_train": True},
    ],
)
def test_a_result_whose_entries_are_of_the_wrong_kind_is_damaged(folder, entries):
    folder.write_result(result(**entries))
    with pytest.raises(RankwiseError, match=f"result.json is damaged.*{next(iter(entries))} is "):
        folder.read_result()


def test_speed_and_memory_may_be_unknown(folder):
    folder.write_result(result(samples_per_second=None, peak_rss_mb=None))
    assert folder.read_result()["peak_rss_mb"] is None


def test_predictions_with_a_hole_are_damaged(folder):
    pq.write_table(
        pa.table({"idx": [0, 1], "label": [1, None], "prediction": [1, 1], "logits": [[0.0], [0.0]]}),
        folder.path / "predictions.parquet",
    )
    with pytest.raises(RankwiseError, match="predictions.parquet is damaged .label holds something"):
        folder.read_predictions()


@pytest.mark.parametrize(
    ("label", "prediction", "says"),
    [
        ([0.5, float("nan")], [0.5, 0.5], "label holds something"),
        ([0.5, 0.5], [0.5, float("inf")], "prediction holds something"),
        ([[1.0, 0.0], [1.0]], [[1.0, 0.0], [1.0, 0.0]], "differ in their number of labels"),
        ([[1.0], [1.0]], [[1.0, 0.0], [1.0, 0.0]], "differ in their number of labels"),
        ([[1.0, 0.0], [1.0, None]], [[1.0, 0.0], [1.0, 0.0]], "label holds something"),
    ],
)
def test_predictions_that_hold_no_labels_are_damaged(folder, label, prediction, says):
    kind = pa.list_(pa.float32()) if isinstance(label[0], list) else pa.float32()
    columns = {"label": pa.array(label, kind), "prediction": pa.array(prediction, kind)}
    pq.write_table(
        pa.table({"idx": [0, 1], **columns, "logits": [[0.0], [0.0]]}), folder.path / "predictions.parquet"
    )
    with pytest.raises(RankwiseError, match=f"predictions.parquet is damaged .*{says}"):
        folder.read_predictions()


def test_predictions_of_no_rows_are_read(folder):
    folder.write_predictions(
        np.zeros(0, int), np.zeros(0, int), np.zeros(0, int), np.zeros((0, 2), np.float32)
    )
    assert len(folder.read_predictions()) == 0


# Curves and decisions


def lines(path, *lines: str) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def test_a_curve_is_read_as_columns(folder):
    folder.append_steps(
        [
            {"step": 1, "loss": 0.5, "tokens": 7},
            {"step": 2, "loss": 0.25, "validation": {"f1": 0.1, "accuracy": 0.75}},
        ]
    )
    with (folder.path / "steps.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 3, "lo')  # killed while writing
    curve = folder.read_curve("accuracy").to_pydict()
    assert curve == {"step": [1, 2], "loss": [0.5, 0.25], "score": [None, 0.75]}


def test_a_run_without_a_log_has_an_empty_curve(folder):
    assert folder.read_curve("accuracy").num_rows == 0


@pytest.mark.parametrize("line", ["{", '{"loss": 0.5}', "not json"])
def test_a_damaged_log_has_no_curve(folder, line):
    lines(folder.path / "steps.jsonl", '{"step": 1, "loss": 0.5}', line)
    with pytest.raises(RankwiseError, match="steps.jsonl is damaged"):
        folder.read_curve("accuracy")


def test_decisions_that_cannot_be_read_are_counted(folder):
    lines(
        folder.path / "ranks.jsonl",
        '{"step": 1}',
        "{",
        '{"kind": "prune"}',
        '{"step": 2, "kind": "prune"}',
        "[]",
    )
    decisions, unread = folder.read_decisions()
    assert [decision["step"] for decision in decisions] == [1, 2]
    assert unread == 3


@pytest.mark.parametrize(
    "entries",
    [
        {"text": 1e308},
        {"changes": {"a": [1]}},
        {"changes": {"a": [1, -1]}},
        {"ranks": {"a": True}},
        {"accepted": 1},
    ],
)
def test_a_decision_whose_entries_are_of_the_wrong_kind_is_damaged(folder, entries):
    folder.append_ranks([{"step": 1, "text": "fine"}, {"step": 2, **entries}])
    with pytest.raises(RankwiseError, match=r"ranks\.jsonl is damaged \(line 2: "):
        folder.read_ranks()
    assert folder.read_decisions() == ([{"step": 1, "text": "fine"}], 1)


def test_a_run_is_finished_when_its_result_is_there(folder):
    assert not folder.finished
    (folder.path / "result.json.partial").write_text("{}", encoding="utf-8")
    assert not folder.finished
    folder.write_result(result(score=0.5))
    assert folder.finished
    assert folder.read_result()["score"] == 0.5


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", '{"task": "sst2"}', "\udcff"])
def test_a_damaged_result_is_named(folder, content):
    (folder.path / "result.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(RankwiseError, match=r"result\.json is damaged \(.+\)\. Remove its folder"):
        folder.read_result()


@pytest.mark.parametrize("key", RESULT)
def test_a_result_that_lacks_something_says_what(folder, key):
    document = result()
    del document[key]
    folder.write_result(document)
    with pytest.raises(RankwiseError, match=rf"it lacks {key}\)"):
        folder.read_result()


def test_a_request_without_settings_is_damaged(folder):
    (folder.path / "run.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RankwiseError, match=r"run\.json is damaged \(it lacks requested\)"):
        folder.read_run()


def test_a_missing_file_is_named(folder):
    (folder.path / "run.json").unlink()
    for read, name in (
        (folder.read_run, "run.json"),
        (folder.read_result, "result.json"),
        (folder.read_predictions, "predictions.parquet"),
    ):
        with pytest.raises(RankwiseError, match=rf"sst2\.lora\.s0/{name} is missing\. Remove its folder"):
            read()


def test_no_flipped_byte_makes_other_predictions(folder):
    file, rng = folder.path / "predictions.parquet", np.random.default_rng(0)
    label, prediction = rng.integers(0, 2, (2, 40))
    folder.write_predictions(np.arange(40), label, prediction, rng.normal(size=(40, 2)).astype(np.float32))
    content, whole = file.read_bytes(), folder.read_predictions().drop(["logits"])
    damaged = 0
    for place in range(0, len(content), 5):
        flipped = bytearray(content)
        flipped[place] ^= int(rng.integers(1, 256))
        file.write_bytes(flipped)
        try:
            assert folder.read_predictions().drop(["logits"]).equals(whole)
        except RankwiseError:
            damaged += 1
    assert damaged > len(content) / 10


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_predictions_that_are_no_file_are_damaged(folder, kind):
    file = folder.path / "predictions.parquet"
    file.mkdir() if kind == "folder" else os.mkfifo(file)
    with pytest.raises(RankwiseError, match=r"predictions\.parquet is damaged \(not a file\)"):
        folder.read_predictions()


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "columns"])
def test_damaged_predictions_are_named(folder, damage):
    file = folder.path / "predictions.parquet"
    column = np.arange(4)
    folder.write_predictions(column, column, column, np.zeros((4, 2), dtype=np.float32))
    if damage == "columns":
        pq.write_table(pa.table({"idx": [1]}), file)
    else:
        file.write_bytes({"empty": b"", "cut": file.read_bytes()[:-9], "text": b"idx,label\n1,1\n"}[damage])
    with pytest.raises(RankwiseError, match=r"predictions\.parquet is damaged \(.+\)"):
        folder.read_predictions()


# The grid's folder


def test_a_grids_request_is_empty_before_it_is_set(tmp_path):
    assert read_grid(tmp_path) == {}
    write_grid(tmp_path, {"tasks": ["sst2"]})
    assert read_grid(tmp_path) == {"tasks": ["sst2"]}


def test_a_damaged_grid_file_can_go_without_its_runs(tmp_path):
    (tmp_path / "grid.json").write_text("{", encoding="utf-8")
    with pytest.raises(RankwiseError, match=r"grid\.json is damaged .* Remove this file; the runs .* stay"):
        read_grid(tmp_path)


def test_run_folders_are_those_with_a_request_or_a_result_by_name(tmp_path):
    for name in ("b", "a"):
        RunFolder(tmp_path / name).write_request({})
    (tmp_path / "c").mkdir()
    RunFolder(tmp_path / "c").write_result(result())
    (tmp_path / "notes").mkdir()
    (tmp_path / "report.md").touch()
    assert [run.path.name for run in run_folders(tmp_path)] == ["a", "b", "c"]


def test_a_run_that_is_followed_is_written_by_nobody(tmp_path):
    """Whatever a run's folder can write, the processes that follow the first one leave to it."""
    writing = ("write_", "append_", "update_", "truncate_", "replace_", "remove_", "forget_")
    names = [name for name in vars(RunFolder) if name.startswith(writing)]
    assert len(names) >= 13
    followed = FollowedRun(tmp_path / "run")
    for name in names:
        assert getattr(followed, name)({}) is None, name
    assert not followed.path.exists()
