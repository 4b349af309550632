"""Operations against the formula of a matrix product."""

import torch
from torch import nn

from rankwise.engine.measure import TensorMemory, product_rate


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
