"""Copies of trained weights against autocast alone, which rounds them itself."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rankwise.engine.mixed_precision import Copies


class Net(nn.Module):
    def __init__(self, tied=False):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.first = nn.Embedding(7, 6), nn.Linear(6, 7, bias=False)
        self.norm, self.last = nn.LayerNorm(7), nn.Linear(7, 2)
        if tied:
            self.first.weight = self.embedding.weight

    def forward(self, ids):
        return self.last(self.norm(torch.relu(self.first(self.embedding(ids)))))


def loss(net):
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(torch.tensor([1, 2, 2, 5]))
    return F.cross_entropy(logits.float(), torch.tensor([0, 1, 1, 0]))


@pytest.mark.parametrize("tied", [False, True])
def test_loss_and_gradients_are_those_of_autocast_alone_to_the_last_bit(tied):
    net = Net(tied)
    parameters = list(net.parameters())
    expected = loss(net)
    gradients = torch.autograd.grad(expected, parameters)
    copies = Copies(net, parameters, torch.bfloat16)
    copies.refresh()
    with copies.in_place():
        found = loss(net)
        ours = torch.autograd.grad(found, copies.leaves(parameters))
    assert torch.equal(found, expected)
    assert any(g.dtype == torch.bfloat16 for g in ours)
    assert any(g.is_sparse for g in ours) or tied
    for a, b in zip(ours, gradients, strict=True):
        assert torch.equal((a.to_dense() if a.is_sparse else a).float(), b)


def test_the_model_has_its_own_weights_again_also_after_an_error():
    net = Net()
    before = dict(net.named_parameters())
    copies = Copies(net, list(net.parameters()), torch.bfloat16)
    with pytest.raises(IndexError), copies.in_place():
        net(torch.tensor([99]))
    assert all(p is before[name] for name, p in net.named_parameters())
    assert not net.embedding.sparse


def test_frozen_weights_and_other_layers_are_not_copied():
    net = Net()
    net.first.requires_grad_(False)
    trained = [p for p in net.parameters() if p.requires_grad]
    copies = Copies(net, trained, torch.bfloat16)
    with copies.in_place():
        assert net.first.weight.dtype == torch.float32
        assert net.norm.weight.dtype == torch.float32
        assert net.last.weight.dtype == torch.bfloat16
    assert copies.nbytes == 2 * net.last.weight.numel()
