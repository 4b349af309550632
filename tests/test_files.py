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
from rankwise.files import DEEPEST, make_folder, parse_json
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


def test_making_a_folder_leaves_nothing_in_it(tmp_path):
    make_folder(tmp_path / "new")
    make_folder(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


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
