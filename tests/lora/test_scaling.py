"""Scaling at a fixed rank and where ranks change."""

import pytest
import torch
from torch import nn

from rankwise.lora.layer import LoRALinear
from rankwise.lora.scaling import ALPHA, START_RANK, rank_change_factor, scale


def test_a_fixed_rank_is_scaled_by_alpha_over_the_rank_or_its_root():
    assert scale(8, None, rslora=False) == 2.0
    assert scale(8, 4.0, rslora=False) == 0.5
    assert scale(16, 4.0, rslora=True) == 1.0


@pytest.mark.parametrize("exponent", [1.0, 0.5, 0.0])
def test_stretched_matrices_at_the_new_scaling_are_the_same_function(exponent):
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(12, 10).double(), 4, scaling=ALPHA / START_RANK)
    nn.init.normal_(layer.lora_B)
    before, c = layer.delta(), rank_change_factor(4, 9, exponent)
    layer.lora_A.data *= c
    layer.lora_B.data *= c
    layer.scaling /= c**2
    torch.testing.assert_close(layer.delta(), before)
    assert layer.scaling == pytest.approx(ALPHA / START_RANK * (4 / 9) ** exponent)


def test_rank_0_counts_as_1():
    assert rank_change_factor(0, 4) == rank_change_factor(1, 4) == 2.0
    assert rank_change_factor(4, 0) == 0.5
