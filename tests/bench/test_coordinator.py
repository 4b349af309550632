"""The coordinator gives contenders their turns."""

import sys

import pytest

from rankwise.bench.coordinator import compete
from rankwise.errors import RankwiseError

ACTOR = """
import json, os, sys
name = json.loads(sys.stdin.readline())["contender"]
def note(word): open(sys.argv[1], "a").write(f"{name} {word}\\n")
note("starts"); print("{}", flush=True)
for turn, line in enumerate(sys.stdin):
    if name == "b" and turn == int(sys.argv[2]): sys.exit("out of\\nmemory")
    note("computes"); print(json.dumps({"turn": turn, "seconds": 0.1}), flush=True); note("waits")
"""


def _actors(tmp_path, fails_at=-1):
    log = tmp_path / "log"
    return log, lambda name: [sys.executable, "-c", ACTOR, str(log), str(fails_at)]


def test_contenders_take_turns_and_each_starts_a_repeat(tmp_path):
    log, command = _actors(tmp_path)
    reported = []
    records = compete("abc", {}, 3, command=command, on_progress=reported.append)
    assert [record.repeats for record in records] == [[{"turn": t, "seconds": 0.1} for t in range(3)]] * 3
    assert [record.memory["turn"] for record in records] == [3, 3, 3]
    assert [record.operations["turn"] for record in records] == [4, 4, 4]
    turns = [line[0] for line in log.read_text().splitlines() if line.endswith("computes")]
    assert "".join(turns) == "abc" + "bca" + "cab" + "abc" + "abc"
    assert (reported[-1].done, reported[-1].total, reported[-1].seconds_left) == (18, 18, 0)
    first_known = next(p for p in reported if p.seconds_left is not None)
    assert first_known.seconds_left == pytest.approx(6 * 0.1)


def test_a_failed_contender_is_recorded_with_its_last_words_and_the_others_continue(tmp_path):
    _, command = _actors(tmp_path, fails_at=1)
    a, b = compete("ab", {}, 3, command=command)
    assert a.failure is None
    assert len(a.repeats) == 3
    assert b.failure == "memory"
    assert len(b.repeats) == 1


TOGETHER = """
import json, os, sys
sys.stdin.readline(); print("{}", flush=True)
number, count = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
for turn, line in enumerate(sys.stdin):
    if number == 1 and turn == int(sys.argv[1]): os.kill(os.getpid(), 9)
    if turn == int(sys.argv[1]) and count > 1: sys.stdin.readline()  # waits for the other one
    print(json.dumps({"number": number, "count": count, "peak_memory_mb": number * (turn == 2)}), flush=True)
"""


def _together(dies_at=-1):
    return {
        "command": lambda name: [sys.executable, "-c", TOGETHER, str(dies_at)],
        "processes": {"one": 1, "two": 2}.get,
    }


def test_several_processes_take_a_turn_together_and_the_one_with_most_memory_reports_it():
    one, two = compete(["one", "two"], {}, 2, **_together())
    assert [(r["number"], r["count"]) for r in one.repeats] == [(0, 1)] * 2
    assert [(r["number"], r["count"]) for r in two.repeats] == [(0, 2)] * 2
    assert (one.memory["number"], two.memory["number"]) == (0, 1)


def test_one_of_several_processes_that_dies_ends_the_measurement():
    with pytest.raises(
        RankwiseError, match=r"^two can't be measured, because process 1 failed: SIGKILL ended it\.$"
    ):
        compete(["one", "two"], {}, 2, **_together(dies_at=1))
