"""Files that appear whole, and folders that can't be written."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise import files
from rankwise.errors import RankwiseError
from rankwise.files import DEEPEST, check_place, make_folder, parse_json
from rankwise.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    folder = RunFolder(tmp_path / "sst2.lora.s0")
    folder.write_request({"task": "sst2"})
    return folder


def test_a_write_that_breaks_off_leaves_the_old_file(folder, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        folder.update_run_json(facts={})
    assert folder.read_run() == {"requested": {"task": "sst2"}, "assigned": {}}


@pytest.mark.parametrize("place", ["taken", "taken/below"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path, place):
    (tmp_path / "taken").write_text("a file", encoding="utf-8")
    with pytest.raises(
        RankwiseError, match=rf"{place} can't be written: .+\. Give another folder with `out=`"
    ):
        make_folder(tmp_path / place)
    with pytest.raises(RankwiseError, match="can't be written"):
        RunFolder(tmp_path / place).write_request({})
    assert (tmp_path / "taken").read_text(encoding="utf-8") == "a file"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to")
def test_a_folder_that_is_there_but_cannot_be_written_is_named():
    with pytest.raises(RankwiseError, match="/proc/self can't be written"):
        make_folder(Path("/proc/self"))


@pytest.mark.parametrize(
    "address", ["s3://bucket/runs", "gs://bucket", "hf://datasets/me/runs", "file:///tmp/x"]
)
def test_the_address_of_a_store_is_no_folder(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = Path(address)
    for refuses in (make_folder, lambda out: check_place(out, out, "folder")):
        with pytest.raises(RankwiseError, match=r"`out=` takes a folder of this machine, not an address \("):
            refuses(out)
    assert not list(tmp_path.iterdir())


def test_making_a_folder_leaves_nothing_in_it(tmp_path):
    make_folder(tmp_path / "new")
    make_folder(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_what_a_write_that_breaks_off_had_written_is_removed_and_the_file_is_named(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError) as error:
        files.write(tmp_path / "note", b"text")
    assert error.value.filename == str(tmp_path / "note")
    assert list(tmp_path.iterdir()) == []


# What was measured once


def test_a_number_is_measured_once(tmp_path):
    file = tmp_path / "below" / "numbers.json"
    assert files.remembered(file, "a", lambda: 2.5) == 2.5
    assert files.remembered(file, "a", lambda: 7.0) == 2.5
    assert files.remembered(file, "b", lambda: 7.0) == 7.0
    assert files.remembered(None, "a", lambda: 8.0) == 8.0


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[1]",
        "[" * 60_000,
        '{"a": "x"}',
        '{"a": null}',
        '{"a": NaN}',
        '{"a": 0}',
        '{"a": 9}',
        '{"a": -1}',
        '{"a": 1e999}',
    ],
)
def test_a_number_that_cannot_be_is_measured_anew(tmp_path, content):
    file = tmp_path / "numbers.json"
    file.write_text(content)
    assert files.remembered(file, "a", lambda: 2.5, largest=4) == 2.5
    assert json.loads(file.read_text())["a"] == 2.5


def test_a_place_that_keeps_nothing_is_no_error(tmp_path):
    (tmp_path / "file").touch()
    for file in (tmp_path / "file" / "numbers.json", Path("/proc/self/numbers.json")):
        assert files.remembered(file, "a", lambda: 2.5) == 2.5


def test_sums_are_those_of_sha256sum_and_see_every_change(tmp_path):
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"two")
    files.write_sums(tmp_path)
    subprocess.run(
        ["sha256sum", "--check", "--strict", files.SUMS], cwd=tmp_path, check=True, capture_output=True
    )
    files.check_sums(tmp_path)
    (tmp_path / "b").write_bytes(b"twp")
    with pytest.raises(ValueError, match="'b' isn't what was written"):
        files.check_sums(tmp_path)
    (tmp_path / "b").unlink()
    with pytest.raises(OSError):
        files.check_sums(tmp_path)


KILLED = """
import os, signal, sys
from rankwise.run_folder import RunFolder
folder, flushed = RunFolder(sys.argv[1]), os.fsync
def kill(descriptor):
    flushed(descriptor)
    os.kill(os.getpid(), signal.SIGKILL)
os.fsync = kill
folder.write_result({"score": 1.0})
"""


def test_a_kill_while_the_result_is_written_leaves_an_unfinished_run(folder):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder.path)], check=False)
    assert killed.returncode == -9
    assert not folder.finished
    assert json.loads((folder.path / "result.json.partial").read_text(encoding="utf-8")) == {"score": 1.0}


def test_a_name_that_is_no_text_is_refused_in_a_sentence(folder):
    with pytest.raises(RankwiseError, match=r"'b\\ud800' can't be stored: it ends in half of a character"):
        folder.write_request({"label_names": ["a", "b\ud800c"]})
    assert folder.read_run()["requested"] == {"task": "sst2"}


# JSON

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(values)
def test_json_comes_back_as_it_was(value):
    assert parse_json(json.dumps(value)) == value


@pytest.mark.parametrize("depth", [1, DEEPEST])
@pytest.mark.parametrize("inside", ["", "1", '"["'])
def test_json_of_a_usual_depth_is_read(depth, inside):
    assert parse_json("[" * depth + inside + "]" * depth) == json.loads("[" * depth + inside + "]" * depth)
    assert parse_json("[" + ",".join(["[]"] * 500) + "]") == [[]] * 500


@pytest.mark.parametrize("depth", [DEEPEST + 1, 60_000, 1_000_000])
@pytest.mark.parametrize(("opens", "closes"), [("[", "]"), ('{"a":', "}")])
def test_json_nested_too_deep_is_refused(depth, opens, closes):
    with pytest.raises(ValueError, match="nested deeper than 100 levels"):
        parse_json(opens * depth + "1" + closes * depth)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "Expecting value"),
        ("{} {}", "Extra data"),
        ('{"a": 1, "b": 2, "a": 3}', "'a' is there twice"),
        ('[{"x": {"y": 1, "y": 1}}]', "'y' is there twice"),
        ("[1e999]", "1e999 is too large"),
        ("NaN", "NaN is no number"),
        ("[-Infinity]", "-Infinity is no number"),
        ("1" * 5000, "integer"),
        (b"\xff", "utf-8"),
        (b'{\x00"a": 1}\x00', "Expecting"),
    ],
)
def test_what_is_no_json_says_why(text, says):
    with pytest.raises(ValueError, match=says):
        parse_json(text)


def test_logs_may_hold_what_is_no_number():
    value = parse_json('{"loss": NaN, "grad_norm": Infinity}', constant=float)
    assert math.isnan(value["loss"])
    assert value["grad_norm"] == math.inf
