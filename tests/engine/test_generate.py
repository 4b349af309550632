"""Texts are those that Transformers writes for each prompt alone, whatever shares its batch."""

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import tiny
from rankwise.engine import generate as module
from rankwise.engine.compute import Compute
from rankwise.engine.generate import generate
from rankwise.errors import RankwiseError
from rankwise.inference_options import GenerateOptions

PROMPTS = [[4, 5, 6], [7], [8, 9, 10, 11, 12, 4, 5], [6, 4]]


@pytest.fixture
def words():
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = "[SEP]"
    return tokenizer


def model_of(family: str) -> PreTrainedModel:
    """A model with random weights that says other things than its neighbours: a bit of everything is likely."""
    torch.manual_seed(0)
    config = type(tiny.CONFIGS[family])(
        **{**tiny.CONFIGS[family].to_dict(), "vocab_size": len(tiny.VOCABULARY)}
    )
    model = AutoModelForCausalLM.from_config(config).double().eval()
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.3
    model.generation_config.temperature = 0.01  # what a checkpoint brings along doesn't count
    model.generation_config.do_sample = True
    return model


def compute(model: PreTrainedModel) -> Compute:
    return Compute.for_model(
        model, dtype=torch.float64, frozen_base=True, max_length=64, pad_id=0, verify=False
    )


def alone(model: PreTrainedModel, words, prompt: list[int], **options) -> str:
    ids = torch.tensor([prompt])
    settings = {"do_sample": False, "temperature": 1.0, "eos_token_id": 2, "pad_token_id": 0} | options
    written = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    return words.decode(written[0, len(prompt) :], skip_special_tokens=True)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma"])
@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3, "length_penalty": 0.8, "no_repeat_ngram_size": 2}],
    ids=["greedy", "beams"],
)
def test_a_text_is_the_one_written_alone(family, options, words, monkeypatch):
    model = model_of(family)
    monkeypatch.setitem(module.CACHED_TOKENS, "cpu", 60 * options.get("num_beams", 1))  # three batches
    steps = []
    found = generate(
        model, words, PROMPTS, GenerateOptions(max_new_tokens=12, **options),
        compute=compute(model), on_progress=lambda done, of: steps.append((done, of)),
    )  # fmt: skip
    assert found.texts == [alone(model, words, prompt, max_new_tokens=12, **options) for prompt in PROMPTS]
    assert len(set(found.texts)) > 1
    assert steps[-1] == (4, 4)
    assert len(steps) > 1


def test_a_text_ends_with_the_end_of_text_token_or_is_said_to_be_cut(words):
    model, options = model_of("gpt2"), GenerateOptions(max_new_tokens=12)
    before = generate(model, words, PROMPTS, options, compute=compute(model))
    end = before.texts[0].split()[3]
    words.eos_token = end
    found = generate(model, words, PROMPTS, options, compute=compute(model))
    assert found.texts == [text.partition(end)[0].strip() for text in before.texts]
    assert found.cut.tolist() == [
        cut and end not in text for text, cut in zip(before.texts, before.cut, strict=True)
    ]


def test_sampled_texts_follow_from_the_seed(words):
    model = model_of("llama")

    def written(seed: int) -> list[str]:
        options = GenerateOptions(max_new_tokens=12, do_sample=True, seed=seed)
        return generate(model, words, PROMPTS, options, compute=compute(model)).texts

    before = torch.get_rng_state()
    assert written(0) == written(0) != written(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_cannot_be_written_is_refused(words):
    model, options = model_of("llama"), GenerateOptions(max_new_tokens=60)
    with pytest.raises(
        RankwiseError, match="Prompt 2 has 7 tokens.*takes 64 in all. Give `max_new_tokens=57`"
    ):
        generate(model, words, PROMPTS, options, compute=compute(model))
    with pytest.raises(RankwiseError, match="Prompt 1 is empty"):
        generate(model, words, [[4], []], options, compute=compute(model))
    with pytest.raises(RankwiseError, match="writes no text"):
        generate(tiny.classifier("bert"), words, PROMPTS, options, compute=compute(model))
    with pytest.raises(RankwiseError, match="`top_p=` is for texts that are drawn"):
        GenerateOptions(top_p=0.9)
