"""What becomes of each field of PEFT's LoraConfig, found by running it: the table in docs/reference/peft.md.

`python tests/adapters/lora_fields.py` writes the page.
"""

import copy
import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import IA3Config, LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny
from quiet import quiet
from rankwise import export, load, merge
from rankwise.adapters.inspect import inspect
from rankwise.errors import RankwiseError

PAGE = Path(__file__).parents[2] / "docs/reference/peft.md"
IDS = torch.randint(3, 15, (3, 7), generator=torch.Generator().manual_seed(0))
QUERY = "bert.encoder.layer.0.attention.self.query"
SAME = 1e-4
"""Logits are the same if they differ by less, relative to the largest."""
INTRODUCTION = """# PEFT's settings

What rankwise does with an adapter that PEFT trained, for each field of `LoraConfig` in PEFT 0.21.
*works*: `evaluate`, `predict` and the model that `merge` writes give PEFT's logits, and so does PEFT with what `export` writes.
Everything else is refused with the sentence that stands here.
Where only PEFT can run an adapter, `evaluate` and `predict` let it.

The table is made by running each line (`python tests/adapters/lora_fields.py`), and a test compares it.

"""


@dataclasses.dataclass(frozen=True)
class Trial:
    """A setting to try.

    Attributes:
        field: of `LoraConfig`.
        settings: given to `LoraConfig`.
        written: fields that are written into the file afterwards, where PEFT can't make such an adapter of this model.
        family: of the base.
        kind: config class.
    """

    field: str
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    written: dict[str, Any] = dataclasses.field(default_factory=dict)
    family: str = "bert"
    kind: type = LoraConfig

    @property
    def shown(self) -> str:
        """The setting, for the table."""
        given = self.settings | self.written
        first = given.pop(self.field, None)
        more = "".join(f", `{key}={_short(value)}`" for key, value in given.items())
        return f"`{_short(first)}`{more}" + (f" ({self.family})" if self.family != "bert" else "")


def _short(value: Any) -> str:
    if isinstance(value, str):
        return value
    if dataclasses.is_dataclass(value):
        return type(value).__name__
    return str(value).replace("'", '"').replace(QUERY, "…query")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def trials() -> Iterator[Trial]:
    """Every field, with the values that matter."""
    from peft import EvaConfig
    from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig

    for task in [None, *TaskType]:
        yield Trial("task_type", {"task_type": None}, {"task_type": task and task.value})
    yield Trial("peft_type", {}, {"peft_type": "LORA"})
    yield Trial("peft_type", {}, {"peft_type": "IA3"}, kind=IA3Config)
    yield Trial("auto_mapping", {}, {"auto_mapping": {"parent_library": "x"}})
    yield Trial("peft_version", {}, {"peft_version": "0.5.0"})
    yield Trial("base_model_name_or_path", {}, {"base_model_name_or_path": None})
    yield Trial("revision", {}, {"revision": "main"})
    yield Trial("inference_mode", {"inference_mode": False})
    for r in (1, 64):
        yield Trial("r", {"r": r})
    for targets in (
        ["query"],
        "all-linear",
        ".*layer.0.*(query|dense)",
        [QUERY],
        ["query", "word_embeddings"],
        ["classifier"],
    ):
        yield Trial(
            "target_modules",
            {"target_modules": targets} | ({"task_type": None} if targets == ["classifier"] else {}),
        )
    yield Trial("exclude_modules", {"exclude_modules": [QUERY]})
    yield Trial("lora_alpha", {"lora_alpha": 5})
    yield Trial("lora_dropout", {"lora_dropout": 0.3})
    yield Trial("fan_in_fan_out", {"fan_in_fan_out": True, "target_modules": ["c_attn"]}, family="gpt2")
    yield Trial("fan_in_fan_out", {"fan_in_fan_out": False, "target_modules": ["c_attn"]}, family="gpt2")
    for bias in ("none", "all", "lora_only"):
        yield Trial("bias", {"bias": bias})
    yield Trial("use_rslora", {"use_rslora": True})
    yield Trial("modules_to_save", {"modules_to_save": ["pooler"]})
    yield Trial("modules_to_save", {"modules_to_save": ["LayerNorm"]})
    for start in (True, False, "gaussian", "orthogonal", "eva", "mica", "olora", "pissa", "pissa_niter_2"):
        yield Trial(
            "init_lora_weights", {"init_lora_weights": start} | ({"r": 4} if start == "orthogonal" else {})
        )
    yield Trial("init_lora_weights", {}, {"init_lora_weights": "corda"})
    yield Trial("init_lora_weights", {}, {"init_lora_weights": "lora_ga"})
    yield Trial("layers_to_transform", {"layers_to_transform": [1]})
    yield Trial("layers_pattern", {"layers_pattern": "layer", "layers_to_transform": 1})
    yield Trial("rank_pattern", {"rank_pattern": {QUERY: 5, "value": 2}})
    yield Trial("alpha_pattern", {"alpha_pattern": {"^bert.*query": 5}})
    yield Trial("megatron_config", {}, {"megatron_config": {"x": 1}})
    yield Trial("megatron_core", {"megatron_core": "other.core"})
    yield Trial("trainable_token_indices", {"trainable_token_indices": {"word_embeddings": [4, 5]}})
    yield Trial(
        "loftq_config", {}, {"loftq_config": {"loftq_bits": 4, "loftq_iter": 1}, "init_lora_weights": "loftq"}
    )
    yield Trial("eva_config", {"eva_config": EvaConfig(), "init_lora_weights": "eva"})
    yield Trial("corda_config", {}, {"corda_config": {}, "init_lora_weights": "corda"})
    yield Trial("lora_ga_config", {}, {"lora_ga_config": {}, "init_lora_weights": "lora_ga"})
    yield Trial("use_dora", {"use_dora": True})
    yield Trial("velora_config", {"velora_config": VeloraConfig(num_groups=2)})
    yield Trial("alora_invocation_tokens", {"alora_invocation_tokens": [4]})
    yield Trial("use_qalora", {}, {"use_qalora": True})
    yield Trial("qalora_group_size", {"qalora_group_size": 8})
    yield Trial("monteclora_config", {"monteclora_config": MontecloraConfig()})
    yield Trial(
        "layer_replication",
        {"layer_replication": [(0, 2), (1, 2)], "target_modules": ["q_proj"]},
        family="llama",
    )
    yield Trial("runtime_config")
    yield Trial("lora_bias", {"lora_bias": True})
    yield Trial("target_parameters", {"target_parameters": [f"{QUERY}.weight"], "target_modules": ["value"]})
    yield Trial(
        "use_bdlora",
        {
            "use_bdlora": BdLoraConfig(target_modules_bd_a=["query"], nblocks=2),
            "r": 4,
            "target_modules": ["query"],
        },
    )
    yield Trial("arrow_config", {}, {"arrow_config": {"top_k": 1}})
    yield Trial("kasa_config", {"kasa_config": KasaConfig()})
    yield Trial("ensure_weight_tying", {"ensure_weight_tying": True})


def outcome(trial: Trial, base: Path, folder: Path) -> tuple[str, str]:
    """Run a trial: what `inspect` and `export` say to it, and what `evaluate` says."""
    folder.mkdir(parents=True)
    expected = _make(trial, base, folder / "adapter")
    return _described(trial, base, folder, expected), _evaluated(folder / "adapter", base, expected)


def _make(trial: Trial, base: Path, folder: Path) -> torch.Tensor | None:
    """Write PEFT's adapter. Returns PEFT's logits; None where it can't run what was written into the file."""
    torch.manual_seed(1)
    settings = {"task_type": "SEQ_CLS"} | copy.deepcopy(trial.settings)
    if trial.kind is LoraConfig:
        settings = {"r": 3, "lora_alpha": 7, "target_modules": ["query", "value"]} | settings
    else:
        settings |= {"target_modules": ["query"], "feedforward_modules": []}
    model = get_peft_model(_base(base), trial.kind(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(str(folder))
    logits = model.eval()(IDS).logits.detach()
    if trial.written:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | trial.written))
    return logits


def _described(trial: Trial, base: Path, folder: Path, expected: torch.Tensor | None) -> str:
    try:
        inspect(folder / "adapter")
        export(folder / "adapter", folder / "exported", base=str(base))
    except RankwiseError as error:
        return _sentence(error, folder, base)
    task = json.loads((folder / "exported/adapter_config.json").read_text())["task_type"]
    if task not in (None, "SEQ_CLS"):  # PEFT loads it onto another kind of model
        return "works" if task == trial.written["task_type"] else f"WRONG task {task}"
    merge(folder / "adapter", folder / "merged", base=str(base))
    found = _compared(_base(folder / "merged")(IDS).logits, expected)
    try:
        again = PeftModel.from_pretrained(_base(base), str(folder / "exported")).eval()
        return found if found != "works" else _compared(again(IDS).logits, expected)
    except Exception as error:
        return f"PEFT can't load what is written: {error}"


def _evaluated(adapter: Path, base: Path, expected: torch.Tensor | None) -> str:
    try:
        return _compared(load(adapter, base=str(base)).eval()(IDS).logits, expected)
    except RankwiseError as error:
        return _sentence(error, adapter.parent, base)


def _compared(logits: torch.Tensor, expected: torch.Tensor) -> str:
    apart = ((logits - expected).abs().max() / expected.abs().max()).item()
    return "works" if apart < SAME else f"WRONG by {apart:.2g}"


def _sentence(error: RankwiseError, folder: Path, base: Path) -> str:
    text = str(error).replace(str(folder), "").replace("/adapter", "my-adapter").replace(str(base), "my-base")
    return text.strip()


def _base(folder: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


def page(folder: Path) -> str:
    """Run every trial and return the page."""
    bases = {family: folder / family for family in ("bert", "gpt2", "llama")}
    for family, place in bases.items():
        tiny.classifier(family).save_pretrained(place)
        tiny.tokenizer().save_pretrained(place)
    lines = ["| field | value | `inspect`, `export`, `merge` | `evaluate`, `predict` |", "|---|---|---|---|"]
    for number, trial in enumerate(trials()):
        with quiet():
            described, evaluated = outcome(trial, bases[trial.family], folder / str(number))
        lines.append(f"| `{trial.field}` | {' | '.join(map(_cell, (trial.shown, described, evaluated)))} |")
    return INTRODUCTION + "\n".join(lines) + "\n"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as workspace:
        PAGE.write_text(page(Path(workspace)))
    print(copy.copy(PAGE))
