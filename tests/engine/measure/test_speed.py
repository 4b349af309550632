"""Speed and the shares of a step, against a clock that is given."""

import pytest

from rankwise.engine.measure import Speed, Spread


def test_speed_leaves_out_the_first_steps_and_pauses(monkeypatch):
    clock = iter([0.0, 100.0, 102.0, 1000.0, 1003.0])
    monkeypatch.setattr("rankwise.engine.measure.speed.time.perf_counter", lambda: next(clock))
    speed = Speed(skip=1)  # at 0 s
    speed.step(16, 200)  # 100 s: left out
    assert speed.rows_per_second is None
    speed.step(16, 200)  # 2 s
    speed.start()  # an evaluation, until 1000 s
    speed.step(14, 300)  # 3 s
    assert speed.rows_per_second == 30 / 5
    assert speed.tokens_per_second == 500 / 5
    assert speed.step_seconds == Spread(2.5, 2.0, 3.0)


def test_shares_of_a_step_are_of_the_steps_that_count(monkeypatch):
    clock = iter([0.0, 0.0, 50.0, 100.0, 100.0, 101.0, 101.0, 104.0, 110.0, 110.0, 199.0, 200.0])
    monkeypatch.setattr("rankwise.engine.measure.speed.time.perf_counter", lambda: next(clock))
    speed = Speed(skip=1)
    with speed.share("forward"):  # 50 s of a step that doesn't count
        pass
    speed.step(1, 1)
    assert speed.shares == {}
    with speed.share("forward"):  # 1 s
        pass
    with speed.share("backward", side_by_side=2):  # 3 s in two threads at once
        pass
    speed.step(1, 1)  # 10 s
    with speed.share("forward"):  # 89 s of a step that was slowed down
        pass
    speed.start()
    assert speed.shares == pytest.approx({"forward": 0.1, "backward": 0.15, "other": 0.75})


def test_rank_decisions_count_and_evaluations_do_not(monkeypatch):
    clock = iter([0.0, 100.0, 102.0, 500.0, 508.0])
    monkeypatch.setattr("rankwise.engine.measure.speed.time.perf_counter", lambda: next(clock))
    speed = Speed()
    with speed.share("rank decisions"):  # 2 s
        pass
    speed.begin()  # after an evaluation, at 500 s
    speed.step(20, 40)  # at 508 s
    assert speed.rows_per_second == 20 / (8 + 2)
    assert speed.shares == pytest.approx({"rank decisions": 0.2, "other": 0.8})
