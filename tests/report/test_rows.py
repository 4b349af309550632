"""The rows of the table: means, paired differences, tests and costs."""

import numpy as np
import pytest

from planted import N, finished
from planted_report import grid, row_of, shown
from rankwise.report import collect
from rankwise.run_folder import write_grid


def test_tests_over_seeds_are_corrected_over_the_table(tmp_path):
    grid(tmp_path)
    rows = [row for row in collect(tmp_path).rows if row.method == "lora"]
    differences = [-(21 + s) / 200 for s in range(3)]
    t = np.mean(differences) / (np.std(differences, ddof=1) / 3**0.5)
    alone = 1 - abs(t) / (2 + t**2) ** 0.5  # Student with 2 degrees, both tails
    assert [row.p_seeds for row in rows] == [
        pytest.approx(4 * alone, rel=1e-6)
    ] * 2  # first of four, and its equal


def test_memory_by_kind_needs_every_seed(tmp_path):
    finished(tmp_path, seed=0, peak_memory_mb={"total": 10.0, "weights": 10.0})
    finished(tmp_path, seed=1)
    (row,) = collect(tmp_path).rows
    assert (row.memory, row.peak_mb) == (None, 500.0)


def test_rows_stand_in_the_order_asked_for(tmp_path):
    for task in ("rte", "mrpc"):
        for method in ("lora", "full", "lora:rank=4"):
            finished(tmp_path, task, method)
    write_grid(tmp_path, {"tasks": ["rte", "mrpc"], "methods": ["full", "lora:rank=4", "lora"]})
    assert [(row.task, row.method) for row in collect(tmp_path).rows] == [
        ("rte", "full"),
        ("rte", "lora:rank=4"),
        ("rte", "lora"),
        ("mrpc", "full"),
        ("mrpc", "lora:rank=4"),
        ("mrpc", "lora"),
    ]


def test_without_a_grid_file_rows_stand_by_name(tmp_path):
    for method in ("lora", "full"):
        finished(tmp_path, method=method)
    assert [row.method for row in collect(tmp_path).rows] == ["full", "lora"]


def test_scores_are_means_and_differences_are_paired(tmp_path):
    """full: 0.90 0.80 0.70, lora: 0.95 0.85 0.75: the same step in each seed, so a difference without spread."""
    for seed, n in enumerate([2, 4, 6]):
        finished(tmp_path, method="full", seed=seed, wrong=range(n))
        finished(tmp_path, method="lora", seed=seed, wrong=range(n - 1))
    document = collect(tmp_path)
    full, lora = row_of(document, "full"), row_of(document, "lora")
    assert (full.score.mean, full.score.n) == (pytest.approx(0.8), 3)
    assert full.score.half == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-5)  # t(0.975, 2 degrees)
    assert lora.difference.mean == pytest.approx(0.05)
    assert lora.difference.half == pytest.approx(0.0, abs=1e-9)
    assert full.difference is None
    assert full.p_rows is None
    assert lora.p_rows == pytest.approx(2 / 2**3)  # three rows only lora gets right, none the other way


def test_only_seeds_that_both_methods_have_are_compared(tmp_path):
    finished(tmp_path, method="full", seed=0, wrong=range(4))
    finished(tmp_path, method="lora", seed=0, wrong=range(2))
    finished(tmp_path, method="lora", seed=1, wrong=range(10))
    lora = row_of(collect(tmp_path), "lora")
    assert (lora.score.n, lora.difference.n) == (2, 1)
    assert lora.difference.mean == pytest.approx(0.1)


def test_p_values_are_corrected_over_the_table(tmp_path):
    for task in ("sst2", "rte"):
        finished(tmp_path, task, "full", wrong=range(6))
        finished(tmp_path, task, "lora", wrong=())
    document = collect(tmp_path)
    assert row_of(document, "lora").p_rows == pytest.approx(2 * 2 / 2**6)


def test_without_full_there_is_no_difference(tmp_path):
    finished(tmp_path)
    row = row_of(collect(tmp_path), "lora")
    assert (row.difference, row.p_rows) == (None, None)


def test_runs_on_different_rows_are_not_compared_but_shown(tmp_path):
    for task in ("sst2", "rte"):
        finished(tmp_path, task, "full", wrong=range(3))
        finished(tmp_path, task, "lora", idx=np.arange(N) + (7 if task == "sst2" else 0))
    document = collect(tmp_path)
    other = row_of(document, "lora")
    assert (other.difference, other.p_rows, other.score.mean) == (None, None, 0.95)
    assert any(note.startswith("sst2 lora can't be compared with full.") for note in document.notes)
    assert row_of(document, "lora", "rte").difference.mean == pytest.approx(0.1)


def test_speed_memory_and_time_are_medians(tmp_path):
    for seed, value in enumerate([100.0, 900.0, 300.0]):
        finished(
            tmp_path, seed=seed, samples_per_second=value, peak_rss_mb=value + 1, train_seconds=value + 2
        )
    row = row_of(collect(tmp_path), "lora")
    assert (row.rows_per_second, row.peak_mb, row.train_seconds) == (300.0, 301.0, 302.0)


def test_on_a_gpu_the_allocators_peak_is_the_memory_shown(tmp_path):
    finished(tmp_path, peak_rss_mb=9999.0, peak_cuda_mb=123.0)
    (row,) = collect(tmp_path).rows
    assert row.peak_mb == 123.0


def test_numbers_of_parameters_are_those_of_every_seed(tmp_path):
    """Methods that find ranks end with another number in each seed."""
    for seed, adapter in enumerate([10_000, 14_000, 30_000]):
        finished(
            tmp_path,
            method="adaptive",
            seed=seed,
            adapter_params=adapter,
            trainable_params=adapter + 2000,
            total_params=1_000_000 + adapter,
        )
    (row,) = (document := collect(tmp_path)).rows
    assert (row.adapter_params, row.adapter_params_range) == (18_000, (10_000, 30_000))
    assert (row.trainable, row.trainable_range) == (20_000, (12_000, 32_000))
    assert row.trainable_share == pytest.approx(0.02)
    assert "20k, 12k to 32k (2 %)" in shown(document)


@pytest.mark.parametrize("method", ["full", "full:lr=5e-5"])
def test_full_fine_tuning_with_options_is_what_others_are_compared_with(tmp_path, method):
    finished(tmp_path, method=method, wrong=range(6))
    finished(tmp_path, method="lora", wrong=())
    document = collect(tmp_path)
    assert row_of(document, "lora").difference.mean == pytest.approx(0.3)
    assert row_of(document, "lora").p_rows == pytest.approx(2 / 2**6)
    assert [row.reference for row in document.rows] == [True, False]
    assert ("Full fine-tuning is full:lr=5e-5 on sst2." in document.notes) == (method != "full")


def test_of_two_full_fine_tunings_the_plain_one_counts_or_the_first(tmp_path):
    for method, wrong in (("full:lr=1e-5", 2), ("full:lr=5e-5", 4), ("lora", 6)):
        finished(tmp_path, method=method, wrong=range(wrong))
    write_grid(tmp_path, {"tasks": ["sst2"], "methods": ["full:lr=5e-5", "full:lr=1e-5", "lora"], "seeds": 1})
    document = collect(tmp_path)
    assert row_of(document, "lora").difference.mean == pytest.approx(-0.1)
    assert row_of(document, "full:lr=1e-5").difference.mean == pytest.approx(0.1)
    finished(tmp_path, method="full", wrong=range(1))
    assert row_of(collect(tmp_path), "lora").difference.mean == pytest.approx(-0.25)


def test_seeds_that_were_evaluated_on_other_rows_are_not_added_up(tmp_path):
    """As many rows in each seed, and the same ones within it."""
    for seed in range(2):
        for method in ("full", "lora"):
            finished(tmp_path, method=method, seed=seed, idx=np.arange(N) + 100 * seed)
    document = collect(tmp_path)
    assert (row_of(document, "lora").p_rows, row_of(document, "lora").difference) == (None, None)
    (note,) = [note for note in document.notes if note.startswith("sst2 lora can't be compared with full.")]
    assert "different rows" in note


def test_a_metric_that_a_seed_lacks_has_no_mean(tmp_path):
    finished(tmp_path, seed=0, scores={"validation": {"accuracy": 0.95, "f1": 0.9}})
    finished(tmp_path, seed=1, scores={"validation": {"accuracy": 0.95}})
    finished(tmp_path, seed=2, scores={})
    (row,) = collect(tmp_path).rows
    assert row.other_metrics == {}
