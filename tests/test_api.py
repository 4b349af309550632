"""The Python functions on ordinary Transformers models: models learn, and Transformers and PEFT load what is saved."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import rankwise
import tiny
from rankwise.engine.optim import schedule_factor
from rankwise.errors import RankwiseError

TRAIN, HELD_OUT = tiny.reviews(200), tiny.reviews(60, seed=1)
OPTIONS = rankwise.TrainOptions(epochs=6, batch_size=16, lr=1e-2)
LABELS = {0: "negative", 1: "positive"}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny.model_folder(tmp_path_factory.mktemp("models") / "bert")


def classifier(base: Path, labels: dict[int, str] = LABELS, **config):
    """The base with a new head, the same each time."""
    torch.manual_seed(0)
    ids = {name: i for i, name in labels.items()}
    return AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=len(labels), id2label=labels, label2id=ids, **config
    )


@pytest.fixture(scope="module")
def fitted(base):
    """An adapted model after `fit`, and what `fit` returned."""
    model = rankwise.adapt(classifier(base), 8, targets=("all-linear",))
    return model, rankwise.fit(model, tiny.tokenizer(), TRAIN, HELD_OUT, options=OPTIONS)


@pytest.fixture(scope="module")
def saved(fitted, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    rankwise.save(fitted[0], folder)
    return folder


def logits(model, rows=HELD_OUT) -> np.ndarray:
    return rankwise.predict(model, tiny.tokenizer(), rows)


def padded_logits(model, texts: list[str]) -> np.ndarray:
    """What Transformers itself computes, one padded batch."""
    with torch.no_grad():
        return model(**tiny.tokenizer()(texts, padding=True, return_tensors="pt")).logits.numpy()


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


def test_every_public_name_exists():
    assert all(getattr(rankwise, name).__name__ == name for name in rankwise.__all__)
    with pytest.raises(AttributeError, match="no attribute 'adpat'"):
        rankwise.adpat  # noqa: B018


def test_an_adapted_model_learns_and_its_base_stays(base, fitted):
    model, result = fitted
    assert result.scores["accuracy"] >= 0.95
    assert len(result.steps) == 6 * 13
    assert result.steps[-1].loss < result.steps[0].loss
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    original = classifier(base).state_dict()
    assert frozen
    assert all(torch.equal(p, original[name]) for name, p in frozen.items())


def test_a_full_model_learns_without_adapt(base):
    model = classifier(base)
    result = rankwise.fit(model, tiny.tokenizer(), TRAIN, HELD_OUT, options=OPTIONS)
    assert result.scores["accuracy"] >= 0.95


def test_the_scores_of_fit_are_those_of_evaluate(fitted):
    model, result = fitted
    assert rankwise.evaluate(model, tiny.tokenizer(), HELD_OUT) == result.scores


def test_predict_keeps_the_order_of_rows_and_equals_transformers(fitted):
    model = fitted[0]
    ours = logits(model)
    assert relative(ours, padded_logits(model, [row["text"] for row in HELD_OUT])) <= 1e-5
    np.testing.assert_allclose(logits(model, HELD_OUT[::-1])[::-1], ours, atol=1e-6)


def test_predict_needs_no_labels_and_takes_pairs(fitted):
    columns = rankwise.Columns(text="question", text_pair="answer")
    rows = [{"question": "is the film good", "answer": "very good"}, {"question": "dull", "answer": "fine"}]
    ours = rankwise.predict(fitted[0], tiny.tokenizer(), rows, columns=columns)
    with torch.no_grad():
        batch = tiny.tokenizer()(
            [row["question"] for row in rows],
            [row["answer"] for row in rows],
            padding=True,
            return_tensors="pt",
            return_token_type_ids="token_type_ids" in tiny.tokenizer().model_input_names,
        )
        assert relative(ours, fitted[0](**batch).logits.numpy()) <= 1e-5


def test_a_saved_adapter_loads_with_its_logits_and_label_names(fitted, saved):
    loaded = rankwise.load(saved)
    np.testing.assert_array_equal(logits(loaded), logits(fitted[0]))
    assert loaded.config.id2label == LABELS


def test_a_saved_adapter_loads_in_peft_with_its_logits(base, fitted, saved):
    peft = PeftModel.from_pretrained(classifier(base), saved).eval()
    texts = [row["text"] for row in HELD_OUT]
    assert relative(padded_logits(peft, texts), logits(fitted[0])) <= 1e-5


def test_a_merged_model_loads_in_transformers_with_its_logits(fitted, saved, tmp_path):
    rankwise.merge(saved, tmp_path / "merged")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    texts = [row["text"] for row in HELD_OUT]
    assert not [name for name in model.state_dict() if "lora" in name]
    assert relative(padded_logits(model, texts), logits(fitted[0])) <= 1e-5
    assert model.config.id2label == LABELS
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    tokens = AutoTokenizer.from_pretrained(tmp_path / "merged")(texts)["input_ids"]
    assert tokens == tiny.tokenizer()(texts)["input_ids"]
    assert not list((tmp_path / "merged").glob(".*"))
    np.testing.assert_array_equal(logits(rankwise.load(tmp_path / "merged")), logits(model))


def test_training_goes_on_from_what_was_saved(base, saved):
    model = rankwise.load(saved)
    before = rankwise.evaluate(model, tiny.tokenizer(), TRAIN)["loss"]
    one_step = rankwise.TrainOptions(
        epochs=1, batch_size=len(TRAIN), lr=1e-4, schedule="constant", warmup=0.0
    )
    rankwise.fit(model, tiny.tokenizer(), TRAIN, options=one_step, seed=1)
    assert rankwise.evaluate(model, tiny.tokenizer(), TRAIN)["loss"] < before


def test_the_same_seed_gives_the_same_model_and_another_another(base):
    def trained(seed: int) -> np.ndarray:
        model = rankwise.adapt(classifier(base), 4)
        rankwise.fit(model, tiny.tokenizer(), TRAIN[:64], options=OPTIONS, seed=seed)
        return logits(model)

    np.testing.assert_array_equal(trained(0), trained(0))
    assert not np.array_equal(trained(0), trained(1))


def test_gradients_in_parts_are_those_of_the_whole_batch(base):
    def losses(accumulate: int) -> list[float]:
        model = classifier(base, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        rankwise.adapt(model, 4)
        options = rankwise.TrainOptions(epochs=1, batch_size=16, lr=1e-3, accumulate=accumulate)
        return [
            step.loss for step in rankwise.fit(model, tiny.tokenizer(), TRAIN[:80], options=options).steps
        ]

    np.testing.assert_allclose(losses(5), losses(1), rtol=1e-5)


@pytest.mark.parametrize(
    ("adapted", "rate_of"),
    [({"rank": 4}, "lora"), ({"rank": 4, "targets": ["all-linear"]}, "adaptive"), ({}, "adaptive")],
)
def test_settings_follow_the_method_a_model_was_adapted_for(base, adapted, rate_of, monkeypatch):
    schedules = []
    monkeypatch.setattr(
        "rankwise.engine.training.schedule_factor",
        lambda schedule, *given: schedules.append(schedule) or schedule_factor(schedule, *given),
    )
    model = rankwise.adapt(classifier(base), **adapted)
    result = rankwise.fit(
        model, tiny.tokenizer(), TRAIN[:32], options=rankwise.TrainOptions(epochs=1, batch_size=16)
    )
    assert f"recipe 'rankwise', {rate_of} at width" in " ".join(result.notes)
    assert schedules == ["linear" if adapted else "two-phase"]


def test_on_step_hears_every_step(base):
    steps = []
    model = rankwise.adapt(classifier(base), 4)
    options = rankwise.TrainOptions(epochs=2, batch_size=16)
    result = rankwise.fit(model, tiny.tokenizer(), TRAIN[:40], options=options, on_step=steps.append)
    assert steps == result.steps
    assert [step.step for step in steps] == [1, 2, 3, 4, 5, 6]
    assert sum(step.rows for step in steps) == 80


def test_patience_stops_on_rows_held_out_of_training(base):
    """At this rate the loss on other rows rises soon; the rows held out are in no step."""
    options = rankwise.TrainOptions(epochs=30, batch_size=16, lr=0.3, patience=1)
    model = rankwise.adapt(classifier(base), 4)
    result = rankwise.fit(model, tiny.tokenizer(), TRAIN, HELD_OUT, options=options)
    epoch = 12  # 180 of the 200 rows in batches of 16
    assert len(result.steps) < 30 * epoch
    assert len(result.steps) % epoch == 0
    assert sum(step.rows for step in result.steps[:epoch]) == 180
    assert result.scores == rankwise.evaluate(model, tiny.tokenizer(), HELD_OUT)


def test_patience_that_is_never_used_up_changes_only_the_rows(base):
    options = rankwise.TrainOptions(epochs=2, batch_size=16, lr=1e-3, patience=50)
    model = rankwise.adapt(classifier(base), 4)
    assert len(rankwise.fit(model, tiny.tokenizer(), TRAIN, options=options).steps) == 24


def test_validation_rows_are_scored_meanwhile(base):
    """The scores of a step are those of a training that ends there."""
    given = {"batch_size": 16, "lr": 1e-3, "schedule": "constant", "warmup": 0.0}
    model, shorter = (rankwise.adapt(classifier(base), 4) for _ in range(2))
    options = rankwise.TrainOptions(**given, epochs=2, evaluate_every=3)
    result = rankwise.fit(model, tiny.tokenizer(), TRAIN[:64], HELD_OUT, options=options)
    assert [step for step, _ in result.curve] == [3, 6]
    to_three = rankwise.TrainOptions(**given, epochs=0.75)
    expected = rankwise.fit(shorter, tiny.tokenizer(), TRAIN[:64], HELD_OUT, options=to_three)
    assert len(expected.steps) == 3
    assert result.curve[0][1] == expected.scores


def test_evaluating_needs_rows(base):
    model = rankwise.adapt(classifier(base), 4)
    options = rankwise.TrainOptions(epochs=1, evaluate_every=3)
    with pytest.raises(RankwiseError, match="`evaluate_every=` needs validation rows"):
        rankwise.fit(model, tiny.tokenizer(), TRAIN, options=options)


def test_validation_rows_are_refused_before_the_first_step(base):
    model, steps = rankwise.adapt(classifier(base), 4), []
    with pytest.raises(RankwiseError, match="Row 0 has the label 'mixed'"):
        rankwise.fit(
            model, tiny.tokenizer(), TRAIN[:16], [{"text": "good", "label": "mixed"}], on_step=steps.append
        )
    assert steps == []


def test_weights_that_come_apart_in_the_last_step_are_refused(base):
    model = rankwise.adapt(classifier(base), 4)
    options = rankwise.TrainOptions(epochs=1, batch_size=16, lr=1e39, warmup=0.0, schedule="constant")
    with pytest.raises(RankwiseError, match=r"Weights aren't finite after step 1\. Lower `lr=`"):
        rankwise.fit(model, tiny.tokenizer(), TRAIN[:16], options=options)


def overflow_at(model, steps: set[int]):
    """Has the gradient of the head overflow in some steps (from 1), as in half precision; the loss stays finite."""
    seen = [0]

    def hook(gradient):
        seen[0] += 1
        return gradient * float("inf") if seen[0] in steps else gradient

    model.classifier.weight.register_hook(hook)


@pytest.mark.parametrize("steps", [{2}, {4}, {1, 4}])
def test_a_gradient_that_is_not_finite_is_skipped_and_counted(base, steps):
    """Also in the last step, where no later loss would show it."""
    model = rankwise.adapt(classifier(base), 4)
    options = rankwise.TrainOptions(epochs=1, batch_size=16, lr=1e-3)
    overflow_at(model, steps)
    result = rankwise.fit(model, tiny.tokenizer(), TRAIN[:64], HELD_OUT, options=options)
    assert [step.step for step in result.steps if step.skipped] == sorted(steps)
    assert result.skipped_steps == len(steps)
    assert f"{len(steps)} of 4 steps were skipped" in " ".join(result.notes)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_gradients_that_are_never_finite_end_a_training(base):
    model = rankwise.adapt(classifier(base), 4)
    overflow_at(model, set(range(100)))
    with pytest.raises(RankwiseError, match=r"gradient's norm is (nan|inf), 10 steps in a row"):
        rankwise.fit(model, tiny.tokenizer(), TRAIN, options=OPTIONS)


@pytest.mark.parametrize("seed", [0, 2**62])
def test_any_whole_number_is_a_seed(base, seed):
    model = rankwise.adapt(classifier(base), 4, seed=seed)
    options = rankwise.TrainOptions(epochs=1, batch_size=16, patience=1)
    assert rankwise.fit(model, tiny.tokenizer(), TRAIN[:32], options=options, seed=seed).steps


def test_labels_are_ids_or_names(base):
    numbered = [{**row, "label": int(row["label"] == "positive")} for row in TRAIN[:40]]

    def trained(rows) -> np.ndarray:
        model = rankwise.adapt(classifier(base), 4)
        rankwise.fit(model, tiny.tokenizer(), rows, options=rankwise.TrainOptions(epochs=1, batch_size=8))
        return logits(model)

    np.testing.assert_array_equal(trained(numbered), trained(TRAIN[:40]))


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"text": "good", "label": "mixed"}], "Row 0 has the label 'mixed' in 'label'; the model knows"),
        ([{"text": "good", "label": 0}, {"text": "bad", "label": 2}], "Row 1 has the label 2"),
        ([{"text": "good"}], "Row 0 has the label None"),
        ([{"review": "good", "label": 0}], "Row 0 has no text in 'text'; it has: review, label."),
        ([{"text": None, "label": 0}], "Row 0 has no text in 'text'"),
        ([], "There are no rows"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_named(base, rows, says):
    model = rankwise.adapt(classifier(base), 4)
    with pytest.raises(RankwiseError, match=says):
        rankwise.fit(model, tiny.tokenizer(), rows)


def test_an_empty_table_is_refused(fitted):
    with pytest.raises(RankwiseError, match="There are no rows"):
        rankwise.predict(fitted[0], tiny.tokenizer(), [])
    with pytest.raises(RankwiseError, match="There are no rows"):
        rankwise.evaluate(fitted[0], tiny.tokenizer(), [])


def test_a_model_without_adapters_has_none_to_save(base, tmp_path):
    with pytest.raises(RankwiseError, match=r"Call rankwise.adapt\(model\) first"):
        rankwise.save(classifier(base), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_adapting_twice_is_refused(base):
    with pytest.raises(RankwiseError, match="has LoRA layers already"):
        rankwise.adapt(rankwise.adapt(classifier(base), 4), 4)


def test_an_adapter_without_base_name_asks_for_one(base, saved, tmp_path):
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    model = PeftModel.from_pretrained(classifier(base), tmp_path)
    model.peft_config["default"].base_model_name_or_path = None
    model.save_pretrained(tmp_path / "peft")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = None
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(RankwiseError, match="doesn't name its base model"):
        rankwise.load(tmp_path / "peft")
    with pytest.raises(RankwiseError, match="doesn't name its base model"):
        rankwise.merge(tmp_path / "peft", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    ours = rankwise.load(tmp_path / "peft", base=str(base))
    assert relative(logits(ours), logits(rankwise.load(saved))) <= 1e-5


def test_quality_agrees_with_evaluate_and_fit(fitted):
    model, result = fitted
    found = rankwise.quality(model, tiny.tokenizer(), HELD_OUT)
    assert found == result.quality
    assert found.scores["accuracy"] == result.scores["accuracy"]
    assert [one.name for one in found.classes] == ["negative", "positive"]
    assert str(found).startswith(f"accuracy {result.scores['accuracy']:.4f} (95 % over rows")
