"""Dropout's masks: their distribution, what they depend on, and that micro-batches of a packed batch see the whole batch's."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import tiny
from float64 import in_float64, rows_of
from rankwise.engine.dropout import dropout, keep_mask
from rankwise.engine.packed_mode import packed
from rankwise.engine.packing import pack
from rankwise.engine.pooling import packed_logits
from rankwise.lora.inject import adapt
from rankwise.lora.layer import lora_layers

UNLIKELY = 1e-4
"""A correct mask passes a check of level 1e-4; seeds are fixed, so it passes always or never."""


def mask(key, n, p, start=0):
    return keep_mask(key, start, (n,), p, torch.float32)


@pytest.mark.parametrize("p", [0.0, 1 / 65536, 0.01, 0.1, 0.5, 0.9, 65535 / 65536, 1.0])
def test_the_share_of_zeros_is_binomial(p):
    n = 400_000
    zeros = int((mask((3, 1), n, p) == 0).sum())
    low, high = stats.binom.interval(1 - UNLIKELY, n, p) if 0 < p < 1 else (p * n, p * n)
    assert low <= zeros <= high


def test_neighbours_modules_and_steps_are_independent():
    """Eight elements at a time are one of 256 patterns, each as likely as its number of zeros says."""
    p, n = 0.3, 100_000
    drawn = [mask((1, step, module), n, p) for step in range(2) for module in range(4)]
    within = mask((5,), 8 * n, p).view(n, 8)
    for bits in (torch.stack(drawn, 1), within):
        pattern = ((bits == 0).long() << torch.arange(8)).sum(1)
        seen = torch.bincount(pattern, minlength=256).numpy()
        zeros = np.array([i.bit_count() for i in range(256)])
        assert stats.chisquare(seen, n * p**zeros * (1 - p) ** (8 - zeros)).pvalue > UNLIKELY


def test_the_same_key_gives_the_same_mask_and_another_key_another():
    first = mask((7, 2, 3), 4096, 0.5)
    assert torch.equal(first, mask((7, 2, 3), 4096, 0.5))
    for other in ((7, 2, 4), (7, 3, 3), (8, 2, 3), (7, 2), (2, 7, 3)):
        differing = int((first != mask(other, 4096, 0.5)).sum())
        assert differing in range(*map(int, stats.binom.interval(1 - UNLIKELY, 4096, 0.5)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_mask_does_not_depend_on_the_number_type(dtype):
    assert torch.equal(keep_mask((1,), 0, (3, 50), 0.2, dtype).float(), mask((1,), 150, 0.2).view(3, 50))


@pytest.mark.parametrize("start", [0, 1, 2, 3, 4, 17, 1000])
def test_the_mask_of_a_section_is_that_section_of_the_whole(start):
    whole = mask((4, 4), 2000, 0.4)
    for n in (1, 3, 4, 129, 1000):
        assert torch.equal(mask((4, 4), n, 0.4, start), whole[start : start + n])


@pytest.mark.parametrize("p", [0.1, 0.3333, 1e-5, 0.9])
def test_the_expectation_is_exact_though_the_probability_is_rounded(p):
    """What is kept is scaled by one over the realised probability, a multiple of 1/65536 next to the one asked for."""
    x = torch.ones(1000, dtype=torch.float64)
    kept = dropout(x, p, (1,)).unique()
    scale = float(kept.max())
    realised = 65536 / scale  # of 65536 lanes, those that keep
    assert realised == pytest.approx(round(realised), abs=1e-6)
    assert abs(1 - realised / 65536 - p) <= 0.5 / 65536
    n = 1 << 20
    shares = [float(mask((2, i), n, p).sum()) for i in range(4)]
    assert stats.binomtest(round(sum(shares)), 4 * n, round(realised) / 65536).pvalue > UNLIKELY


def test_nothing_is_dropped_or_copied_at_probability_zero():
    x = torch.randn(5)
    assert dropout(x, 0.0, (1,)) is x


def test_backward_uses_the_mask_of_forward():
    x = torch.randn(6, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = dropout(x, 0.4, (9, 9), start=5)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient == 0, y == 0)
    assert 0 < int((gradient == 0).sum()) < x.numel()
    assert torch.autograd.gradcheck(lambda x: dropout(x, 0.4, (9, 9), start=5) ** 2, x)


RATES = {
    "bert": {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.4},
    "roberta": {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.4},
    "distilbert": {"dropout": 0.3, "attention_dropout": 0.4, "seq_classif_dropout": 0.2},
    "modernbert": {"attention_dropout": 0.4, "embedding_dropout": 0.3, "mlp_dropout": 0.2, "classifier_dropout": 0.1},
    "gpt2": {"attn_pdrop": 0.4, "embd_pdrop": 0.3, "resid_pdrop": 0.2},
    "llama": {"attention_dropout": 0.4},
}  # fmt: skip


def trained(family, method, lora_dropout=0.0):
    model = tiny.classifier(family, num_labels=3, **RATES[family]).double()
    model.config.pad_token_id = 0
    if method == "lora":
        adapt(model, rank=4, dropout=lora_dropout)
        for layer in lora_layers(model).values():
            layer.lora_B.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    return model.train()


def gradients(model, batches):
    """Logits by row, and the gradient of a weighted sum over all rows, summed over the batches."""
    model.zero_grad()
    logits = {}
    with in_float64(), packed(model):
        for batch in batches:
            found = packed_logits(model, batch)
            weights = torch.tensor(batch.rows[:, None] % 5 - 1.5) * torch.tensor([1.0, -2.0, 0.5])
            (found * weights).sum().backward()
            logits |= dict(zip(batch.rows.tolist(), found.detach(), strict=True))
    stacked = torch.stack([logits[row] for row in sorted(logits)])
    return stacked, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(one, other):
    assert torch.allclose(one[0], other[0], rtol=1e-10, atol=1e-12)
    assert one[1].keys() == other[1].keys()
    whole = torch.stack([g.norm() for g in one[1].values()]).norm()
    for name, gradient in one[1].items():
        assert (other[1][name] - gradient).norm() <= 1e-10 * max(gradient.norm(), 1e-3 * whole), name


@pytest.mark.parametrize(
    ("method", "lora_dropout"), [("full", 0.0), ("lora", 0.2)], ids=["full", "lora-dropout"]
)  # fmt: skip
@pytest.mark.parametrize("family", RATES)
def test_micro_batches_with_dropout_give_the_whole_batchs_gradient(family, method, lora_dropout):
    model, rows = trained(family, method, lora_dropout), rows_of([9, 1, 4, 12, 4, 2, 7, 12])
    batch = pack(rows, np.array([6, 0, 3, 1, 2, 7, 5, 4]), model=model, key=(3, 1))
    whole = gradients(model, [batch])
    for limit in (1, 20):
        divided = batch.split(limit)
        assert len(divided) > 1
        assert_same(whole, gradients(model, divided))
    assert not torch.allclose(whole[0], gradients(model.eval(), [batch])[0]), "dropout was on"


def test_micro_batches_divided_again_give_the_same_gradient():
    model, rows = trained("roberta", "lora"), rows_of([9, 1, 4, 12, 4, 2, 7, 12])
    batch = pack(rows, np.arange(8), model=model, key=(3, 1))
    again = [smaller for one in batch.split(30) for smaller in one.split(12)]
    assert len(again) > len(list(batch.split(30))) > 1
    assert_same(gradients(model, [batch]), gradients(model, again))


@pytest.mark.parametrize("family", ["roberta", "gpt2"])
def test_a_batchs_key_alone_decides_its_dropout(family):
    model, rows = trained(family, "full"), rows_of([5, 3, 8])
    first, same, other = (
        gradients(model, [pack(rows, np.arange(3), model=model, key=key)])[0] for key in ((1, 2), (1, 2), (1, 3))
    )  # fmt: skip
    assert torch.equal(first, same)
    assert not torch.allclose(first, other)


def test_without_a_key_dropout_follows_torchs_own_seed():
    model, rows, found = trained("roberta", "full"), rows_of([5, 3, 8]), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(gradients(model, [pack(rows, np.arange(3), model=model)])[0])
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


@pytest.mark.parametrize("family", ["roberta", "gpt2", "llama"])
def test_the_gradient_with_dropout_is_the_numerical_one(family):
    """Backward draws every mask again: of attention, of the residuals, of the head."""
    model, rows = trained(family, "lora", lora_dropout=0.2), rows_of([5, 2, 5])
    batch = pack(rows, np.arange(3), model=model, key=(1,))
    _, analytic = gradients(model, [batch])
    weights = torch.tensor(batch.rows[:, None] % 5 - 1.5) * torch.tensor([1.0, -2.0, 0.5])
    step, generator = 1e-6, torch.Generator().manual_seed(2)
    with in_float64(), packed(model), torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            values = []
            for sign in (1, -1):
                parameter.add_(direction, alpha=sign * step)
                values.append(float((packed_logits(model, batch) * weights).sum()))
                parameter.add_(direction, alpha=-sign * step)
            numerical = (values[0] - values[1]) / (2 * step)
            assert numerical == pytest.approx(
                float((analytic[name] * direction).sum()), rel=1e-6, abs=1e-7
            ), name


def test_the_mean_over_many_masks_is_the_forward_without_dropout():
    """Linear in what is dropped, so the mean of many draws is the undropped value, with the error draws have."""
    layer = nn.Linear(16, 4).double()
    x = torch.randn(16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    draws = torch.stack([layer(dropout(x, 0.3, (5, i))).detach() for i in range(2000)])
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - layer(x).detach()).abs() <= 4.5 * error).all()
