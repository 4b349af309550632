"""Each model family: adapted, trained and saved here, loaded by PEFT and Transformers; and the other way round."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import rankwise
import tiny
from rankwise import downloads
from rankwise.bench import families
from rankwise.config import ModelOptions, RunConfig
from rankwise.engine.pack_check import can_pack
from rankwise.errors import RankwiseError
from rankwise.models import loading
from rankwise.models.families import FAMILIES as KNOWN
from rankwise.models.families import body_and_heads
from rankwise.runs import warm_start

FAMILIES = [*tiny.CONFIGS, "minilm"]
CAUSAL = {"gpt2", "opt", "llama", "qwen2", "gemma", "mistral"}
LABELS = {0: "negative", 1: "positive"}
TRAIN, TEXTS = tiny.reviews(80), [row["text"] for row in tiny.reviews(12, seed=1)]
STEPS = rankwise.TrainOptions(epochs=2, batch_size=8, lr=3e-3)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """The folder of a family's classifier, head included, written once."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            if family == "minilm":
                source = downloads.model_folder()
                model = AutoModelForSequenceClassification.from_pretrained(
                    source, num_labels=2, id2label=LABELS, label2id={v: k for k, v in LABELS.items()}
                )
                AutoTokenizer.from_pretrained(source).save_pretrained(made[family])
            else:
                model = tiny.classifier(family)
                model.config.id2label, model.config.label2id = LABELS, {v: k for k, v in LABELS.items()}
                tiny.tokenizer().save_pretrained(made[family])
            model.save_pretrained(made[family])
        return made[family]

    return folder


def classifier(folder: Path):
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


def logits(model, tokenizer) -> np.ndarray:
    """One text at a time, so that nothing of this test's depends on padding."""
    with torch.no_grad():
        rows = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in TEXTS]
    return torch.stack(rows).numpy()


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


def check_merged(adapter: Path, out: Path, tokenizer, expected: np.ndarray) -> None:
    """The merged folder is a model of the same logits, and a pipeline gives its labels."""
    rankwise.merge(adapter, out)
    merged = classifier(out)
    assert relative(logits(merged, tokenizer), expected) <= 1e-4
    answers = pipeline("text-classification", model=str(out), device="cpu")(TEXTS, batch_size=4)
    assert [answer["label"] for answer in answers] == [LABELS[i] for i in expected.argmax(1)]


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_and_transformers_load_what_is_trained_here(family, bases, tmp_path):
    base = bases(family)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = rankwise.adapt(classifier(base), 3)
    untrained = logits(model, tokenizer)
    fitted = rankwise.fit(model, tokenizer, TRAIN, options=STEPS)
    assert len(fitted.steps) == 20
    expected = logits(model, tokenizer)
    assert relative(untrained, expected) > 1e-2

    rankwise.save(model, tmp_path / "adapter")
    peft = PeftModel.from_pretrained(classifier(base), str(tmp_path / "adapter")).eval()
    assert relative(logits(peft, tokenizer), expected) <= 1e-5
    assert relative(logits(rankwise.load(tmp_path / "adapter"), tokenizer), expected) <= 1e-5
    check_merged(tmp_path / "adapter", tmp_path / "merged", tokenizer, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_peft_trained_loads_here(family, bases, tmp_path):
    base = bases(family)
    tokenizer = AutoTokenizer.from_pretrained(base)
    ours = rankwise.adapt(classifier(base), 3)
    targets = [name for name, module in ours.named_modules() if hasattr(module, "lora_A")]
    config = LoraConfig(
        task_type="SEQ_CLS", r=3, lora_alpha=6, target_modules=targets, fan_in_fan_out=family == "gpt2"
    )
    torch.manual_seed(0)
    model = get_peft_model(classifier(base), config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for step in range(20):
        rows = [TRAIN[i % len(TRAIN)] for i in range(4 * step, 4 * step + 4)]
        batch = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
        labels = torch.tensor([int(row["label"] == "positive") for row in rows])
        F.cross_entropy(model(**batch).logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    expected = logits(model.eval(), tokenizer)
    assert relative(logits(classifier(base), tokenizer), expected) > 1e-2

    model.save_pretrained(tmp_path / "adapter")
    assert relative(logits(rankwise.load(tmp_path / "adapter"), tokenizer), expected) <= 1e-5
    # PEFT doesn't store the labels' names: the base's are taken up again
    check_merged(tmp_path / "adapter", tmp_path / "merged", tokenizer, expected)


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_batched_rows_get_the_logits_of_single_rows(family, bases):
    base = bases(family)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = rankwise.adapt(classifier(base), 3)
    alone = logits(copy.deepcopy(model), tokenizer)
    assert relative(rankwise.predict(model, tokenizer, [{"text": text} for text in TEXTS]), alone) <= 1e-4


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_the_list_of_families_is_right_about_each(family):
    entry = families.family(family)
    model = tiny.classifier(family)
    assert (entry.packed, entry.why) == can_pack(model)
    assert entry.head == tuple(body_and_heads(model)[1])
    assert entry.pooling == ("last" if family in CAUSAL else "first")
    assert entry.targets == KNOWN[family].query_value


def test_an_encoder_from_scratch_is_drawn_from_the_seed(tmp_path):
    def loaded(seed: int):
        source = warm_start.locate(RunConfig(method="full", model=ModelOptions(model="scratch:small")))
        return loading.load(source, ["negative", "positive"], dtype=torch.float32, seed=seed)[0]

    one, same, other = (loaded(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    matrices = [name for name, value in one.items() if value.ndim == 2 and "norm" not in name.lower()]
    assert not any(torch.equal(one[name], other[name]) for name in matrices)
    with pytest.raises(RankwiseError, match="isn't pretrained.*`method=full`"):
        warm_start.locate(RunConfig(method="lora", model=ModelOptions(model="scratch:small")))
    with pytest.raises(RankwiseError, match="scratch:smal.*Did you mean 'scratch:small'"):
        warm_start.locate(RunConfig(method="full", model=ModelOptions(model="scratch:smal")))
