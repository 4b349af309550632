"""The processes that a grid starts and talks to."""

import queue
import sys
import time

import pytest

from rankwise.errors import RankwiseError
from rankwise.runs.config import CompareConfig
from rankwise.runs.ray_work import _Driver
from rankwise.runs.work import Child


@pytest.mark.parametrize("end", ["stop", "hang_up"])
def test_what_a_process_that_has_ended_was_told_is_lost_and_nothing_else(end, tmp_path):
    with (tmp_path / "log").open("wb") as log:
        child = Child(None, [sys.executable, "-c", ""], log, heard := queue.Queue())
    assert heard.get(timeout=60) == (None, None)
    child._process.wait()
    child.tell(b"shared")  # nobody reads it, and it stays in the pipe's buffer
    if end == "hang_up":
        child.hang_up()
    child.stop(time.monotonic())
    assert child._process.stdin.closed


def test_that_rays_driver_has_ended_is_heard_behind_what_it_said_last(tmp_path):
    driver = _Driver.__new__(_Driver)
    driver._config, driver._log = CompareConfig(ray="local", out=tmp_path), tmp_path / "ray.log"
    driver._ended, driver._keeps_log, driver._told = False, False, queue.Queue()
    driver._told.put((None, {"event": "ended"}))
    driver._told.put((None, None))
    assert driver.events(1.0) == [{"event": "ended"}]
    with pytest.raises(RankwiseError, match="was lost"):
        driver.events(1.0)
