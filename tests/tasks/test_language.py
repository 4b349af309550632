"""What a language model learns from a row, against TRL's own preparation of the same rows."""

from typing import Any, cast

import numpy as np
import pytest
import transformers as hf
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

import tiny
from rankwise.config import TrainOptions
from rankwise.errors import RankwiseError
from rankwise.tasks import mappings, objectives
from rankwise.tasks.encoding import encode
from rankwise.tasks.language import prompt_ids

TEMPLATE = (
    "{% for m in messages %}[CLS] {{ m.role }} : {{ m.content }} [SEP] {% endfor %}"
    "{% if add_generation_prompt %}[CLS] assistant : {% endif %}"
)
MARKED = (
    "{% for m in messages %}[CLS] {{ m.role }} : {% if m.role == 'assistant' %}{% generation %}{{ m.content }} [SEP]{% endgeneration %} "
    "{% else %}{{ m.content }} [SEP] {% endif %}{% endfor %}{% if add_generation_prompt %}[CLS] assistant : {% endif %}"
)
PAIRS = [
    {"prompt": "the film is ", "completion": "good"},
    {"prompt": "a plot ", "completion": "not very dull"},
]
CHATS = [
    {"messages": [
        {"role": "system", "content": "the film"},
        {"role": "user", "content": "a plot"},
        {"role": "assistant", "content": "very good"},
        {"role": "user", "content": "not dull"},
        {"role": "assistant", "content": "fine"},
    ]},
    {"messages": [{"role": "user", "content": "is a film"}, {"role": "assistant", "content": "bad"}]},
]  # fmt: skip
CHAT_PAIRS = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in CHATS]
TEXTS = [{"text": "the film is good"}, {"text": "a dull plot"}]


def words(template=TEMPLATE):
    tokenizer = tiny.language_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def ours(rows, tokenizer, max_length=64, **options):
    read = mappings.read(
        rows, mappings.Columns(), objectives.named("generation"), train=TrainOptions(**options)
    )
    return encode(read, tokenizer, max_length)


def rows_of(encoded):
    """Token ids and labels of each row; labels moved to the tokens that they are, as Transformers has them."""
    rows = []
    for first, last in zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True):
        labels = [-100, *encoded.token_labels[first : last - 1].tolist()]
        assert encoded.token_labels[last - 1] == -100
        rows.append((encoded.input_ids[first:last].tolist(), labels))
    return rows


def trls(rows, tokenizer, tmp_path, **options):
    args = SFTConfig(output_dir=str(tmp_path), report_to=[], use_cpu=True, bf16=False, **options)
    trainer = SFTTrainer(
        hf.LlamaForCausalLM(tiny.config("llama")),
        args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    found = []
    for row in cast(Any, trainer.train_dataset):
        labels = [-100, *row["labels"][1:]]  # the first token has none before it
        found.append((row["input_ids"], labels))
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("rows", "template", "options"),
    [
        (PAIRS, TEMPLATE, {}),
        (PAIRS, TEMPLATE, {"completion_only_loss": False}),
        (TEXTS, TEMPLATE, {}),
        (CHATS, TEMPLATE, {}),
        (CHATS, MARKED, {"assistant_only_loss": True}),
        (CHAT_PAIRS, TEMPLATE, {}),
    ],
    ids=["pairs", "whole pairs", "texts", "chats", "assistant", "chat pairs"],
)
def test_tokens_and_labels_are_trls(rows, template, options, tmp_path):
    assert rows_of(ours(rows, words(template), **options)) == trls(rows, words(template), tmp_path, **options)


def test_the_assistants_tokens_are_found_without_marks_in_the_template():
    with_marks = ours(CHATS, words(MARKED), assistant_only_loss=True)
    without = ours(CHATS, words(TEMPLATE), assistant_only_loss=True)
    assert without.input_ids.tolist() == with_marks.input_ids.tolist()
    assert without.token_labels.tolist() == with_marks.token_labels.tolist()


@pytest.mark.parametrize("rows", [PAIRS, CHAT_PAIRS], ids=["texts", "messages"])
def test_a_prompt_has_the_tokens_that_stand_before_its_completion(rows):
    read = mappings.read(rows, mappings.Columns(), objectives.named("generation"))
    encoded = encode(read, words(), 64)
    for prompt, (ids, labels) in zip(
        prompt_ids(read.text, read.learned, words()), rows_of(encoded), strict=True
    ):
        n = next(i for i, label in enumerate(labels) if label != -100)
        assert prompt == ids[:n]


def test_a_completion_that_is_cut_off_is_counted_and_left_out():
    encoded = ours(
        [*PAIRS, {"prompt": "the film is a very dull ", "completion": "plot"}], words(), max_length=5
    )
    assert encoded.idx.tolist() == [0, 1]
    assert (encoded.n_left_out, encoded.n_truncated) == (1, 2)
    assert encoded.lengths.max() == 5
    with pytest.raises(RankwiseError, match="max_length=2"):
        ours(PAIRS, words(), max_length=2)


def test_what_cannot_be_learned_is_refused():
    plain = words(None)
    with pytest.raises(RankwiseError, match="no chat template"):
        ours(CHATS, plain)
    endless = tiny.tokenizer()
    with pytest.raises(RankwiseError, match="no end-of-text token"):
        ours(PAIRS, endless)
    picky = words("{{ raise_exception('only one message') }}")
    with pytest.raises(RankwiseError, match="refuses messages of system, user.*only one message"):
        ours(CHATS, picky)
    changing = words("{{ messages | length }} {% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(RankwiseError, match="otherwise once others follow"):
        ours(CHATS, changing, assistant_only_loss=True)
    with pytest.raises(RankwiseError, match="is for rows of messages"):
        ours(PAIRS, words(), assistant_only_loss=True)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("hello", "messages are a list"),
        (["hello"], "messages are a list"),
        ([{"content": "a"}], "message 1 has no role"),
        ([{"role": "user", "content": " "}], r"message 1 \(user\) has no content"),
        (
            [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
            "user and assistant take turns",
        ),
        (
            [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}],
            "a system message is the first",
        ),
        ([{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}], "knows the roles"),
        ([{"role": "user", "content": [{"type": "image"}]}], "something else than text"),
    ],
)
def test_a_list_that_is_no_conversation_is_refused(messages, said):
    with pytest.raises(RankwiseError, match=f"^Row 1: 'messages' holds .*{said}"):
        ours([CHATS[0], {"messages": messages}], words())


def test_a_prompt_and_a_completion_that_do_not_follow_each_other_are_refused():
    turned = [{"prompt": CHATS[1]["messages"][:1], "completion": CHATS[1]["messages"][:1]}]
    with pytest.raises(RankwiseError, match="Row 0 .*its completion begins with the assistant"):
        ours(turned, words())


def test_rows_without_what_is_needed_are_refused():
    with pytest.raises(
        RankwiseError, match="has none of messages, prompt and completion, or a text; it has: prompt"
    ):
        ours([{"prompt": "a"}], words())
    with pytest.raises(RankwiseError, match="Row 1: 'completion' holds ''"):
        ours([PAIRS[0], {"prompt": "a", "completion": ""}], words())


def test_evaluation_keeps_loss_tokens_and_hits_of_each_row():
    import torch

    objective = objectives.named("generation")
    logits = torch.randn(600, 7, generator=torch.Generator().manual_seed(0))
    labels, rows = torch.arange(600) % 7, torch.arange(600) % 5
    kept = objective.outputs(logits, labels, rows, 5).numpy()
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    for row in range(5):
        assert kept[row, 0] == pytest.approx(losses[rows == row].mean().item(), rel=1e-5)
        assert kept[row, 1] == 120
    scores = objective.score(objective.metrics, np.zeros(5, np.float32), kept)
    assert scores["cross_entropy"] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert scores["perplexity"] == pytest.approx(losses.mean().exp().item(), rel=1e-5)
    assert scores["token_accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    with pytest.raises(RankwiseError, match="accuracy is no metric of generation"):
        objective.score(["accuracy"], np.zeros(5, np.float32), kept)
