"""`RankCallback` in Trainers that are unusual or wrong: what works, and what is refused before the first step."""

import json
import shutil
import warnings

import pytest
import torch
import transformers as hf

import rankwise
import tiny
from rankwise.errors import RankwiseError
from rankwise.lora.layer import lora_layers
from rankwise.rank.config import RankConfig
from rankwise.rank.trainer_callback import TENSORS, VALUES

MANY_CHECKS = RankConfig(prune_at={0.4: 0.002, 0.8: 0.02}, grow_at=(0.2,), memory=5, fewest_steps=1)


def rows(n=80, label=lambda positive: int(positive)):
    tokenizer = tiny.tokenizer()
    return [
        {**tokenizer(r["text"], return_token_type_ids=True), "labels": label(r["label"] == "positive")}
        for r in tiny.reviews(n)
    ]


def make(folder, held_out, *, model=None, train=None, config=MANY_CHECKS, callback=None, **settings):
    """A Trainer and its callback."""
    model = rankwise.adapt(tiny.classifier("bert")) if model is None else model
    callback = callback or rankwise.RankCallback(held_out, config=config)
    arguments = hf.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        **{"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "max_steps": 20}
        | settings,
    )
    trainer = hf.Trainer(
        model,
        arguments,
        train_dataset=train or rows(),
        eval_dataset=rows(16),
        data_collator=hf.DataCollatorWithPadding(tiny.tokenizer()),
        callbacks=[callback],
    )
    return trainer, callback


@pytest.mark.parametrize("steps", [1, 2, 3, 59])
def test_a_training_of_very_few_steps_keeps_its_ranks_and_says_so(tmp_path, steps):
    trainer, callback = make(tmp_path, rows(16), config=None, max_steps=steps)
    with pytest.warns(UserWarning, match=rf"Too little to find ranks on \({steps} steps; 60 are needed\)"):
        trainer.train()
    assert callback.decisions == []
    assert {layer.rank for layer in lora_layers(trainer.model).values()} == {16}
    rankwise.save(trainer.model, tmp_path / "adapter")


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_controller_of_very_few_steps_decides_once_and_ends(tmp_path, steps):
    trainer, callback = make(tmp_path, rows(16), max_steps=steps)
    trainer.train()
    assert callback.controller.done
    assert callback.controller.steps_taken == steps
    assert [decision.kind for decision in callback.decisions] in ([], ["prune"], ["prune", "undo"])


def test_evaluation_alone_needs_no_training(tmp_path):
    trainer, callback = make(tmp_path, rows(16))
    assert trainer.evaluate()["eval_loss"] > 0
    assert callback.decisions == []
    assert callback.controller is None


def test_a_model_that_is_not_adapted_is_refused(tmp_path):
    with pytest.raises(RankwiseError, match=r"no LoRA layers. Call rankwise.adapt\(model\), or PEFT's"):
        make(tmp_path, rows(16), model=tiny.classifier("bert"))


def without_labels():
    return [{k: v for k, v in row.items() if k != "labels"} for row in rows(16)]


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(rows(16))


def mean_loss(model, batch):
    return model(**batch).loss


def one_mean_for_all(model, batch):
    return model(**batch).loss.reshape(1)


@pytest.mark.parametrize(
    ("held_out", "losses", "message"),
    [
        ([], None, "needs held-out examples; there are none"),
        (without_labels(), None, "held-out examples have no labels; they have: input_ids"),
        ([{"text": "good film", "labels": 1}], None, r"can't be evaluated \(.*as the Trainer collates"),
        (Stream(), None, "can't be evaluated"),
        (rows(16), mean_loss, "can't be evaluated"),
        (rows(16), one_mean_for_all, r"shape \[1\] for 2 held-out examples; it must give one loss for each"),
    ],
    ids=["none", "no labels", "not encoded", "no length", "mean of a batch", "a mean of shape 1"],
)
def test_held_out_examples_without_losses_are_refused_before_the_first_step(
    tmp_path, held_out, losses, message
):
    callback = rankwise.RankCallback(held_out, losses=losses, config=MANY_CHECKS)
    trainer, _ = make(tmp_path, held_out, callback=callback)
    with pytest.raises(RankwiseError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.slow
def test_held_out_rows_without_a_label_are_left_out(tmp_path):
    labelled, unlabelled = rows(40), [{**row, "labels": -100} for row in rows(24)]
    found = []
    for held_out in (labelled, [*labelled, *unlabelled]):
        trainer, callback = make(tmp_path, held_out)
        trainer.train()
        found.append(callback.decisions)
    assert found[0]
    assert [d.changes for d in found[0]] == [d.changes for d in found[1]]
    for one, other in zip(*found, strict=True):  # batches of other rows are padded otherwise
        assert (other.rows, other.loss_increase) == (one.rows, pytest.approx(one.loss_increase, abs=1e-6))
    trainer, _ = make(tmp_path, unlabelled)
    with pytest.raises(RankwiseError, match="None of the held-out examples has a label"):
        trainer.train()


def test_a_batch_of_training_rows_without_a_label_adds_nothing(tmp_path):
    class InOrder(hf.Trainer):
        def get_train_dataloader(self):
            return torch.utils.data.DataLoader(self.train_dataset, 8, collate_fn=self.data_collator)

    train = rows(80)
    for row in train[16:24]:
        row["labels"] = -100
    made, callback = make(tmp_path, rows(16))
    trainer = InOrder(
        made.model, made.args, train_dataset=train, data_collator=made.data_collator, callbacks=[callback]
    )
    trainer.train()
    assert callback.controller.notes == []
    assert all(sums.isfinite().all() for sums in callback.controller.statistics.sums.values())
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


@pytest.mark.slow
def test_regression_with_one_output(tmp_path):
    model = rankwise.adapt(tiny.classifier("bert", num_labels=1))
    data = rows(120, label=float)
    trainer, callback = make(
        tmp_path, data[80:], model=model, train=data[:80], max_steps=60, learning_rate=0.01
    )
    trainer.train()
    assert callback.decisions
    with torch.no_grad():
        batch = trainer.data_collator(data[80:])
        losses = (model.eval()(**batch).logits.squeeze(1) - batch["labels"]).square()
    assert callback.decisions[-1].rows == len(losses) == 40
    assert callback.controller.held_out.losses().tolist() == pytest.approx(losses.tolist(), rel=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_trainer_that_compiles_makes_the_same_decisions(tmp_path, backend):
    found = []
    for settings in ({}, {"torch_compile": True, "torch_compile_backend": backend}):
        trainer, callback = make(tmp_path, rows(40), learning_rate=0.01, **settings)
        trainer.train()
        found.append((callback.decisions, callback.controller.ranks, list(callback.controller.layers)))
    (plain, ranks, paths), (compiled, *others) = found
    assert [ranks, paths] == others
    assert any(decision.accepted for decision in plain)
    assert [(d.step, d.kind, d.accepted, d.changes) for d in plain] == [
        (d.step, d.kind, d.accepted, d.changes) for d in compiled
    ]


def test_a_training_that_ends_early_says_that_ranks_were_not_decided(tmp_path):
    class Stop(hf.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 10

    trainer, callback = make(tmp_path, rows(16))
    trainer.add_callback(Stop())
    with pytest.warns(UserWarning, match="ended after 10 of 20 steps, before the last decision"):
        trainer.train()
    assert not callback.controller.done


def test_unequal_micro_batches_are_accumulated(tmp_path):
    """20 rows by 8 in micro-batches: 8, 8, 4 in an epoch, two of them a step."""
    trainer, callback = make(tmp_path, rows(16), train=rows(20), gradient_accumulation_steps=2)
    trainer.train()
    assert callback.controller.steps_taken == 20
    assert callback.controller.guard.skipped_steps == 0
    assert all(sums.isfinite().all() for sums in callback.controller.statistics.sums.values())


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A folder with the checkpoint of step 10 of 20, after a prune."""
    folder = tmp_path_factory.mktemp("stopped")
    trainer, callback = make(
        folder, rows(40), learning_rate=0.01, save_strategy="steps", save_steps=10, seed=3
    )
    trainer.train()
    return folder, [decision.to_json() for decision in callback.decisions]


@pytest.mark.slow
def test_a_checkpoint_elsewhere_is_found_by_its_name_in_the_arguments(tmp_path, stopped):
    folder, decisions = stopped
    shutil.copytree(folder / "checkpoint-10", tmp_path / "kept")
    resume = str(tmp_path / "kept")
    trainer, callback = make(
        tmp_path / "other", rows(40), learning_rate=0.01, seed=3, resume_from_checkpoint=resume
    )
    trainer.train(resume_from_checkpoint=resume)
    assert [decision.to_json() for decision in callback.decisions] == decisions


@pytest.mark.slow
def test_a_checkpoint_of_another_run_is_not_taken_for_the_one_that_was_loaded(tmp_path, stopped):
    other, _ = make(tmp_path, rows(40), save_strategy="steps", save_steps=10, learning_rate=0.005)
    other.train()
    trainer, _ = make(tmp_path, rows(40))
    with pytest.raises(RankwiseError, match="isn't the one of .*checkpoint-10.*resume_from_checkpoint="):
        trainer.train(resume_from_checkpoint=str(stopped[0] / "checkpoint-10"))


def without_key(file, key):
    values = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in values.items() if name != key}))


@pytest.mark.slow
def test_damaged_or_missing_files_of_a_checkpoint_are_named(tmp_path, stopped):
    for damage, message in (
        (lambda folder: (folder / VALUES).write_text("{"), "keeps of the ranks can't be read"),
        (lambda folder: (folder / TENSORS).write_bytes(b"x"), "keeps of the ranks can't be read"),
        (lambda folder: (folder / VALUES).write_text("{}"), "isn't the one of"),
        (lambda folder: without_key(folder / VALUES, "scaling"), "keeps of the ranks can't be read"),
        (lambda folder: (folder / VALUES).unlink(), f"has no {VALUES}"),
    ):
        folder = tmp_path / "run" / "checkpoint-10"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(stopped[0] / "checkpoint-10", folder)
        damage(folder)
        trainer, _ = make(tmp_path / "run", rows(40))
        with pytest.raises(RankwiseError, match=message):
            trainer.train(resume_from_checkpoint=str(folder))


def test_weights_of_a_schedule_free_optimizer_are_averaged_before_they_are_sorted(tmp_path):
    pytest.importorskip("schedulefree")
    with warnings.catch_warnings(action="ignore"):
        trainer, callback = make(
            tmp_path, rows(16), optim="schedule_free_adamw", lr_scheduler_type="constant"
        )
        trainer.train()
    assert callback.controller.steps_taken == 20
