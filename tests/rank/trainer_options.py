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
from peft import PeftModel

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import rankwise
import tiny
from quiet import quiet
from rankwise.errors import RankwiseError
from rankwise.lora.layer import lora_layers
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


def train(folder: Path, options: dict[str, Any]) -> Any:
    """Train a tiny model under some options. Returns it."""
    torch.manual_seed(0)
    base = tiny.classifier("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model, tokenizer = rankwise.adapt(copy.deepcopy(base)), tiny.tokenizer()
    rows = [
        {**tokenizer(r["text"], return_token_type_ids=True), "labels": int(r["label"] == "positive")}
        for r in tiny.reviews(140)
    ]
    given = {name: value for name, value in options.items() if name not in WRAPPERS}
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
    rankwise.save(model, folder / "adapter")
    peft = PeftModel.from_pretrained(base, str(folder / "adapter")).eval()
    ids = torch.randint(3, 15, (3, 7), generator=torch.Generator().manual_seed(0))
    plain = trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False).eval()
    with torch.no_grad():
        torch.testing.assert_close(peft(ids).logits, plain(ids).logits, rtol=1e-3, atol=1e-4)
    return model


def outcome(folder: Path, options: dict[str, Any], plain: Any) -> str:
    """Run a training: what becomes of it, as a cell of the table."""
    compared = any(name in options for name in SAME)
    try:
        model = train(folder, options | SGD if compared else options)
    except RankwiseError as error:
        return str(error).replace(str(folder), "")
    except AssertionError as error:
        return f"WRONG: {_first_sentence(error)}"
    except Exception as error:  # what Transformers raises is a cell of the table
        return f"{type(error).__name__}: {_first_sentence(error)}"
    if not compared:
        return "works"
    for name, value in lora_layers(model).items():
        expected = lora_layers(plain)[name].delta()
        if not torch.allclose(value.delta(), expected, rtol=1e-2, atol=1e-5):
            return f"WRONG weights, by {(value.delta() - expected).abs().max():.2g}"
    return "works, same weights"


def _first_sentence(error: Exception) -> str:
    return str(error).strip().splitlines()[0].partition(". ")[0].replace("|", "\\|")[:200]


def page(folder: Path) -> str:
    """Run every training and return the page."""
    lines = ["| option | outcome |", "|---|---|"]
    with quiet():
        plain = train(folder / "plain", SGD)
    for number, options in enumerate(OPTIONS):
        with quiet():
            found = outcome(folder / str(number), options, plain)
        shown = ", ".join(f"`{name}={value}`" for name, value in options.items()) or "none"
        lines.append(f"| {shown} | {found} |")
    return INTRODUCTION + "\n".join(lines) + "\n"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as workspace:
        PAGE.write_text(page(Path(workspace)))
    print(PAGE)
