"""One contender's process: the rows it trains on, and what it reports in its turns."""

import io
import json

import numpy as np
import pytest

from rankwise.bench.config import BenchConfig
from rankwise.bench.measurement import resolve
from rankwise.bench.worker import compete, heaviest, make_schedule


class InOrder:
    def order(self, lengths, seed):
        return [np.arange(i, min(i + 8, len(lengths))) for i in range(0, len(lengths), 8)]

    def train(self, rows, batches, after_step): ...


class Shuffled(InOrder):
    def order(self, lengths, seed):
        order = np.random.default_rng(seed).permutation(len(lengths))
        return [order[batch] for batch in super().order(lengths, seed)]


def test_every_contender_gets_the_same_rows_in_each_repeat(tiny_roberta):
    config = resolve(
        BenchConfig(random_weights=tiny_roberta, rows=30, repeats=2, batch_size=8, lengths="rte")
    )
    one, other = make_schedule(InOrder(), config), make_schedule(Shuffled(), config)
    np.testing.assert_array_equal(one.rows.input_ids, other.rows.input_ids)
    assert [len(repeat) for repeat in one.repeats] == [4, 4]
    for a, b in zip(one.repeats, other.repeats, strict=True):
        assert sorted(np.concatenate(a)) == sorted(np.concatenate(b))
    assert one.rows.lengths.max() <= 65  # 66 positions behind padding index 0


def test_memory_is_measured_on_the_batches_in_which_it_can_peak():
    row_lengths = np.array([9, 9, 9, 9, 20, 1, 1, 1, 5, 5, 5, 5, 1, 1, 1, 1])
    batches = [np.arange(i, i + 4) for i in range(0, 16, 4)]
    assert {batch[0] for batch in heaviest(batches, row_lengths)} == {0, 4}


class Coordinator(io.TextIOWrapper):
    """The other end of a contender's pipes: gives `turns` turns, and notes how many reports came before each."""

    @property
    def mode(self):
        return "r"

    @property
    def name(self):
        return "<stdin>"

    def __init__(self, turns, file):
        super().__init__(io.BytesIO())
        self.turns, self.file, self.reports_before = turns, file, []

    def readline(self, *size):
        self.reports_before.append(len(self.reports()))
        self.turns -= 1
        return "go\n" if self.turns >= 0 else ""

    def reports(self):
        return [json.loads(line) for line in self.file.read_text().splitlines()]


@pytest.mark.slow
def test_a_contender_reports_one_line_per_turn_and_ends_after_the_last(tiny_roberta, tmp_path):
    config = resolve(
        BenchConfig(random_weights=tiny_roberta, batch_size=4, rows=8, repeats=2, lengths="sst2", threads=1)
    )
    coordinator = Coordinator(config.repeats + 2, tmp_path / "reports")
    with coordinator.file.open("w") as stdout:
        compete("rankwise lora", config, coordinator, stdout)
    assert coordinator.reports_before == [1, 2, 3, 4], (
        "it waits for each turn, and computes nothing before it"
    )
    ready, *repeats, memory, operations = coordinator.reports()
    assert ready == {"ready": True}
    assert len(repeats) == config.repeats
    for repeat in repeats:
        assert repeat.keys() == {"rows_per_second", "tokens_per_second", "step_seconds", "seconds"}
        assert repeat["rows_per_second"] * repeat["seconds"] == pytest.approx(8)
        step = repeat["step_seconds"]
        assert step["min"] <= step["median"] <= step["max"]
    assert memory.keys() == {"peak_memory_mb", "memory_by_kind_mb", "peak_rss_mb"}
    assert memory["peak_memory_mb"] > 0
    assert operations["started"] > operations["products"] > 0
    assert min(operations.values()) > 0


def test_a_contender_ends_when_the_coordinator_is_gone(tiny_roberta, tmp_path):
    config = resolve(BenchConfig(random_weights=tiny_roberta, batch_size=4, rows=8, repeats=2, threads=1))
    coordinator = Coordinator(1, tmp_path / "reports")
    with coordinator.file.open("w") as stdout, pytest.raises(SystemExit) as ended:
        compete("gemm lower bound", config, coordinator, stdout)
    assert ended.value.code == 1
    assert len(coordinator.reports()) == 2, "ready, and one turn"
