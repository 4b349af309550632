"""The loss of a row that held-out evidence is made of."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rankwise.tasks.objectives import OBJECTIVES

CLASSES, LABELS, NUMBERS = (OBJECTIVES[name] for name in ("classification", "multi-label", "regression"))


def noisy_classifier(rows=4000, seed=0):
    """Logits whose softmax is the very distribution that the labels were drawn from."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    return logits, torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("factor", [0.2, 1.0, 2.8])
def test_calibrated_losses_do_not_depend_on_confidence(factor):
    logits, labels = noisy_classifier()
    found = CLASSES.calibrated_losses(factor * logits, labels)
    truth = F.cross_entropy(logits, labels, reduction="none")
    assert found.shape == labels.shape
    assert found.mean().item() <= truth.mean().item() + 1e-9
    assert found.mean().item() == pytest.approx(truth.mean().item(), abs=1e-3)


def test_calibrated_losses_of_wrong_logits_are_those_of_a_guess():
    logits, labels = noisy_classifier()
    wrong = CLASSES.calibrated_losses(-0.1 * logits, labels).mean().item()
    assert wrong == pytest.approx(np.log(3), rel=0.05)


def test_a_temperature_above_three_is_not_taken():
    """It would make a very confident classifier that is wrong look like one that guesses."""
    logits, labels = noisy_classifier()
    found = CLASSES.calibrated_losses(30 * logits, labels)
    torch.testing.assert_close(found, CLASSES.example_losses(10 * logits, labels), rtol=1e-3, atol=1e-3)


def test_calibrated_multi_label_losses_do_not_depend_on_confidence():
    logits, _ = noisy_classifier()
    labels = torch.bernoulli(logits.sigmoid(), generator=torch.Generator().manual_seed(1)).float()
    found = [LABELS.calibrated_losses(factor * logits, labels).mean().item() for factor in (0.3, 1.0, 2.8)]
    assert found == pytest.approx([LABELS.example_losses(logits, labels).mean().item()] * 3, abs=1e-3)


def test_calibration_leaves_regression_alone():
    logits, labels = torch.randn(20, 1), torch.randn(20)
    assert torch.equal(NUMBERS.calibrated_losses(logits, labels), (logits[:, 0] - labels).square())
