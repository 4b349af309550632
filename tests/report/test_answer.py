"""The answer in sentences."""

import pytest

from planted import finished
from planted_report import grid, row_of
from rankwise.report import collect


def test_the_headline_names_methods_behind_full(tmp_path):
    grid(tmp_path)
    assert collect(tmp_path).answer[0] == (
        "lora is behind full fine-tuning on sst2 and rte; for lora:rank=2 no difference is shown."
    )


def test_the_headline_names_methods_ahead_of_full(tmp_path):
    grid(tmp_path, worse=-25, tasks=("rte",))
    assert collect(tmp_path).answer[0].startswith("lora is ahead of full fine-tuning on rte; ")


def test_the_headline_says_where_no_difference_is_shown(tmp_path):
    grid(tmp_path, worse=0, seeds=2)
    document = collect(tmp_path)
    assert (
        document.answer[0]
        == "No difference from full fine-tuning is shown for lora and lora:rank=2 on sst2 and rte."
    )
    assert any(note.startswith("Not shown is not equal") for note in document.notes)


def test_a_difference_over_rows_alone_stays_open(tmp_path):
    """20 rows are lost in one seed and won in the other: with all rows decided, the seeds still say nothing."""
    for seed, (full, lora) in enumerate([(10, 40), (10, 11)]):
        finished(tmp_path, method="full", seed=seed, n=200, wrong=range(full))
        finished(tmp_path, method="lora", seed=seed, n=200, wrong=range(lora))
    document = collect(tmp_path)
    (row,) = [row for row in document.rows if row.method == "lora"]
    assert row.p_rows < 0.05 < row.p_seeds
    assert row.verdict == "open"
    assert document.answer[0] == "lora may be behind full fine-tuning on sst2 (one of two tests says so)."


def test_one_seed_decides_by_rows_and_says_what_is_unknown(tmp_path):
    grid(tmp_path, seeds=1, tasks=("sst2",))
    (headline, *_), (row,) = (
        collect(tmp_path).answer,
        [r for r in collect(tmp_path).rows if r.method == "lora"],
    )
    assert (row.p_seeds, row.verdict) == (None, "shown")
    assert headline.endswith("with one seed, nothing is known about spread between runs.")


def test_each_method_has_its_cost_in_a_sentence(tmp_path):
    for seed in range(2):
        finished(tmp_path, method="full", seed=seed, samples_per_second=50.0, peak_rss_mb=1000.0)
        finished(tmp_path, seed=seed, samples_per_second=150.0, peak_rss_mb=250.0, wrong=(0, 1))
    assert collect(tmp_path).answer[1] == (
        "lora trains 3 % of the parameters, in 25 % of full's peak memory, at 3.0× its rows/s; −5.00 ± 0.00 points against full."
    )


def test_without_full_only_the_best_mean_is_named(tmp_path):
    finished(tmp_path)
    finished(tmp_path, method="lora:rank=2", wrong=range(4))
    assert collect(tmp_path).answer == [
        "Best mean score: sst2 95.00 accuracy (lora).",
        "Full fine-tuning is not in this grid, so nothing is compared with it. Add it with --methods full.",
    ]


def test_a_metric_and_the_rows_that_contradict_show_nothing(tmp_path):
    """lora is right on 12 rows more, and its Matthews correlation is lower: a test of right and wrong says nothing about that."""
    finished(tmp_path, method="full", n=100, wrong=range(20), metric="mcc", score=0.5)
    finished(tmp_path, method="lora", n=100, wrong=range(8), metric="mcc", score=0.4)
    document = collect(tmp_path)
    row = row_of(document, "lora")
    assert row.p_rows == pytest.approx(2 / 2**12)
    assert (row.only_this, row.only_full, row.verdict) == (12, 0, "not shown")
    assert "behind" not in document.answer[0]
    assert "sst2 lora is right on more rows than full, and its mcc is not higher" in " ".join(document.notes)


def test_seeds_that_show_a_metric_leave_it_open_where_rows_contradict(tmp_path):
    for seed in range(3):
        finished(tmp_path, method="full", seed=seed, n=100, wrong=range(20), metric="mcc", score=0.5)
        finished(
            tmp_path, method="lora", seed=seed, n=100, wrong=range(8), metric="mcc", score=0.4 + seed / 1e4
        )
    document = collect(tmp_path)
    row = row_of(document, "lora")
    assert row.p_rows < 0.05
    assert row.p_seeds < 0.05
    assert row.verdict == "open"
    assert document.answer[0] == "lora may be behind full fine-tuning on sst2 (one of two tests says so)."
