"""Reports that follow a running grid."""

import threading
import time

import pytest

from planted import finished
from rankwise.errors import RankwiseError
from rankwise.report import watch
from rankwise.run_folder import RunFolder, write_grid


def test_watching_writes_after_each_run_and_ends_with_the_last(tmp_path):
    write_grid(tmp_path, {"tasks": ["sst2"], "methods": ["full", "lora"], "seeds": 1})
    seen = []

    def heard(document):
        page = (tmp_path / "report.html").read_text(encoding="utf-8")
        seen.append((len(document.runs), "data-live=" in page))

    def grow():
        while not watching.is_set():
            time.sleep(0.01)
        finished(tmp_path, method="full")
        while not seen:
            time.sleep(0.01)
        finished(tmp_path, method="lora")

    watching = threading.Event()
    grower = threading.Thread(target=grow, daemon=True)
    grower.start()
    watching.set()
    document = watch(tmp_path, heard, seconds=0.02)
    grower.join()
    assert len(document.runs) == 2
    assert seen == [(1, True), (2, False)]


def test_watching_a_finished_grid_writes_once(tmp_path):
    finished(tmp_path)
    seen = []
    watch(tmp_path, seen.append, seconds=0.01)
    assert len(seen) == 1
    assert "data-live=" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_failed_run_ends_the_wait_for_it(tmp_path):
    write_grid(tmp_path, {"tasks": ["sst2"], "methods": ["full", "lora"], "seeds": 1})
    finished(tmp_path, method="full")
    folder = RunFolder(tmp_path / "sst2.lora.s0")
    folder.write_request({})
    folder.update_run_json(failed="The loss is nan.")
    document = watch(tmp_path, lambda document: None, seconds=0.01)
    assert document.left_out == ["sst2.lora.s0 failed: The loss is nan."]


def test_an_interrupt_leaves_a_page_that_no_longer_reloads(tmp_path):
    write_grid(tmp_path, {"tasks": ["sst2"], "methods": ["full", "lora"], "seeds": 1})
    finished(tmp_path)

    def stop(document):
        assert "data-live=" in (tmp_path / "report.html").read_text(encoding="utf-8")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch(tmp_path, stop, seconds=0.01)
    # stopped while it told of its first page: that page is the one that is taken back
    assert "data-live=" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_watching_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(RankwiseError, match="nowhere is no folder"):
        watch(tmp_path / "nowhere", lambda document: None)


def test_a_damaged_first_run_does_not_end_the_watch(tmp_path):
    write_grid(tmp_path, {"tasks": ["sst2"], "methods": ["full", "lora"], "seeds": 1})
    damaged = finished(tmp_path, method="full")
    (damaged.path / "result.json").write_text("null", encoding="utf-8")
    later = threading.Timer(0.2, finished, (tmp_path,), {"method": "lora"})
    later.start()
    document = watch(tmp_path, lambda document: None, seconds=0.02)
    later.join()
    assert [run["method"] for run in document.runs] == ["lora"]
    assert "sst2.full.s0/result.json is damaged" in document.left_out[0]
