"""Statistics against other ways to the same number: scipy's own tests, enumeration, and worked examples."""

import math
from itertools import product

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from rankwise.errors import RankwiseError
from rankwise.report.stats import estimate, holm, mcnemar, paired_difference, paired_t

scores = st.lists(st.floats(0, 1), min_size=2, max_size=8)
p_values = st.lists(st.floats(0, 1), max_size=8)


def predictions(correct: list[int], idx: list[int] | None = None, label: int = 1) -> pa.Table:
    """Predictions that are right where `correct` is 1."""
    n = len(correct)
    return pa.table(
        {
            "idx": list(range(n)) if idx is None else idx,
            "label": [label] * n,
            "prediction": [label if right else 1 - label for right in correct],
        }
    )


# Means over seeds


@given(scores, scores)
def test_a_paired_t_test_is_scipys(first, second):
    n = min(len(first), len(second))
    a, b = dict(enumerate(first[:n])), dict(enumerate(second[:n]))
    spread = np.std(np.subtract(first[:n], second[:n]), ddof=1)
    if spread < 1e-6:  # there scipy warns of lost precision
        return
    assert paired_t(a, b) == pytest.approx(scipy.stats.ttest_rel(first[:n], second[:n]).pvalue, abs=1e-9)


@given(scores, scores)
def test_the_paired_test_and_the_interval_agree(first, second):
    a, b = dict(enumerate(first)), dict(enumerate(second))
    p, difference = paired_t(a, b), paired_difference(a, b)
    if abs(p - 0.05) > 1e-6 and difference.half > 1e-9:
        assert (p < 0.05) == (difference.low > 0 or difference.high < 0)


def test_differences_without_spread_are_certain_or_none():
    assert paired_t({0: 0.5, 1: 0.75}, {0: 0.25, 1: 0.5}) == 0.0
    assert paired_t({0: 0.5, 1: 0.75}, {0: 0.5, 1: 0.75}) == 1.0


def test_one_shared_seed_has_no_test_over_seeds():
    assert paired_t({0: 0.5, 1: 0.75}, {1: 0.5}) is None


def test_an_interval_is_the_one_in_the_tables():
    """t(0.975, 4 degrees) = 2.776; the standard deviation of 1 … 5 is √2.5."""
    found = estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.mean, found.n) == (3.0, 5)
    assert found.half == pytest.approx(2.7764451 * math.sqrt(2.5 / 5), rel=1e-7)
    assert (found.low + found.high) / 2 == pytest.approx(3.0)


@given(scores)
def test_an_interval_agrees_with_scipys(values):
    found = estimate(values)
    spread = scipy.stats.sem(values)
    low, high = (
        scipy.stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=spread)
        if spread > 0
        else (found.mean, found.mean)
    )
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))


def test_an_interval_holds_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    intervals = [estimate(list(generator.normal(0.8, 0.02, size=3))) for _ in range(2000)]
    share = np.mean([interval.low <= 0.8 <= interval.high for interval in intervals])
    assert share == pytest.approx(0.95, abs=0.02)  # four standard errors


def test_one_seed_gives_no_interval():
    found = estimate([0.83])
    assert (found.mean, found.low, found.high, found.half, found.n) == (0.83, None, None, None, 1)


def test_equal_scores_have_an_interval_of_no_width():
    assert estimate([0.5, 0.5, 0.5]).half == 0.0


def test_no_values_give_no_estimate():
    with pytest.raises(ValueError, match="no values"):
        estimate([])


# Differences


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=8))
def test_a_paired_difference_agrees_with_scipys_paired_t_test(pairs):
    first, second = dict(enumerate(a for a, _ in pairs)), dict(enumerate(b for _, b in pairs))
    found = paired_difference(first, second)
    differences = [a - b for a, b in pairs]
    assert found.mean == pytest.approx(float(np.mean(differences)), abs=1e-12)
    if np.std(differences) > 1e-6:  # scipy has no interval without spread
        interval = scipy.stats.ttest_rel(list(first.values()), list(second.values())).confidence_interval(
            0.95
        )
        assert found.low == pytest.approx(interval.low, abs=1e-9)
        assert found.high == pytest.approx(interval.high, abs=1e-9)


def test_seeds_are_paired_by_number_and_only_where_both_have_them():
    found = paired_difference({0: 0.9, 2: 0.5, 3: 0.1}, {3: 0.0, 1: 0.7, 0: 0.6})
    assert found.n == 2
    assert found.mean == pytest.approx((0.3 + 0.1) / 2)


def test_what_two_methods_share_in_every_seed_cancels_out():
    hard = np.array([0.0, 0.2, -0.1, 0.15])
    found = paired_difference(dict(enumerate(0.8 + hard)), dict(enumerate(0.79 + hard)))
    assert found.mean == pytest.approx(0.01)
    assert found.half == pytest.approx(0.0, abs=1e-12)


def test_methods_without_a_seed_in_common_have_no_difference():
    assert paired_difference({0: 0.9}, {1: 0.8}) is None


def test_one_shared_seed_gives_a_difference_without_interval():
    found = paired_difference({0: 0.9}, {0: 0.8})
    assert (found.mean, found.half, found.n) == (pytest.approx(0.1), None, 1)


# Examples


def exact(only_first: int, only_second: int) -> float:
    """The share of all ways to toss a fair coin for each discordant example that are no likelier than this one."""
    n = only_first + only_second
    ways = [math.comb(n, sum(tosses)) for tosses in product((0, 1), repeat=n)]
    return sum(way <= math.comb(n, only_first) for way in ways) / len(ways)


@pytest.mark.parametrize(
    ("only_first", "only_second"), [(0, 0), (1, 0), (3, 3), (2, 7), (8, 1), (0, 10), (5, 6)]
)
def test_mcnemars_p_counts_every_way_the_examples_could_have_fallen(only_first, only_second):
    both_right, both_wrong = [1] * 4, [0] * 3
    first = predictions([1] * only_first + [0] * only_second + both_right + both_wrong)
    second = predictions([0] * only_first + [1] * only_second + both_right + both_wrong)
    found = mcnemar([(first, second)])
    assert (found.only_first, found.only_second) == (only_first, only_second)
    assert found.n == only_first + only_second + 7
    assert found.p == pytest.approx(exact(only_first, only_second))


def test_an_example_counts_once_however_many_seeds_have_seen_it():
    # Margins by example over the two seeds: +2, +1, −1, 0.
    one = (predictions([1, 1, 0, 1]), predictions([0, 1, 1, 0]))
    two = (predictions([1, 1, 1, 0]), predictions([0, 0, 1, 1]))
    found = mcnemar([one, two])
    assert (found.only_first, found.only_second, found.n) == (2, 1, 4)
    assert found.p == pytest.approx(exact(2, 1))


def test_a_hundred_copies_of_a_seed_are_no_more_evidence_than_one():
    seed = (predictions([1] * 6 + [0]), predictions([0] * 6 + [1]))
    assert mcnemar([seed] * 100) == mcnemar([seed])


def test_seeds_of_different_rows_are_refused():
    with pytest.raises(RankwiseError, match="numbers of validation rows differ"):
        mcnemar([(predictions([1]), predictions([0])), (predictions([1, 0]), predictions([0, 1]))])


def test_examples_are_matched_by_idx_whatever_order_they_are_stored_in():
    first = predictions([1, 0, 1], idx=[30, 10, 20])
    second = predictions([0, 1, 1], idx=[10, 20, 30])
    found = mcnemar([(first, second)])
    assert (found.only_first, found.only_second) == (0, 0)


def test_both_methods_right_everywhere_is_no_evidence():
    assert mcnemar([(predictions([1, 1]), predictions([1, 1]))]).p == 1.0


@pytest.mark.parametrize(
    "other", [predictions([1, 1], idx=[0, 2]), predictions([1, 1, 1]), predictions([1, 1], label=0)]
)
def test_different_rows_are_not_paired(other):
    with pytest.raises(RankwiseError, match="can't be paired: their predictions differ in (idx|label)"):
        mcnemar([(predictions([1, 1]), other)])


# Several tests


def test_holms_correction_of_a_worked_example():
    """0.01 · 4, then 0.02 · 3, then 0.03 · 2 = 0.06 again, then 0.5 · 1."""
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])


def test_holms_correction_never_passes_one_and_never_falls():
    assert holm([0.4, 0.6]) == [0.8, 0.8]
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_a_single_test_is_left_as_it_is():
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


@given(p_values)
def test_holms_correction_is_that_of_its_closed_form(values):
    """The largest of (m − j) · p(j) over the sorted p values up to its own place."""
    ordered = sorted(values)
    stepped = [min(1.0, (len(values) - j) * p) for j, p in enumerate(ordered)]
    expected = [max(stepped[: ordered.index(p) + 1]) for p in values]
    assert holm(values) == pytest.approx(expected)


def test_tags_of_rows_in_folds_of_different_lengths_count_as_right_or_wrong_whole():
    label = [[0.0, 1.0, -100.0], [1.0, 0.0, 0.0], [1.0, 0.0]]  # the last row is of a fold with shorter rows
    first = pa.table({"idx": [0, 1, 2], "label": label, "prediction": label})
    wrong = [[0.0, 1.0, -100.0], [1.0, 1.0, 0.0], [0.0, 0.0]]
    second = pa.table({"idx": [0, 1, 2], "label": label, "prediction": wrong})
    found = mcnemar([(first, second)])
    assert (found.only_first, found.only_second, found.n) == (2, 0, 3)
