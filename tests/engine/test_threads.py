"""Threads side by side give what one thread gives, in order."""

import pytest
import torch

from rankwise.engine.threads import MicroBatchThreads, micro_batch_threads


@pytest.mark.parametrize("count", [1, 3])
def test_results_come_in_the_items_order(count):
    assert list(MicroBatchThreads(count).map(lambda n: n * n, range(20))) == [n * n for n in range(20)]


@pytest.mark.parametrize("count", [1, 2])
def test_an_exception_in_a_thread_is_raised_where_results_are_read(count):
    with pytest.raises(ZeroDivisionError):
        list(MicroBatchThreads(count).map(lambda n: 1 // n, [1, 0]))


def test_each_thread_has_its_share_of_the_cores():
    threads = MicroBatchThreads(2, cores=1)
    assert list(threads.map(lambda _: torch.get_num_threads(), range(4))) == [1] * 4


def test_everyone_who_asks_for_as_many_gets_the_same_threads():
    assert micro_batch_threads(2, 1) is micro_batch_threads(2, 1)
