"""Truths of measure.py: tensor memory against sums done by hand, speed against a counted clock."""

import gc

import pytest
import torch
from torch import nn

from rankwise.measure import MB, PeakRss, Speed, Spread, TensorMemory
from rankwise.workers import Workers


@pytest.fixture(autouse=True)
def _nothing_left_to_collect():
    gc.collect()


def test_a_storage_counts_once_however_many_views_it_has():
    with TensorMemory() as memory:
        before = memory.live_mb
        block = torch.zeros(1000, 250)
        views = [block[i] for i in range(100)] + [block.view(-1), block.t()]
        assert memory.live_mb - before == 1000 * 250 * 4 / MB
        del block
        assert memory.live_mb - before == 1000 * 250 * 4 / MB
        del views
        assert memory.live_mb == before


def test_the_peak_stays_when_its_tensors_are_gone():
    with TensorMemory() as memory:
        before = memory.live_mb
        for size in (100, 300, 200):
            torch.zeros(size, 1000)
        assert memory.live_mb == before
        assert memory.peak_mb - before == pytest.approx(300 * 1000 * 4 / MB)


def test_tensors_alive_before_count_from_the_start():
    with TensorMemory() as without:
        pass
    weights = torch.zeros(1_000_000)
    with TensorMemory() as memory:
        pass
    assert memory.peak_mb - without.peak_mb == weights.nbytes / MB


def test_what_autograd_saves_counts_until_the_backward_frees_it():
    # y = relu(x W) V: x is given; relu's output is saved, x W is not.
    x, first, second = torch.randn(64, 100), nn.Linear(100, 500, bias=False), nn.Linear(500, 10, bias=False)
    with TensorMemory() as memory:
        before = memory.live_mb
        y = second(torch.relu(first(x)))
        assert memory.live_mb - before == pytest.approx((64 * 500 + 64 * 10) * 4 / MB)
        y.sum().backward()
        del y
        gradients = (100 * 500 + 500 * 10) * 4 / MB
        assert memory.live_mb - before == pytest.approx(gradients)
        # At the peak the gradient of the hidden layer joins what was saved, before and after relu.
        assert memory.peak_mb - before >= 2 * 64 * 500 * 4 / MB


def test_memory_of_other_devices_is_not_counted():
    with TensorMemory() as memory:
        before = memory.live_mb
        kept = torch.zeros(1000, 1000, device="meta")
        assert memory.live_mb == before
        del kept


def test_resident_memory_rises_with_what_is_touched():
    memory = PeakRss()
    block = torch.ones(50_000_000)
    del block
    assert memory.mb is not None
    assert memory.mb == pytest.approx(200, rel=0.1)


def test_an_earlier_peak_does_not_hide_the_next(tmp_path):
    block = torch.ones(100_000_000)
    del block
    memory = PeakRss()
    assert memory.mb is not None
    assert memory.mb < 100


def test_speed_leaves_out_the_first_steps_and_pauses(monkeypatch):
    clock = iter([0.0, 100.0, 102.0, 1000.0, 1003.0])
    monkeypatch.setattr("rankwise.measure.time.perf_counter", lambda: next(clock))
    speed = Speed(skip=1)  # at 0 s
    speed.step(16, 200)  # 100 s: left out
    assert speed.rows_per_second is None
    speed.step(16, 200)  # 2 s
    speed.start()  # an evaluation, until 1000 s
    speed.step(14, 300)  # 3 s
    assert speed.rows_per_second == 30 / 5
    assert speed.tokens_per_second == 500 / 5
    assert speed.step_seconds == Spread(2.5, 2.0, 3.0)


def test_what_workers_compute_is_followed_too():
    def product(n):
        return torch.ones(n, 1000) @ torch.ones(1000, 1000)

    with TensorMemory() as memory:
        before = memory.live_mb
        kept = list(Workers(2).map(product, [100, 200]))
        assert memory.live_mb - before == pytest.approx(300 * 1000 * 4 / MB)
        assert memory.peak_mb - before >= (300 * 1000 * 4 + 1000 * 1000 * 4) / MB
        del kept
        assert memory.live_mb == before
