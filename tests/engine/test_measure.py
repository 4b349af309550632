"""Truths of measure.py: tensor memory against sums done by hand, speed against a counted clock."""

import gc

import numpy as np
import pytest
import torch
from torch import nn

import tiny
from rankwise.config import TrainOptions
from rankwise.engine.compute import Compute
from rankwise.engine.execution import Engine
from rankwise.engine.measure import KINDS, MB, PeakRss, Speed, Spread, TensorMemory, label, product_rate
from rankwise.engine.profiling import profiled_steps
from rankwise.engine.threads import MicroBatchThreads
from rankwise.engine.training import Training
from rankwise.lora.inject import adapt
from rankwise.tasks.encoding import Encoded

OPTIONS = TrainOptions(
    epochs=3, batch_size=8, lr=0.01, optimizer="adamw", schedule="linear", warmup=0.0, weight_decay=0.0, clip=1.0
)  # fmt: skip


def rows(n=40):
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 40, n)
    return Encoded(
        input_ids=rng.integers(4, 100, lengths.sum()).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        token_type_ids=None,
        labels=rng.integers(0, 2, n),
        idx=np.arange(n),
        n_truncated=0,
    )


@pytest.fixture(autouse=True)
def _nothing_left_to_collect():
    gc.collect()


def test_a_storage_counts_once_however_many_views_it_has():
    with TensorMemory() as memory:
        before = memory.live_mb
        block = torch.zeros(1000, 250)
        views = [block[i] for i in range(100)] + [block.view(-1), block.t()]
        assert round((memory.live_mb - before) * MB) == 1000 * 250 * 4
        del block
        assert round((memory.live_mb - before) * MB) == 1000 * 250 * 4
        del views
        assert round((memory.live_mb - before) * MB) == 0


def test_the_peak_stays_when_its_tensors_are_gone():
    with TensorMemory() as memory:
        before = memory.live_mb
        for size in (100, 300, 200):
            torch.zeros(size, 1000)
        assert round((memory.live_mb - before) * MB) == 0
        assert memory.peak_mb - before == pytest.approx(300 * 1000 * 4 / MB)


def test_tensors_alive_before_count_from_the_start():
    with TensorMemory() as without:
        pass
    weights = torch.zeros(1_000_000)
    with TensorMemory() as memory:
        pass
    assert (
        sum(memory.peak.values()) - sum(without.peak.values()) == weights.nbytes
    )  # in whole bytes: others may be alive


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


def test_what_workers_compute_is_followed_too():
    def product(n):
        return torch.ones(n, 1000) @ torch.ones(1000, 1000)

    with TensorMemory() as memory:
        before = memory.live_mb
        kept = list(MicroBatchThreads(2).map(product, [100, 200]))
        assert memory.live_mb - before == pytest.approx(300 * 1000 * 4 / MB)
        assert memory.peak_mb - before >= (300 * 1000 * 4 + 1000 * 1000 * 4) / MB
        del kept
        assert round((memory.live_mb - before) * MB) == 0


def test_every_byte_of_a_peak_has_one_kind_and_the_kinds_are_those_counted_by_hand():
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


def test_the_state_an_optimizer_makes_meanwhile_is_its_own():
    model = nn.Linear(200, 300)
    optimizer = torch.optim.AdamW(model.parameters())
    with TensorMemory("cpu", model, optimizer) as memory:
        model(torch.ones(1, 200)).sum().backward()
        optimizer.step()
    assert memory.peak["optimizer"] == 2 * (200 * 300 + 300) * 4 + 2 * 4
    assert memory.peak["gradients"] == (200 * 300 + 300) * 4


def test_gradients_asked_for_by_autograd_grad_are_gradients():
    model = nn.Linear(1000, 400, bias=False)
    with TensorMemory("cpu", model) as memory:
        kept = torch.autograd.grad(model(torch.ones(2, 1000)).sum(), list(model.parameters()))
    assert memory.peak["gradients"] == kept[0].nbytes


@pytest.mark.parametrize("engine", [Engine(), Engine(recompute=True), Engine(micro_batches=2)], ids=str)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_followed_step_is_the_step_it_would_have_been(method, engine):
    def losses(follow):
        model = tiny.classifier("bert")
        if method == "lora":
            adapt(model, 4)
        compute = Compute(
            device=torch.device("cpu"), max_length=64, pad_id=0, engine=engine, threads=engine.micro_batches
        )
        training = Training(model, rows(), options=OPTIONS, compute=compute, seed=0)
        with training.compute.running(model):
            steps = [training.step(profile=follow) for _ in range(4)]
        return [(s.loss, s.grad_norm) for s in steps], steps, training

    plain, _, _ = losses(False)
    followed, steps, training = losses(True)
    assert followed == plain
    assert training.speed.rows_per_second is None  # steps that were slowed down don't count
    for step in steps:
        assert round(step.memory["total"] * MB) == sum(round(step.memory[kind] * MB) for kind in KINDS)
        assert min(step.memory[kind] for kind in ("weights", "gradients", "optimizer", "batch")) >= 0
        assert step.flops > 0


def test_recomputing_moves_activations_not_weights():
    def peak(recompute):
        model = tiny.classifier("bert", num_hidden_layers=6)
        adapt(model, 4)
        compute = Compute(
            device=torch.device("cpu"), max_length=64, pad_id=0, engine=Engine(recompute=recompute), threads=1
        )
        training = Training(model, rows(), options=OPTIONS, compute=compute, seed=0)
        with training.compute.running(model):
            return [training.step(profile=True) for _ in range(2)][1].memory

    fast, lean = peak(False), peak(True)
    assert lean["weights"] == fast["weights"]
    assert lean["optimizer"] == fast["optimizer"]
    assert 0 < lean["activations"] < 0.5 * fast["activations"]


def test_steps_that_are_followed_have_the_heaviest_batch_among_them():
    compute = Compute(device=torch.device("cpu"), max_length=64, pad_id=0, threads=1)
    training = Training(adapt(tiny.classifier("bert"), 4), rows(), options=OPTIONS, compute=compute, seed=0)
    profiled, tokens = profiled_steps(training.batches, training.rows, compute), []
    while not training.done:
        tokens.append(int(training.rows.lengths[training.batch()].sum()))
        training.step_number += 1
    assert max(tokens[1:]) in [tokens[i] for i in profiled]
    assert all(0 <= i < training.steps for i in profiled)


def test_operations_are_those_of_the_products():
    # forward x Wᵀ, backward dY W and dYᵀ x: three products of 2·n·d_in·d_out.
    model = nn.Linear(30, 70, bias=False)
    x = torch.ones(8, 30, requires_grad=True)
    with TensorMemory("cpu", model) as memory:
        model(x).sum().backward()
    assert memory.flops == 3 * 2 * 8 * 30 * 70


def test_the_rate_of_products_is_measured_once(tmp_path):
    first = product_rate(torch.device("cpu"), torch.float32, "here", tmp_path)
    assert first > 0
    assert product_rate(torch.device("cpu"), torch.float32, "here", tmp_path) == first
    assert product_rate(torch.device("cpu"), torch.float32, "elsewhere", tmp_path) != first


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


def test_a_rank_decision_between_steps_counts_and_an_evaluation_does_not(monkeypatch):
    clock = iter([0.0, 100.0, 102.0, 500.0, 508.0])
    monkeypatch.setattr("rankwise.engine.measure.speed.time.perf_counter", lambda: next(clock))
    speed = Speed()
    with speed.share("rank decisions"):  # 2 s
        pass
    speed.begin()  # after an evaluation, at 500 s
    speed.step(20, 40)  # at 508 s
    assert speed.rows_per_second == 20 / (8 + 2)
    assert speed.shares == pytest.approx({"rank decisions": 0.2, "other": 0.8})
