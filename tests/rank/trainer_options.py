"""What becomes of adaptive rank under each option of Trainer that touches it, found by running it: the table in docs/reference/trainer.md.

`python tests/rank/trainer_options.py` writes the page.
"""

import copy
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, prepare_model_for_kbit_training

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import rankwise
import tiny
from quiet import quiet
from rankwise.errors import RankwiseError
from rankwise.lora.peft_layer import low_rank_layers
from rankwise.lora.quantized import keep_gradients
from rankwise.lora.wrappers import inside
from rankwise.rank.config import RankConfig

PAGE = Path(__file__).parents[2] / "docs/reference/trainer.md"
SGD = {"optim": "sgd", "learning_rate": 0.3}
"""For trainings whose weights are compared: Adam makes rounding errors as large as its steps."""
PLAIN = {"max_steps": 12, "per_device_train_batch_size": 8, "learning_rate": 1e-3}
INTRODUCTION = """# Trainer's options

What becomes of `RankCallback` under the options of Transformers' `TrainingArguments` that touch it.
*works*: ranks change in the middle of a training, loss and weights stay finite, PEFT loads what is saved, with the same logits.
*same weights*: besides, the weights at the end are those of a training without the option.

The table is made by running each line on a CPU (`python tests/rank/trainer_options.py`), and a test compares it.
Every optimizer of `optim=` is tried in `tests/rank/test_optimizers.py`.

"""
PEFT_INTRODUCTION = """
## On PEFT's layers

The same training with `get_peft_model` and LoRA on all linear layers. `load_in_…` and `bnb_…` are options of `BitsAndBytesConfig`: the
base is then in few bits, on the CPU like all here. With two adapters, the one that isn't active has other layers and another rank. An
adapter in bfloat16 is what TRL's `SFTTrainer` makes of it on a quantized base.

"""
OPTIONS: list[dict[str, Any]] = [
    {},
    {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
    {"gradient_checkpointing": True},
    {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    {"bf16": True},
    {"bf16_full_eval": True, "eval_strategy": "steps", "eval_steps": 4},
    {"fp16": True},
    {"torch_compile": True, "torch_compile_backend": "aot_eager"},
    {"max_grad_norm": 0},
    {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 4, "save_steps": 4},
    {"save_only_model": True, "save_steps": 4},
    {"save_strategy": "no"},
    {"auto_find_batch_size": True},
    {"dataloader_num_workers": 1},
    {"train_sampling_strategy": "group_by_length"},
    {"label_smoothing_factor": 0.1},
    {"neftune_noise_alpha": 5.0},
    {"lr_scheduler_type": "cosine"},
    {"eval_on_start": True, "eval_strategy": "steps", "eval_steps": 4},
    {"optim": "adamw_torch_fused"},
    {"optim": "adafactor"},
    {"optim": "sgd"},
    {"optim": "adamw_bnb_8bit"},
    {"optim": "paged_adamw_8bit"},
    {"deepspeed": "zero2.json"},
    {"fsdp": "full_shard"},
]
ON_PEFT: list[dict[str, Any]] = [
    {},
    {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
    {"gradient_checkpointing": True},
    {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    {"bf16": True},
    {"fp16": True},
    {"torch_compile": True, "torch_compile_backend": "aot_eager"},
    {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 4, "save_steps": 4},
    {"load_in_8bit": True},
    {"load_in_8bit": True, "gradient_checkpointing": True},
    {"load_in_4bit": True},
    {"load_in_4bit": True, "bnb_4bit_use_double_quant": True, "bf16": True},
    {"two adapters": True},
    {"adapter in bfloat16": True},
]
"""What is tried on PEFT's layers; what isn't an option of Trainer is one of `BitsAndBytesConfig`, or explained on the page."""
PEFTS_OWN = ("two adapters", "adapter in bfloat16")
WRAPPERS = {"deepspeed", "fsdp"}
SAME = (
    "gradient_checkpointing",
    "torch_compile",
    "save_only_model",
    "save_strategy",
    "dataloader_num_workers",
)
"""Options under which a training must give the same weights as without."""


class Resized(hf.TrainerCallback):
    """Resizes every layer in the middle of the training, as a prune would."""

    def __init__(self, callback: rankwise.RankCallback) -> None:
        self.callback, self.ranks = callback, set[int]()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        controller = self.callback.controller
        assert controller is not None
        if state.global_step == 8:
            self.ranks = set(controller.ranks.values())
        if state.global_step == 6:
            changes = {path: (rank, 3) for path, rank in controller.ranks.items()}
            with torch.no_grad():
                controller.resizer.resize(changes, controller.bases(), 6)


def base_model(quantized: dict[str, Any]) -> Any:
    """Return the classifier that is trained, its weights in few bits where `BitsAndBytesConfig` has options."""
    torch.manual_seed(0)
    width = {"hidden_size": 64} if quantized else {}  # bitsandbytes' blocks in 4 bits are of 64
    model = tiny.classifier("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **width)
    if not quantized:
        return model
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = hf.BitsAndBytesConfig(**quantized, llm_int8_skip_modules=["classifier", "pooler"])
        return type(model).from_pretrained(folder, quantization_config=config, device_map="cpu").eval()


def with_pefts_layers(model: Any, options: dict[str, Any]) -> Any:
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS, r=16, lora_alpha=23, target_modules=["query", "value", "dense"]
    )
    config.exclude_modules = ["pooler.dense"]
    if any(name.startswith("load_in") for name in options):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    adapted = get_peft_model(model, config)
    if "two adapters" in options:
        adapted.add_adapter(
            "other", LoraConfig(task_type=TaskType.SEQ_CLS, r=4, target_modules=["key", "query"])
        )
        adapted.set_adapter("default")
    if "adapter in bfloat16" in options:  # as TRL has it on quantized bases
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.to(torch.bfloat16)
    return adapted


def train(folder: Path, options: dict[str, Any], *, peft: bool = False) -> Any:
    """Train a tiny model with our layers, or PEFT's, under some options. Returns it."""
    quantized = {name: value for name, value in options.items() if name.startswith(("load_in", "bnb_"))}
    base = base_model(quantized)
    model = with_pefts_layers(copy.deepcopy(base), options) if peft else rankwise.adapt(copy.deepcopy(base))
    tokenizer = tiny.tokenizer()
    rows = [
        {**tokenizer(r["text"], return_token_type_ids=True), "labels": int(r["label"] == "positive")}
        for r in tiny.reviews(140)
    ]
    given = {
        name: value for name, value in options.items() if name not in {*WRAPPERS, *quantized, *PEFTS_OWN}
    }
    arguments = hf.TrainingArguments(
        output_dir=str(folder / "out"), report_to=[], use_cpu=True, disable_tqdm=True, **{**PLAIN, **given}
    )
    callback = rankwise.RankCallback(
        rows[100:], config=RankConfig(prune_at={1.0: 0.0}, grow_at=(), memory=2, fewest_steps=1)
    )
    resized = Resized(callback)
    trainer = hf.Trainer(
        model,
        arguments,
        train_dataset=rows[:100],
        eval_dataset=rows[100:],
        data_collator=hf.DataCollatorWithPadding(tokenizer),
        callbacks=[callback, resized],
    )
    for name in options.keys() & WRAPPERS:  # set afterwards: what they need isn't there
        setattr(arguments, name, options[name])
        callback.on_train_begin(arguments, trainer.state, trainer.control, model=model, optimizer=None)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert callback.decisions, "no decision"
    assert all(map(torch.isfinite, map(torch.tensor, losses))), "loss"
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert resized.ranks == {3}, f"ranks {resized.ranks}"
    if peft:
        model.save_pretrained(folder / "adapter")
    else:
        rankwise.save(model, folder / "adapter")
    saved = PeftModel.from_pretrained(base, str(folder / "adapter")).eval()
    keep_gradients(saved)  # the same kernel of bitsandbytes
    ids = torch.randint(3, 15, (3, 7), generator=torch.Generator().manual_seed(0))
    plain = trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False).eval()
    with torch.no_grad():
        torch.testing.assert_close(saved(ids).logits, plain(ids).logits, rtol=1e-3, atol=1e-4)
    return model


def outcome(folder: Path, options: dict[str, Any], plain: Any, *, peft: bool = False) -> str:
    """Run a training: what becomes of it, as a cell of the table."""
    compared = any(name in options for name in SAME) and "load_in_8bit" not in options
    try:
        model = train(folder, options | SGD if compared else options, peft=peft)
    except RankwiseError as error:
        return str(error).replace(str(folder), "")
    except AssertionError as error:
        return f"WRONG: {_first_sentence(error)}"
    except Exception as error:  # what Transformers raises is a cell of the table
        return f"{type(error).__name__}: {_first_sentence(error)}"
    if not compared:
        return "works"
    for name, layer in low_rank_layers(inside(model)).items():
        found, expected = update(layer), update(low_rank_layers(plain)[name])
        if not torch.allclose(found, expected, rtol=1e-2, atol=1e-5):
            return f"WRONG weights, by {(found - expected).abs().max():.2g}"
    return "works, same weights"


def update(layer: Any) -> torch.Tensor:
    return layer.scaling * (layer.lora_B @ layer.lora_A).detach()


def _first_sentence(error: Exception) -> str:
    return str(error).strip().splitlines()[0].partition(". ")[0].replace("|", "\\|")[:200]


def page(folder: Path) -> str:
    """Run every training and return the page."""
    ours = "\n".join(table(folder / "ours", OPTIONS))
    pefts = "\n".join(table(folder / "pefts", ON_PEFT, peft=True))
    return f"{INTRODUCTION}{ours}\n{PEFT_INTRODUCTION}{pefts}\n"


def table(folder: Path, tried: list[dict[str, Any]], *, peft: bool = False) -> list[str]:
    lines = ["| option | outcome |", "|---|---|"]
    with quiet():
        plain = train(folder / "plain", SGD, peft=peft)
    for number, options in enumerate(tried):
        with quiet():
            found = outcome(folder / str(number), options, plain, peft=peft)
        names = (name if name in PEFTS_OWN else f"`{name}={value}`" for name, value in options.items())
        lines.append(f"| {', '.join(names) or 'none'} | {found} |")
    return lines


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as workspace:
        PAGE.write_text(page(Path(workspace)))
    print(PAGE)
