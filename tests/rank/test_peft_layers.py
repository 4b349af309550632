"""Adaptive rank on PEFT's layers: the same decisions as on ours, and adapters that PEFT loads."""

import copy
from typing import Any

import pytest
import torch
import transformers as hf
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, TaskType, get_peft_model
from torch.utils.data import Dataset

import rankwise
import tiny
from rankwise.errors import RankwiseError
from rankwise.lora.inject import adapt_at_start_rank
from rankwise.lora.layer import lora_layers
from rankwise.lora.peft_layer import low_rank_layers
from rankwise.rank.config import RankConfig
from rankwise.rank.controller import RankController
from rankwise.rank.example_losses import outputs_of
from rankwise.rank.trainer_callback import layers_of

QUICK = RankConfig(prune_at={0.4: 0.02, 0.8: 0.05}, grow_at=(), memory=10)


def rows(n: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Texts whose label is a word in them."""
    reviews = tiny.reviews(n, seed)
    encoded = tiny.tokenizer()([r["text"] for r in reviews], padding=True, return_tensors="pt")
    return {**encoded, "labels": torch.tensor([int(r["label"] == "positive") for r in reviews])}


def with_our_layers() -> Any:
    return adapt_at_start_rank(tiny.classifier("bert"), 8, alpha=16.0).double().eval()


def with_pefts_layers(ours: Any) -> Any:
    """A PEFT model with the matrices of ours."""
    paths = list(lora_layers(ours))
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16, target_modules=paths)
    model = get_peft_model(tiny.classifier("bert"), config).double().eval()
    for path, layer in low_rank_layers(model).items():
        layer.lora_A.data = lora_layers(ours)[path].lora_A.detach().clone()
    return model


def trained(model: Any, steps: int = 240, config: RankConfig = QUICK) -> tuple[RankController, list[float]]:
    train, held_out = rows(320), rows(200, seed=1)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.005)

    def losses() -> torch.Tensor:
        with torch.no_grad():
            logits = model(**{k: v for k, v in held_out.items() if k != "labels"}).logits
            return torch.nn.functional.cross_entropy(logits, held_out["labels"], reduction="none")

    controller, found = RankController(model, losses, steps, optimizer, config=config), []
    for step in range(steps):
        batch = {k: v[(8 * step) % 320 :][:8] for k, v in train.items()}
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        controller.step()
        found.append(loss.item())
    return controller, found


@pytest.fixture(scope="module")
def both():
    ours = with_our_layers()
    pefts = with_pefts_layers(ours)
    return (ours, *trained(ours)), (pefts, *trained(pefts))


@pytest.mark.slow
def test_decisions_and_losses_are_those_of_our_layers(both):
    (_, ours, our_losses), (_, pefts, their_losses) = both
    assert any(decision.accepted for decision in ours.decisions)
    assert [d.changes for d in pefts.decisions] == [d.changes for d in ours.decisions]
    assert pefts.ranks == ours.ranks
    assert their_losses == pytest.approx(our_losses, abs=1e-5)


@pytest.mark.slow
def test_what_peft_saves_it_loads_with_equal_logits(both, tmp_path):
    _, (model, controller, _) = both
    assert 0 in controller.ranks.values()  # PEFT has no rank 0
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny.classifier("bert"), str(tmp_path)).double().eval()
    text = {k: v for k, v in rows(20, seed=2).items() if k != "labels"}
    with torch.no_grad():
        torch.testing.assert_close(again(**text).logits, model(**text).logits, rtol=1e-5, atol=1e-5)
    loaded = {path: layer.rank for path, layer in low_rank_layers(again).items()}
    assert loaded == {path: max(1, rank) for path, rank in controller.ranks.items()}


@pytest.mark.parametrize("rslora", [False, True])
def test_the_config_has_rank_and_alpha_of_every_resized_layer(rslora):
    config = LoraConfig(r=8, lora_alpha=16, use_rslora=rslora, target_modules=["query"])
    model = get_peft_model(tiny.classifier("bert"), config)
    (path, layer), *_ = low_rank_layers(model).items()
    before = layer.scaling
    layer.resize(layer.lora_A.detach()[:2], layer.lora_B.detach()[:, :2])
    assert layer.scaling == pytest.approx(4 * before)  # s = alpha/r
    again = get_peft_model(tiny.classifier("bert"), copy.deepcopy(model.peft_config["default"]))
    other = low_rank_layers(again)[path]
    assert (other.rank, other.scaling) == (2, pytest.approx(layer.scaling))
    assert [x.rank for p, x in low_rank_layers(again).items() if p != path] == [8]


def with_two_adapters() -> Any:
    model = get_peft_model(tiny.classifier("bert"), LoraConfig(r=4, target_modules=["query"]))
    model.add_adapter("other", LoraConfig(r=2, target_modules=["query"]))
    model.base_model.set_adapter(["default", "other"])
    return model


def merged() -> Any:
    model = get_peft_model(tiny.classifier("bert"), LoraConfig(r=4, target_modules=["query"]))
    model.merge_adapter()
    return model


def disabled() -> Any:
    model = get_peft_model(tiny.classifier("bert"), LoraConfig(r=4, target_modules=["query"]))
    model.base_model.disable_adapter_layers()
    return model


def lora(**settings: Any) -> Any:
    return get_peft_model(
        tiny.classifier("bert"), LoraConfig(**{"r": 4, "target_modules": ["query"]} | settings)
    )


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: lora(use_dora=True), "variant of LoRA .Dora"),
        (lambda: lora(target_modules=["word_embeddings"]), "LoRA on another kind of layer"),
        (lambda: lora(lora_bias=True), "has a bias"),
        (disabled, "are disabled"),
        (merged, "is merged"),
        (with_two_adapters, "2 active adapters"),
        (
            lambda: get_peft_model(
                tiny.classifier("bert"), IA3Config(target_modules=["query"], feedforward_modules=[])
            ),
            "not LoRA",
        ),
        (
            lambda: get_peft_model(
                tiny.classifier("bert"), PromptTuningConfig(task_type=TaskType.SEQ_CLS, num_virtual_tokens=4)
            ),
            "no LoRA layers",
        ),
    ],
)
def test_what_cannot_be_resized_is_refused_by_name(make, says):
    with pytest.raises(RankwiseError, match=says):
        layers_of(make())


def test_the_active_adapter_is_the_one_that_changes():
    model = with_two_adapters()
    model.set_adapter("other")
    assert {layer.rank for layer in low_rank_layers(model).values()} == {2}


def test_layers_of_another_adapter_alone_are_left_out():
    model = lora()
    model.add_adapter("other", LoraConfig(r=2, target_modules=["query", "key"]))
    assert {path.rpartition(".")[2] for path in low_rank_layers(model)} == {"query"}
    model.set_adapter("other")
    assert {path.rpartition(".")[2] for path in low_rank_layers(model)} == {"query", "key"}


def test_statistics_of_an_adapter_in_bfloat16_are_float32():
    model = lora().to(torch.bfloat16)
    (layer, *_) = low_rank_layers(model).values()
    layer.collect_statistics()
    model(**rows(8)).loss.backward()
    assert layer.statistics is not None
    assert layer.statistics.grad is not None
    assert layer.statistics.grad.dtype == torch.float32


def llama(seed: int = 0, **settings: Any) -> Any:
    torch.manual_seed(seed)
    config = hf.LlamaConfig(**{**tiny.CONFIGS["llama"].to_dict(), **settings})
    return hf.LlamaForCausalLM(config)


@pytest.mark.parametrize("bits", [8, 4])
def test_gradients_on_a_quantized_base_are_the_same_after_held_out_rows_were_evaluated(tmp_path, bits):
    """bitsandbytes packs 4-bit weights anew for a forward without gradients; then none goes through them."""
    pytest.importorskip("bitsandbytes")
    llama(hidden_size=64, head_dim=16, intermediate_size=128).save_pretrained(tmp_path)
    quantized = hf.BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    base = hf.AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=quantized, device_map="cpu")
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(base, config)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def losses() -> torch.Tensor:
        model.eval()
        with torch.no_grad():
            found = torch.stack([model(ids[None], labels=ids[None]).loss for ids in IDS])
        model.train()
        return found

    controller = RankController(model, losses, 20, torch.optim.AdamW(parameters))
    before = torch.autograd.grad(model.train()(IDS, labels=IDS).loss, parameters)
    controller.held_out.begin()
    after = torch.autograd.grad(model(IDS, labels=IDS).loss, parameters)
    torch.testing.assert_close(after, before)


class Sentences(Dataset[dict[str, list[int]]]):
    """Every word follows from the one before it, as a small language model can learn."""

    def __init__(self, n: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        starts = torch.randint(20, (n,), generator=generator).tolist()
        self.rows = [[4 + (7 * start + 3 * i) % 20 for i in range(6 + start % 5)] for start in starts]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, list[int]]:
        return {"input_ids": self.rows[i]}


def language_trainer(folder, model: Any) -> tuple[hf.Trainer, rankwise.RankCallback]:
    arguments = hf.TrainingArguments(
        output_dir=str(folder), max_steps=120, per_device_train_batch_size=8, learning_rate=0.01, save_steps=60,
        report_to=[], use_cpu=True, disable_tqdm=True, seed=3,
    )  # fmt: skip
    collate = hf.DataCollatorForLanguageModeling(tiny.tokenizer(), mlm=False)
    trainer = hf.Trainer(
        model,
        arguments,
        train_dataset=Sentences(300, 0),
        eval_dataset=Sentences(60, 1),
        data_collator=collate,
    )
    return trainer, rankwise.find_ranks(trainer, config=QUICK)


def adapted_llama() -> Any:
    torch.manual_seed(1)
    return get_peft_model(
        llama(), LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear")
    )


@pytest.mark.slow
def test_ranks_of_a_language_model_change_and_a_checkpoint_resumes(tmp_path):
    whole, callback = language_trainer(tmp_path, adapted_llama())
    whole.train()
    assert any(decision.accepted for decision in callback.decisions)
    resumed, again = language_trainer(tmp_path, adapted_llama())
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-60"))
    assert [d.to_json() for d in again.decisions] == [d.to_json() for d in callback.decisions]
    for one, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    whole.save_model(str(tmp_path / "adapter"))
    loaded = PeftModel.from_pretrained(llama(), str(tmp_path / "adapter")).eval()
    ids = torch.tensor([Sentences(1, 2).rows[0]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, whole.model.eval()(ids).logits, rtol=1e-4, atol=1e-5)


def test_a_held_out_examples_loss_is_its_mean_token_cross_entropy():
    model = adapted_llama().eval()
    rows = [Sentences(60, 1)[i] for i in range(5)]
    batch = hf.DataCollatorForLanguageModeling(tiny.tokenizer(), mlm=False)(rows)
    with torch.no_grad():
        (found,) = outputs_of(model, dict(batch))
        for row, loss in zip(rows, found.tolist(), strict=True):
            ids = torch.tensor([row["input_ids"]])
            assert loss == pytest.approx(model(ids, labels=ids).loss.item(), rel=1e-4)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_held_out_loss_of_an_encoder_and_decoder_is_transformers_loss(family):
    torch.manual_seed(0)
    base = hf.AutoModelForSeq2SeqLM.from_config(SEQ2SEQ[family])
    config = LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(base, config).eval()
    rows = [{"input_ids": [4, 5, 6, 2], "labels": [7, 8, 2]}, {"input_ids": [9, 2], "labels": [5, 2]}]
    batch = hf.DataCollatorForSeq2Seq(tiny.tokenizer())([dict(row) for row in rows])
    with torch.no_grad():
        (found,) = outputs_of(model, dict(batch))
        for row, loss in zip(rows, found.tolist(), strict=True):
            given = {name: torch.tensor([ids]) for name, ids in row.items()}
            assert loss == pytest.approx(model(**given).loss.item(), rel=1e-5)


def test_examples_that_follow_each_other_in_one_row_are_told_apart():
    model = adapted_llama().eval()
    rows = [Sentences(60, 1).rows[i] for i in range(3)]
    batch = {
        "input_ids": torch.tensor([[word for row in rows for word in row]]),
        "labels": torch.tensor([[word for row in rows for word in (-100, *row[1:])]]),
        "position_ids": torch.tensor([[i for row in rows for i in range(len(row))]]),
    }
    with torch.no_grad():
        assert len(outputs_of(model, batch)[0]) == 3


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 100,
}
IDS_OF = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
OTHERS = {
    "qwen3": hf.Qwen3Config(**SMALL, **IDS_OF, num_key_value_heads=2, head_dim=8),
    "gemma3": hf.Gemma3TextConfig(
        **SMALL, **IDS_OF, num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8
    ),
    "phi": hf.PhiConfig(**SMALL, **IDS_OF),
    "phi3": hf.Phi3Config(**SMALL, **IDS_OF, num_key_value_heads=2),
}
SEQ2SEQ = {
    "t5": hf.T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0),
    "bart": hf.BartConfig(
        vocab_size=100, d_model=32, decoder_start_token_id=2, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64,
    ),
}  # fmt: skip
IDS = torch.tensor([[4, 5, 6, 7, 8], [9, 10, 11, 0, 0]])
KINDS = [
    *[
        (family, "CAUSAL_LM", hf.AutoModelForCausalLM)
        for family in ("gpt2", "opt", "qwen2", "gemma", "mistral")
    ],
    *[(family, "CAUSAL_LM", hf.AutoModelForCausalLM) for family in OTHERS],
    *[(family, "SEQ_2_SEQ_LM", hf.AutoModelForSeq2SeqLM) for family in SEQ2SEQ],
    ("bert", "TOKEN_CLS", hf.AutoModelForTokenClassification),
    ("bert", "FEATURE_EXTRACTION", hf.AutoModel),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("family", "task", "auto"), KINDS, ids=[f"{kind[0]}-{kind[1]}" for kind in KINDS])
def test_layers_of_any_task_collect_resize_and_load(family, task, auto, tmp_path):
    def base() -> Any:
        torch.manual_seed(0)
        return auto.from_config({**OTHERS, **SEQ2SEQ}.get(family) or tiny.CONFIGS[family])

    targets = ["query", "value"] if family == "bert" else "all-linear"
    config = LoraConfig(task_type=task, r=8, lora_alpha=16, target_modules=targets, init_lora_weights=False)
    model = get_peft_model(base(), config).eval()
    layers = low_rank_layers(model)
    for layer in layers.values():
        layer.collect_statistics()
    given = {"input_ids": IDS} if task == "FEATURE_EXTRACTION" else {"input_ids": IDS, "labels": IDS % 2}
    out = model(**given)
    (out.last_hidden_state[..., 0].sum() if task == "FEATURE_EXTRACTION" else out.loss).backward()
    assert all(x.statistics is not None and x.statistics.grad is not None for x in layers.values())
    assert all(x.statistics.grad[-1, 0] > 0 for x in layers.values())  # tokens
    for layer in layers.values():
        layer.resize(layer.lora_A.detach()[:3], layer.lora_B.detach()[:, :3])
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base(), str(tmp_path)).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**given)[0], model(**given)[0], rtol=1e-4, atol=1e-5)
    assert {layer.rank for layer in low_rank_layers(again).values()} == {3}


def test_statistics_are_the_second_moments_of_z_and_of_its_gradient():
    model = with_pefts_layers(with_our_layers())
    (layer, *_) = low_rank_layers(model).values()
    torch.nn.init.normal_(layer.lora_B)
    layer.collect_statistics()
    seen: dict[str, torch.Tensor] = {}

    def keep(_: Any, inputs: Any, z: torch.Tensor) -> None:
        seen["z"] = z
        z.register_hook(lambda dz: seen.update(dz=dz))

    layer.module.lora_A["default"].register_forward_hook(keep)
    model(**rows(8)).loss.backward()
    assert layer.statistics is not None
    assert layer.statistics.grad is not None
    z, dz = (seen[name].detach().flatten(0, 1) for name in ("z", "dz"))
    counts = (dz != 0).any(dim=1)
    expected = torch.cat([z[counts].t() @ z[counts], dz.t() @ dz, counts.sum().expand(1, 8)])
    torch.testing.assert_close(layer.statistics.grad, expected)
