"""Operations, products and traffic, counted by hand."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rankwise.engine.measure import Operations
from rankwise.engine.threads import MicroBatchThreads
from rankwise.lora.layer import LoRALinear

N, D_IN, D_OUT = 8, 30, 70


def test_a_linear_layer_forward_and_backward():
    layer, x = nn.Linear(D_IN, D_OUT, bias=False), torch.ones(N, D_IN, requires_grad=True)
    with Operations() as done:
        y = layer(x)
    assert done.names == {"aten.mm": 1}, "the transposed weight is a view"
    assert done.traffic == 4 * (N * D_IN + D_IN * D_OUT + N * D_OUT)
    dy = torch.ones_like(y)
    with Operations() as done:
        y.backward(dy)
    assert (done.started, done.products) == (2, 2)  # dW = dyᵀ x, dx = dy W
    assert done.flops == 2 * 2 * N * D_IN * D_OUT
    assert done.traffic == 2 * 4 * (N * D_IN + D_IN * D_OUT + N * D_OUT)


def test_a_lora_layer_has_three_products_forward_and_five_backward():
    layer = LoRALinear(nn.Linear(D_IN, D_OUT), 4, scaling=2.0)
    x = torch.ones(N, D_IN, requires_grad=True)
    with Operations() as done:
        y = layer(x)
    assert (done.started, done.products) == (3, 3)
    with Operations() as done:
        y.backward(torch.ones_like(y))
    assert done.products == 5  # dz, dy W, dz A, dA, dB
    assert done.names["aten.mul_"] == 2  # s


@pytest.mark.parametrize(
    ("compute", "numbers"),
    [
        (lambda x, out: x + 1, 2 * 1000),
        (lambda x, out: x.add_(1), 2 * 1000),
        (lambda x, out: torch.add(x, 1, out=out), 2 * 1000),
        (lambda x, out: out.copy_(x), 2 * 1000),
        (lambda x, out: out.fill_(3.0), 1000),
        (lambda x, out: x.view(10, 100)[2:4].t().mul_(2.0), 2 * 200),
        (lambda x, out: x[:1].expand(500) + out[:500], 1 + 2 * 500),
        (lambda x, out: torch.zeros_like(x), 1000),
        (lambda x, out: x.new_full((1000,), 2.0), 1000),
        (lambda x, out: out.uniform_(), 1000),
        (lambda x, out: torch._foreach_zero_([x, out]), 2 * 1000),
        (lambda x, out: torch._foreach_copy_([out], [x]), 2 * 1000),
        (lambda x, out: x.view(-1), 0),
        (lambda x, out: torch.empty(50, 50), 0),
        (lambda x, out: x.detach(), 0),
    ],
)
def test_traffic_is_what_is_read_and_written(compute, numbers):
    x, out = torch.ones(1000), torch.zeros(1000)
    with Operations() as done:
        compute(x, out)
    assert done.traffic == 4 * numbers
    assert done.started == (numbers > 0)


def test_a_look_up_reads_the_rows_that_it_returns():
    table, ids = torch.ones(5000, 16), torch.tensor([3, 7])
    with Operations() as done:
        nn.functional.embedding(ids, table)
    assert done.traffic == 2 * (4 * 2 * 16) + 8 * 2


@pytest.mark.parametrize(
    ("write", "moves"),
    [
        (lambda table, ids, rows: table.index_copy_(0, ids, rows), 2),
        (lambda table, ids, rows: table.index_put_((ids,), rows), 2),
        (lambda table, ids, rows: table.index_put_((ids,), rows, accumulate=True), 3),
        (lambda table, ids, rows: table.index_add_(0, ids, rows), 3),
    ],
)
def test_writing_rows_moves_those_rows(write, moves):
    table, ids, rows = torch.ones(5000, 16), torch.tensor([3, 7]), torch.ones(2, 16)
    with Operations() as done:
        write(table, ids, rows)
    assert done.traffic == moves * (4 * 2 * 16) + 8 * 2


def test_a_comparison_that_returns_a_number_reads_both():
    with Operations() as done:
        torch.equal(torch.ones(10), torch.ones(10))
    assert done.names["aten.equal"] == 1
    assert done.traffic == 2 * 4 * 10 + 2 * 4 * 10  # made, then read


def test_a_product_without_what_it_is_added_to_does_not_read_it():
    out, a, b = torch.zeros(2, 3, 5), torch.ones(2, 3, 4), torch.ones(2, 4, 5)
    with Operations() as done:
        torch.baddbmm(out, a, b, beta=0, out=out)
    assert done.traffic == 4 * (30 + 24 + 40)
    assert done.flops == 2 * 30 * 4


def test_the_optimizer_counts_and_reads_each_number_of_its_state():
    layer = nn.Linear(D_IN, D_OUT, bias=False)
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
    layer.weight.grad = torch.ones_like(layer.weight)
    optimizer.step()  # makes the state
    with Operations() as done:
        optimizer.step()
    assert done.names == {"aten._foreach_add_": 1, "aten._fused_adamw_": 1}
    numbers = 4 * D_IN * D_OUT
    assert done.traffic == pytest.approx(4 * numbers + 3 * numbers, rel=0.01)  # gradients are only read
    optimizer.grad_scale = torch.ones(())
    with Operations() as done:
        optimizer.step()
    assert done.traffic == pytest.approx(4 * numbers + 4 * numbers, rel=0.01)


def test_arithmetic_is_what_pytorch_counts():
    model = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    x = torch.ones(2, 5, 32)
    with Operations() as done, FlopCounterMode(display=False) as theirs:
        model(x).sum().backward()
    assert done.flops == theirs.get_total_flops() > 0


def test_threads_of_micro_batches_count_too():
    layer = nn.Linear(D_IN, D_OUT, bias=False).requires_grad_(False)
    rows = [torch.ones(N, D_IN)] * 3
    with Operations() as done:
        list(MicroBatchThreads(2, 1).map(layer, rows))
    assert done.names == {"aten.mm": 3}
