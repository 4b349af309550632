"""Tensor memory against sums made by hand and against PyTorch's own tracker."""

import gc

import pytest
import torch
from torch import nn

from rankwise.engine.measure import MB, PeakRss, TensorMemory, label
from rankwise.engine.threads import MicroBatchThreads


def following():
    """Follows memory without what other tests left."""
    return TensorMemory("cpu", nn.Identity())


def test_a_storage_counts_once_however_many_views_it_has():
    with following() as memory:
        before = memory.live_mb
        block = torch.zeros(1000, 250)
        views = [block[i] for i in range(100)] + [block.view(-1), block.t()]
        assert round((memory.live_mb - before) * MB) == 1000 * 250 * 4
        del block
        assert round((memory.live_mb - before) * MB) == 1000 * 250 * 4
        del views
        assert round((memory.live_mb - before) * MB) == 0


def test_the_peak_stays_when_its_tensors_are_gone():
    with following() as memory:
        before = memory.live_mb
        for size in (100, 300, 200):
            torch.zeros(size, 1000)
        assert round((memory.live_mb - before) * MB) == 0
        assert memory.peak_mb - before == pytest.approx(300 * 1000 * 4 / MB)


@pytest.mark.slow
def test_tensors_alive_before_count_from_the_start():
    gc.collect()
    with TensorMemory() as without:
        pass
    weights = torch.zeros(1_000_000)
    with TensorMemory() as memory:
        pass
    assert (
        sum(memory.peak.values()) - sum(without.peak.values()) == weights.nbytes
    )  # in whole bytes: others may be alive


def test_saved_tensors_count_until_backward_frees_them():
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
    with following() as memory:
        before = memory.live_mb
        kept = torch.zeros(1000, 1000, device="meta")
        assert round((memory.live_mb - before) * MB) == 0
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


def test_micro_batch_threads_are_followed_too():
    def product(n):
        return torch.ones(n, 1000) @ torch.ones(1000, 1000)

    with following() as memory:
        before = memory.live_mb
        kept = list(MicroBatchThreads(2).map(product, [100, 200]))
        assert memory.live_mb - before == pytest.approx(300 * 1000 * 4 / MB)
        assert memory.peak_mb - before >= (300 * 1000 * 4 + 1000 * 1000 * 4) / MB
        del kept
        assert round((memory.live_mb - before) * MB) == 0


def test_kinds_of_a_peak_are_those_counted_by_hand():
    # loss = Σ relu(x W)·V over n rows. Memory peaks where backward goes through relu: its output, which was kept once for relu and
    # for the product behind it; the gradient of that output; and the gradient of its input. V has its gradient, W doesn't yet.
    n = 2000
    model = nn.Sequential(nn.Linear(100, 500, bias=False), nn.ReLU(), nn.Linear(500, 10, bias=False))
    optimizer = torch.optim.AdamW(model.parameters())
    x = torch.randn(n, 100)

    def step():
        label("batch", [x])
        model(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    with TensorMemory("cpu", model, optimizer) as memory:
        step()
    first, second = 100 * 500 * 4, 500 * 10 * 4
    peak = memory.peak
    assert peak["weights"] == first + second
    assert peak["optimizer"] == 2 * (first + second) + 2 * 4
    assert peak["batch"] == n * 100 * 4
    assert 0 <= peak["activations"] - n * 500 * 4 <= 4  # the gradient of 1 that backward begins with
    assert peak["gradients"] == second
    assert 0 <= peak["workspace"] - 2 * n * 500 * 4 <= 16  # the loss
    assert sum(peak.values()) == round(memory.peak_mb * MB)
    levels = memory.trace()
    assert (levels >= 0).all()
    assert levels.sum(axis=1).max() == sum(peak.values())


def test_the_total_is_that_of_pytorchs_own_tracker():
    from torch.distributed._tools.mem_tracker import MemTracker

    model = nn.Sequential(
        nn.Embedding(50, 64), nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64), nn.LayerNorm(64)
    )
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    ids = torch.randint(50, (32, 16))

    def step():
        model(ids).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    with TensorMemory("cpu", model, optimizer) as memory:
        step()
    tracker = MemTracker()
    tracker.track_external(model, optimizer)
    with tracker:
        step()
    theirs = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
    by_kind = {getattr(kind, "value", kind): size for kind, size in theirs.items()}
    assert sum(memory.peak.values()) == pytest.approx(by_kind["Total"], rel=0.01)
    assert memory.peak["weights"] == by_kind["Parameter"] + by_kind["Buffer"]
    assert memory.peak["optimizer"] == by_kind["Optstate"]


def test_state_made_by_the_first_step_is_the_optimizers():
    model = nn.Linear(200, 300)
    optimizer = torch.optim.AdamW(model.parameters())
    with TensorMemory("cpu", model, optimizer) as memory:
        model(torch.ones(1, 200)).sum().backward()
        optimizer.step()
    assert memory.peak["optimizer"] == 2 * (200 * 300 + 300) * 4 + 2 * 4
    assert memory.peak["gradients"] == (200 * 300 + 300) * 4


def test_gradients_of_autograd_grad_are_gradients():
    model = nn.Linear(1000, 400, bias=False)
    with TensorMemory("cpu", model) as memory:
        kept = torch.autograd.grad(model(torch.ones(2, 1000)).sum(), list(model.parameters()))
    assert memory.peak["gradients"] == kept[0].nbytes
