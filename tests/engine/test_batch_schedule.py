"""Every method sees the same rows, every row once an epoch, and held-out rows not at all."""

import numpy as np
import pytest

from rankwise.config import TrainOptions
from rankwise.engine.batch_schedule import BatchSchedule, GivenBatches, total_steps

LENGTHS = np.random.default_rng(0).integers(1, 40, 100)


def schedule(seed=0, **settings):
    return BatchSchedule(LENGTHS, **{"batch_size": 8, "steps": 39, "seed": seed, **settings})


def batches(found, **how):
    return [found.batch(step, **how).tolist() for step in range(found.steps)]


@pytest.mark.parametrize("grouped", [False, True])
def test_every_row_is_seen_once_an_epoch(grouped):
    found = schedule(group_by_length=grouped)
    assert found.steps_per_epoch == 13
    for epoch in range(3):
        rows = np.concatenate([found.batch(13 * epoch + i) for i in range(13)])
        assert sorted(rows.tolist()) == list(range(100))


def test_the_seed_alone_decides_the_batches():
    assert batches(schedule()) == batches(schedule())
    assert batches(schedule()) != batches(schedule(seed=1))
    assert batches(schedule())[:13] != batches(schedule())[13:26], "each epoch has its own order"


def test_a_step_has_the_same_batch_in_whatever_order_steps_are_asked_for():
    found, again = schedule(), schedule()
    assert [found.batch(step).tolist() for step in (30, 2, 30)] == [
        again.batch(step).tolist() for step in (30, 2, 30)
    ]
    assert [epoch[0].tolist() for epoch in found.epochs()] == [found.batch(13 * i).tolist() for i in range(3)]


def test_replacement_examples_take_the_place_of_held_out_rows():
    found, whole = schedule(), batches(schedule())
    found.hold_out(20)
    held = set(found.held_out.tolist())
    assert len(held) == 20
    without = batches(found, released=None)
    assert not held & {row for batch in without for row in batch}
    for ours, theirs in zip(without, whole, strict=True):
        assert [a for a, b in zip(ours, theirs, strict=True) if b not in held] == [
            b for b in theirs if b not in held
        ]
    assert batches(found) == whole


@pytest.mark.parametrize("epochs", [1, 2])
def test_held_out_rows_catch_up(epochs):
    """Released after some epochs, and as many later, every row was seen as often as any other."""
    found, released = schedule(steps=5 * 13), 13 * epochs
    found.hold_out(20)
    seen = np.bincount(
        np.concatenate([found.batch(step, released=released) for step in range(2 * released)]), minlength=100
    )
    assert seen.tolist() == [2 * epochs] * 100
    later = range(2 * released, found.steps)
    assert [found.batch(s, released=released).tolist() for s in later] == [
        found.batch(s).tolist() for s in later
    ]


def test_held_out_rows_have_the_shares_of_the_strata():
    found = schedule()
    strata = (np.arange(found.rows) % 10 == 0).astype(np.int64)
    found.hold_out(20, strata)
    assert len(set(found.held_out.tolist())) == 20
    assert strata[found.held_out].sum() == 2


def test_given_batches_come_in_turn():
    found = GivenBatches([np.array([3, 1]), np.array([0])], steps=5)
    assert batches(found) == [[3, 1], [0], [3, 1], [0], [3, 1]]
    assert (found.steps, found.steps_per_epoch, found.batch_size) == (5, 2, 2)


@pytest.mark.parametrize(("rows", "epochs", "steps"), [(100, 1.0, 13), (100, 2.5, 32), (3, 0.1, 1)])
def test_steps_are_counted_from_whole_batches(rows, epochs, steps):
    assert total_steps(rows, TrainOptions(epochs=epochs, batch_size=8)) == steps
