"""What a controller does when a number isn't finite, when other ranks are loaded, and when its layers are replaced."""

import copy
import json
import math

import pytest
import torch
import transformers as hf
from torch import nn

import rankwise
import short_training
import tiny
from rankwise.errors import RankwiseError
from rankwise.lora.inject import adapt_at_start_rank
from rankwise.lora.layer import lora_layers
from rankwise.rank.compress import compress
from rankwise.rank.config import RankConfig
from rankwise.rank.controller import RankController

CONFIG = RankConfig(prune_at={0.5: 0.02, 1.0: 0.02}, grow_at=(0.3,), memory=5)
STEPS = 40


class Training:
    """A small regression in which ranks are found."""

    def __init__(self, losses=None, optimizer=torch.optim.AdamW, steps=STEPS):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 8))
        self.x = torch.randn(400, 16)
        teacher = copy.deepcopy(self.model)
        with torch.no_grad():
            teacher[0].weight += torch.outer(torch.randn(24), torch.randn(16))
            self.y = teacher(self.x)
        adapt_at_start_rank(self.model, 6, targets=("0", "2"))
        self.optimizer = optimizer([p for p in self.model.parameters() if p.requires_grad], lr=0.02)
        self.controller = RankController(
            self.model, losses or self.losses, steps, self.optimizer, config=CONFIG
        )

    @torch.no_grad()
    def losses(self):
        return (self.model(self.x[:100]) - self.y[:100]).square().mean(dim=1)

    def steps(self, n, scaler=None, overflow=()):
        for step in range(n):
            rows = torch.randint(100, 400, (32,))
            loss = (self.model(self.x[rows]) - self.y[rows]).square().mean()
            loss = loss * math.inf if step in overflow else loss
            if scaler is None:
                loss.backward()
                self.optimizer.step()
            else:
                scaler.scale(loss).backward()
                scaler.step(self.optimizer)
                scaler.update()
            self.optimizer.zero_grad()
            self.controller.step()
        return self.controller


def test_an_overflow_leaves_the_statistics_as_they_are_and_is_counted():
    controller = Training().steps(STEPS, torch.amp.GradScaler("cpu", init_scale=2.0**10), overflow=(1, 7))
    assert controller.guard.skipped_steps == 2
    assert all(sums.isfinite().all() for sums in controller.statistics.sums.values())
    assert [d for d in controller.decisions if d.kind == "prune" and d.accepted]
    assert controller.notes == ["2 of 40 steps were skipped: their gradients or statistics weren't finite."]
    tensors, values = controller.state()
    again = Training().controller
    again.guard.skipped_steps = 0
    again.model.load_state_dict(controller.model.state_dict())
    again.load(tensors, json.loads(json.dumps(values)))
    assert again.guard.skipped_steps == 2


def test_a_step_that_the_optimizer_did_not_take_is_counted():
    training = Training()
    training.steps(3)
    training.controller.step()
    assert training.controller.guard.skipped_steps == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rows_whose_loss_is_not_finite_are_left_out_of_a_check(bad):
    def losses():
        found = training.losses()
        found[3] = bad
        return found

    training, clean = Training(), Training()
    training.controller.held_out.losses = losses
    clean.controller.held_out.losses = lambda: torch.cat([clean.losses()[:3], clean.losses()[4:]])
    for one in (training, clean):
        torch.manual_seed(1)
        with pytest.warns(UserWarning, match="1 held-out rows") if one is training else _quiet():
            one.steps(STEPS)
    assert [d.to_json() for d in training.controller.decisions] == [
        d.to_json() for d in clean.controller.decisions
    ]
    assert any(d.accepted for d in clean.controller.decisions)


def _quiet():
    import contextlib

    return contextlib.nullcontext()


def test_where_no_loss_is_finite_nothing_is_decided_and_it_is_said():
    training = Training(losses=lambda: torch.full((100,), math.nan))
    with pytest.warns(UserWarning, match="no decision whether to prune"):
        controller = training.steps(STEPS)
    assert controller.decisions == []
    assert any("100 held-out rows aren't finite; no decision" in note for note in controller.notes)
    with pytest.raises(RankwiseError, match="fewer than two held-out rows"):
        compress(controller)


def test_a_prune_under_which_losses_overflow_is_not_made():
    def losses():
        whole = all(layer.rank == 6 for layer in training.controller.layers.values())
        found = training.losses()
        with_none = not any(layer.rank for layer in training.controller.layers.values())
        return found if whole or with_none else torch.full_like(found, math.inf)

    training = Training()
    training.controller.held_out.losses = losses
    with pytest.warns(UserWarning, match="aren't finite without"):
        controller = training.steps(STEPS)
    assert set(controller.ranks.values()) == {6}
    for decision in controller.decisions:
        assert math.isfinite(decision.loss_increase)


def test_a_layer_with_weights_that_are_not_finite_takes_no_part():
    training = Training()
    training.steps(5)
    with torch.no_grad():
        training.model[2].lora_A[0, 0] = math.nan
    assert list(training.controller.bases()) == ["0"]
    training.controller.sort()


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.Adafactor, torch.optim.SGD])
@pytest.mark.parametrize("at", [3, 22])  # before and after the first prune
def test_the_controller_follows_a_state_dict_of_other_ranks(optimizer, at):
    other = Training()
    other.model[0].resize(0.1 * torch.randn(2, 16), 0.1 * torch.randn(24, 2))
    other.model[2].resize(0.1 * torch.randn(4, 24), 0.1 * torch.randn(8, 4))
    training = Training(optimizer=optimizer)
    training.steps(at)
    training.model.load_state_dict(other.model.state_dict())
    assert training.controller.ranks == {"0": 2, "2": 4}
    with pytest.warns(UserWarning, match="2 layers were given other weights from outside"):
        training.steps(1)
    assert not training.controller.resizer.pruned
    controller = training.steps(STEPS - at - 1)
    assert all(p.isfinite().all() for p in training.model.parameters())
    for path, sums in controller.statistics.sums.items():
        assert sums.shape == (2 * controller.ranks[path] + 1, controller.ranks[path])
    controller.sort()


@pytest.mark.parametrize("at", [3, 22])
def test_the_controller_follows_a_state_dict_of_the_same_ranks(at):
    """It goes on as one that has seen nothing but the weights that were loaded."""
    training, other = Training(), Training()
    training.steps(at)
    for layer in lora_layers(other.model).values():
        nn.init.normal_(layer.lora_B)
        rank = training.controller.ranks[{16: "0", 24: "2"}[layer.in_features]]
        layer.resize(layer.lora_A[:rank].detach().clone(), layer.lora_B[:, :rank].detach().clone())
    training.model.load_state_dict(other.model.state_dict())
    (training.model(training.x) - training.y).square().mean().backward()
    expected = {path: x.statistics.grad.clone() for path, x in training.controller.layers.items()}
    training.optimizer.step()
    with pytest.warns(UserWarning, match="2 layers were given other weights from outside"):
        training.controller.step()
    assert not training.controller.resizer.pruned
    for path, layer in training.controller.layers.items():
        assert torch.equal(training.controller.statistics.sums[path], expected[path])
        assert training.optimizer.state[layer.lora_A]["step"] == 1  # its moments were of other weights
        assert layer.replaced is None
    training.steps(3)
    assert training.optimizer.state[training.model[0].lora_A]["step"] == 4
    assert len(training.controller.notes) == 1


def test_weights_that_are_swapped_for_an_evaluation_and_back_change_nothing():
    """As averages of weights are, in the middle of a training."""
    training, plain = Training(), Training()
    other = copy.deepcopy(training.model.state_dict())
    for value in other.values():
        value *= 0.5
    for one in (training, plain):
        torch.manual_seed(1)
        for i in range(STEPS):
            one.steps(1)
            if one is training and all(other[k].shape == v.shape for k, v in one.model.state_dict().items()):
                kept = copy.deepcopy(one.model.state_dict())
                one.model.load_state_dict(other)
                one.model.load_state_dict(kept)
                assert i < STEPS
    assert [d.to_json() for d in training.controller.decisions] == [
        d.to_json() for d in plain.controller.decisions
    ]
    assert not training.controller.notes


def test_optimizer_state_that_is_loaded_with_the_weights_is_kept():
    """A training that goes back to what it kept ten steps ago."""
    training = Training()
    training.steps(5)
    kept = copy.deepcopy((training.model.state_dict(), training.optimizer.state_dict()))
    training.steps(10)
    training.model.load_state_dict(kept[0])
    training.optimizer.load_state_dict(kept[1])
    with pytest.warns(UserWarning, match="given other weights"):
        training.steps(1)
    assert training.optimizer.state[training.model[0].lora_A]["step"] == 6


def test_parameters_that_take_the_place_of_the_optimizers_are_refused():
    training = Training()
    training.steps(3)
    training.model.load_state_dict(copy.deepcopy(training.model.state_dict()), assign=True)
    with pytest.raises(RankwiseError, match="Load state dicts without assign=True"):
        training.steps(1)


def test_merged_layers_are_refused():
    training = Training()
    training.model[0].merge()
    with pytest.raises(RankwiseError, match="merged into its weight"):
        training.steps(STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [6, 3])
def test_a_state_dict_that_is_loaded_while_fit_trains_is_followed(rank):
    """The optimizer of `fit` keeps the weights in flat buffers, which must hold what was loaded."""
    state, other = short_training.training(), tiny.classifier("bert")
    adapt_at_start_rank(other, rank, seed=7)
    short_training.run(state, until=5)
    state.model.load_state_dict(other.state_dict())
    with pytest.warns(UserWarning, match="given other weights"):
        short_training.run(state, until=6)
    before = {path: (x.lora_A.clone(), x.lora_B.clone()) for path, x in lora_layers(state.model).items()}
    short_training.run(state, until=20)
    for path, layer in lora_layers(state.model).items():
        assert layer.rank == rank
        assert not torch.equal(layer.lora_A, before[path][0])
        assert not torch.equal(layer.lora_B, before[path][1])


def test_sorting_after_other_ranks_were_loaded_keeps_the_function():
    training, other = Training(), Training()
    other.model[0].resize(torch.randn(2, 16), torch.randn(24, 2))
    training.steps(5)
    training.model.load_state_dict(other.model.state_dict())
    with pytest.warns(UserWarning, match="2 layers were given other weights"):
        training.controller.sort()
    torch.testing.assert_close(training.model(training.x), other.model(training.x))


def test_layers_that_were_replaced_are_refused():
    training = Training()
    training.steps(5)
    training.model[0] = copy.deepcopy(training.model[0])
    with pytest.raises(RankwiseError, match="other LoRA layers"):
        training.steps(STEPS)


@pytest.mark.slow
def test_trainer_loads_a_best_checkpoint_of_other_ranks(tmp_path):
    model = rankwise.adapt(tiny.classifier("bert"))
    tokenizer = tiny.tokenizer()
    rows = [
        {**tokenizer(r["text"], return_token_type_ids=True), "labels": int(r["label"] == "positive")}
        for r in tiny.reviews(120)
    ]
    arguments = hf.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=12,
        per_device_train_batch_size=8,
        eval_strategy="steps",
        eval_steps=4,
        save_steps=4,
        load_best_model_at_end=True,
        metric_for_best_model="first",
        greater_is_better=False,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    callback = rankwise.RankCallback(rows[80:], config=RankConfig(fewest_steps=1))

    class Resized(hf.TrainerCallback):
        """Resizes layers after the best checkpoint, as a prune would."""

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 6:
                controller = callback.controller
                with torch.no_grad():
                    controller.resizer.resize(
                        {path: (rank, 3) for path, rank in controller.ranks.items()}, controller.bases(), 6
                    )

    trainer = hf.Trainer(
        model,
        arguments,
        train_dataset=rows[:80],
        eval_dataset=rows[80:],
        data_collator=hf.DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda _: {"first": float(trainer.state.global_step)},
        callbacks=[callback, Resized()],
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-4")
    assert {layer.rank for layer in lora_layers(model).values()} == {16}
    assert {sums.shape for sums in callback.controller.statistics.sums.values()} == {(33, 16)}
    stored = hf.trainer.safetensors.torch.load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    for path, layer in lora_layers(model).items():  # sorted, and otherwise as stored
        delta = layer.scaling * stored[f"{path}.lora_B"] @ stored[f"{path}.lora_A"]
        torch.testing.assert_close(layer.delta(), delta, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("processes", "devices"), [(2, 1), (1, 2)])
def test_callback_refuses_several_processes_before_the_first_step(tmp_path, processes, devices):
    class Several(hf.TrainingArguments):
        @property
        def world_size(self):
            return processes

        @property
        def n_gpu(self):
            return devices

    callback, state = rankwise.RankCallback([{"input_ids": [1]}]), hf.TrainerState(max_steps=10)
    with pytest.raises(RankwiseError, match="one process on one device; this training has 2"):
        callback.on_train_begin(
            Several(output_dir=str(tmp_path)),
            state,
            hf.TrainerControl(),
            model=nn.Linear(2, 2),
            optimizer=None,
        )
