"""Ranks are found in a script around TRL's `SFTTrainer`."""

import warnings
from typing import Any

import datasets
import pytest
import torch
import transformers as hf
from peft import LoraConfig, PeftModel

import rankwise
import tiny
from rankwise.lora.peft_layer import low_rank_layers
from rankwise.rank.config import RankConfig
from rankwise.rank.example_losses import outputs_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    trl = pytest.importorskip("trl")

QUICK = RankConfig(prune_at={0.4: 0.02, 0.8: 0.05}, grow_at=(), memory=10)


def llama() -> Any:
    torch.manual_seed(0)
    return hf.LlamaForCausalLM(tiny.config("llama"))  # pyright: ignore[reportArgumentType]


def tokenizer() -> Any:
    made = tiny.tokenizer()
    made.eos_token = "[SEP]"
    return made


def prompts(n: int, seed: int) -> datasets.Dataset:
    """The completion repeats the prompt's second word."""
    rows = [review["text"].split() for review in tiny.reviews(n, seed)]
    return datasets.Dataset.from_list(
        [{"prompt": f"{words[0]} {words[1]}", "completion": f" {words[1]} {words[1]}"} for words in rows]
    )


def trainer(folder: Any, **settings: Any) -> tuple[Any, rankwise.RankCallback]:
    arguments = trl.SFTConfig(
        output_dir=str(folder), max_steps=120, per_device_train_batch_size=8, learning_rate=0.01, save_steps=60,
        report_to=[], use_cpu=True, bf16=False, disable_tqdm=True, max_length=32, seed=3, **settings,
    )  # fmt: skip
    lora = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear")
    made = trl.SFTTrainer(
        llama(), arguments, train_dataset=prompts(300, 0), eval_dataset=prompts(60, 1),
        processing_class=tokenizer(), peft_config=lora,
    )  # fmt: skip
    return made, rankwise.find_ranks(made, config=QUICK)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True, "gradient_accumulation_steps": 2}])
def test_sft_finds_ranks_resumes_and_saves_what_peft_loads(tmp_path, settings):
    whole, callback = trainer(tmp_path, **settings)
    whole.train()
    assert any(decision.accepted for decision in callback.decisions)
    resumed, again = trainer(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-60"))
    assert [d.to_json() for d in again.decisions] == [d.to_json() for d in callback.decisions]

    whole.save_model(str(tmp_path / "adapter"))
    loaded = PeftModel.from_pretrained(llama(), str(tmp_path / "adapter")).eval()
    found = {path: layer.rank for path, layer in low_rank_layers(loaded).items()}
    assert callback.controller is not None
    assert found == {path: max(1, rank) for path, rank in callback.controller.ranks.items()}
    ids = torch.tensor([[4, 5, 6, 7]])
    with torch.no_grad():
        expected = whole.model.eval()(ids).logits
        torch.testing.assert_close(loaded(ids).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_held_out_loss_is_of_the_completion_alone(tmp_path):
    made, _ = trainer(tmp_path)
    batch = made.data_collator([made.eval_dataset[i] for i in range(8)])
    assert (batch["labels"][0] == -100).any()  # the prompt
    model = made.model.eval()
    with torch.no_grad():
        (found,) = outputs_of(model, dict(batch))
        for i in range(3):
            row = {name: value[i : i + 1] for name, value in batch.items()}
            assert found[i].item() == pytest.approx(model(**row).loss.item(), rel=1e-3)
