"""The step: micro-batches add up to the batch, a loss that is no number stops, and it learns."""

import pytest
import torch

from rankwise.engine.compute import predict_logits
from rankwise.errors import RankwiseError
from rankwise.tasks.objectives import Classification
from short_training import fixed, run, training


def test_methods_with_the_same_seed_see_the_same_batches():
    lora, full = fixed("lora"), fixed("full")
    for _ in range(lora.steps):
        assert lora.batch().tolist() == full.batch().tolist()
        lora.step_number += 1
        full.step_number += 1


@pytest.mark.parametrize("padding", ["packed", "longest"])
def test_accumulation_gives_the_whole_batchs_gradient(padding):
    def gradients(accumulate):
        state = fixed(padding=padding, accumulate=accumulate)
        state.model.double()
        for module in state.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        with state.compute.running(state.model):
            state.backward(state.batch())
        return {name: p.grad for name, p in state.model.named_parameters() if p.grad is not None}

    whole, added_up = gradients(1), gradients(3)
    for name, gradient in whole.items():
        torch.testing.assert_close(added_up[name], gradient, rtol=1e-5, atol=1e-7)


def test_the_objective_gives_the_loss_by_which_ranks_are_decided():
    class Blind(Classification):
        def calibrated_losses(self, logits, labels, weights=None):
            return 0 * logits[:, 0] + 7

    state = training(given={"objective": Blind()})
    assert state.rank.held_out.losses_with({}).tolist() == [7.0] * 60


def test_the_learning_rate_can_be_given():
    state = fixed(given={"lr_factor": [0.5, 0.25].__getitem__})
    with state.compute.running(state.model):
        assert [state.step().lr for _ in range(2)] == [0.005, 0.0025]


def test_a_loss_that_is_not_a_number_stops_with_the_step():
    state = fixed()
    run(state, until=2)
    with torch.no_grad():
        state.model.classifier.weight.fill_(float("nan"))
    with pytest.raises(RankwiseError, match=r"The loss is nan at step 3 of 16. Lower `lr=` \(now 0.01\)"):
        run(state)


@pytest.mark.slow
def test_training_learns_what_can_be_learned():
    state = fixed(epochs=25)
    run(state)
    accuracy = (predict_logits(state.model, state.rows, state.compute).argmax(1) == state.rows.labels).mean()
    assert accuracy >= 0.9
