"""Held-out evidence: bounds against drawing, acceptance rules against planted loss increases."""

import pytest
import torch

from rankwise.rank.config import RankConfig
from rankwise.rank.evidence import (
    LossIncrease,
    accept_addition,
    accept_prune_after_trial,
    accept_prune_by_both,
    accept_prune_by_rows,
    accept_size,
    factor_bound,
)

CONFIG = RankConfig()


def test_components_are_added_where_rows_clearly_miss_them():
    lack = LossIncrease(mean=0.02, error=0.005, rows=200)
    assert accept_addition(lack, limit=0.01)
    assert not accept_addition(lack, limit=0.015)


def test_acceptance_follows_rows_and_statistics_both():
    spread = torch.linspace(-1, 1, 64)
    clear, unclear = (LossIncrease.of((shift + 0.05 * spread).double()) for shift in (0.015, 0.005))
    sd = CONFIG.prior_sd
    assert not accept_prune_by_both(clear, 0.006, 1e-4, sd)  # rows clearly miss the components
    assert not accept_prune_by_both(unclear, 0.001, 1e-4, sd)
    assert accept_prune_by_both(unclear, 0.006, 1e-4, sd)
    assert not accept_prune_by_both(unclear, 0.006, 0.01, sd)  # the statistics expect too much
    assert not accept_prune_by_rows(unclear, 0.006)
    assert not accept_prune_after_trial(unclear, 0.001)
    assert accept_prune_after_trial(unclear, 0.006)


@pytest.mark.parametrize(
    ("increase", "error", "expected"),
    [(0.0, 10.0, 0.01), (0.04, 0.01, 0.03), (0.3, 0.03, 0.01), (-0.01, 0.01, 0.01)],
)
def test_the_factor_bound_equals_the_one_by_drawing(increase, error, expected):
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(2_000_000, generator=generator, dtype=torch.float64).mul(CONFIG.prior_sd).exp()
    likely = (-0.5 * ((increase - expected * factors) / error) ** 2).exp()
    factors, order = factors.sort()
    weights = likely[order].cumsum(0)
    bound = factors[(weights < 0.95 * weights[-1]).sum()].item()
    assert factor_bound(increase, error, expected, CONFIG.prior_sd) == pytest.approx(bound, rel=0.05)


@pytest.mark.parametrize(
    ("held_out", "accepted"),
    [
        ((0.001, 0.001), True),  # the held-out rows are sure
        ((0.001, 0.010), False),  # they aren't
        ((0.004, 0.003), True),  # within twice the limit, surely
        ((0.006, 0.001), False),  # they miss the components more than is negligible
        ((-0.020, 0.010), True),
    ],
)
def test_a_smaller_size_needs_sure_evidence(held_out, accepted):
    assert accept_size(LossIncrease(*held_out, 60), limit=0.005, bound_limit=0.01) is accepted
