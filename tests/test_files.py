"""Files that appear whole, and folders that can't be written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rankwise import files
from rankwise.errors import RankwiseError
from rankwise.files import make_folder
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
