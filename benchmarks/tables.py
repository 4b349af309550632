"""Write the tables of docs/engine.md from the measurements in benchmarks/results: `python benchmarks/tables.py`.

A measurement is made by, for example:

    rankwise bench --random-weights roberta-base --lengths qnli --rows 160 --json > benchmarks/results/qnli.json
"""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs/engine.md"
HEADING = "## What was measured"


def main() -> None:
    stored = [
        json.loads(file.read_text(encoding="utf-8")) for file in sorted((HERE / "results").glob("*.json"))
    ]
    page = PAGE.read_text(encoding="utf-8")
    before = page[: page.index(HEADING)]
    intro = (
        f"{HEADING}\n\n`rankwise bench` measures this on any machine. The measurements below are stored in `benchmarks/results/`; "
        "`python benchmarks/tables.py` writes the tables. Rows/s and ratios are medians over interleaved repeats, with their range. "
        "Memory is the peak of tensor bytes over the heaviest batches of an epoch. Weights are random, because speed and memory do not "
        "depend on them. `gemm lower bound` is the matrix products of a LoRA step alone.\n"
    )
    PAGE.write_text(before + intro + "".join(map(section, stored)), encoding="utf-8")


def section(result: dict[str, Any]) -> str:
    """Return one measurement in Markdown."""
    hardware = result["hardware"]
    card = "" if hardware["device"] == "cpu" else f", {hardware['device']}"
    lines = [f"\n### {result['title']}", "", f"{hardware['processor']}, {hardware['cores']} cores{card}.", ""]
    lines += ["| | rows/s | range | ms per step | peak MB |", "|---|---:|---:|---:|---:|"]
    for row in result["rows"]:
        speed = row["rows_per_second"]
        lines.append(
            f"| {row['name']} | {speed['median']:.1f} | {speed['min']:.1f} – {speed['max']:.1f} "
            f"| {1000 * row['step_seconds']['median']:.0f} | {row['peak_memory_mb']:,.0f} |"
        )
    ratios = {
        name: f"{value:.2f} ({result['ratio_spreads'][name]['min']:.2f} – {result['ratio_spreads'][name]['max']:.2f})"
        for name, value in result["ratios"].items()
    } | {f"memory {name}": f"{value:.2f}" for name, value in result["memory_ratios"].items()}
    if ratios:
        lines += ["", "| ratio | median (range) |", "|---|---:|"]
        lines += [f"| {name.replace('_', ' ')} | {text} |" for name, text in ratios.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
