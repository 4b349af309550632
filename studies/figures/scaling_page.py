"""The tables of docs/scaling.md, from what `python studies/scaling.py` stored."""

import json
from typing import Any

from stored import DOCS, STUDIES, replace_between

# isort: split
import scaling  # of studies/, which `stored` makes importable
import soak

PAGE = DOCS / "scaling.md"
BEGIN = "<!-- python studies/scaling.py: {} -->"
SOAK = "<!-- python studies/soak.py -->"
RUNS, MACHINES = 10_000, 100


def with_tables(page: str) -> str:
    """Return the page with its tables made anew."""
    stored = json.loads((STUDIES / "scaling.json").read_text(encoding="utf-8"))
    for name, table in (("runs", of_runs), ("claims", of_claims), ("plan", of_plan)):
        page = replace_between(page, BEGIN.format(name), table(stored[name]))
    if soak.STORED.exists():
        found = json.loads(soak.STORED.read_text(encoding="utf-8"))
        page = replace_between(page, SOAK, of_soak(found))
    return page


def of_soak(found: dict[str, Any]) -> str:
    """Return what each further run of a long grid costs its process and the runs after it."""
    memory, time = soak.memory_slope(found), soak.time_slope(found)
    runs = len(found["finished"])
    at_the_end = f"{found['samples'][-1][1]:,.0f} MB at the end"

    def line(of: dict[str, float], unit: str, digits: int) -> str:
        slope, low, high = (f"{of[key]:,.{digits}f}" for key in ("slope", "low", "high"))
        return f"{slope} {unit} ({low} – {high})"

    lines = [
        f"| {runs:,} runs in one grid | a further run adds (95 % interval) | |",
        "|---|---:|---:|",
        f"| memory of the grid's process | {line(memory, 'KB', 2)} | {at_the_end} |",
        f"| time of a run | {line(time, 'ms', 3)} | {time['mean']:,.0f} ms in the mean |",
        f"| `rankwise report` | | {found['report_seconds']:.1f} s |",
    ]
    return "\n".join([*lines, ""])


def of_runs(found: dict[str, Any]) -> str:
    """Return what a run adds, with intervals, and what 10,000 take."""
    run = found["of_run"]
    # runs of a grid keep no tokenizer
    files = {name: size for name, size in found["files"].items() if not name.startswith("tokenizer")}
    lines = [
        f"| | a run adds (95 % interval) | {RUNS:,} runs |",
        "|---|---:|---:|",
        f"| storage of run folders | {sum(files.values()) / 1e3:,.0f} KB | {RUNS * sum(files.values()) / 1e9:,.1f} GB |",
    ]
    for what, title, unit, scale in (
        ("seconds", "`rankwise report`, CPU time", "ms", 1e3),
        ("peak_mb", "its memory", "KB", 1e3),
        ("report_bytes", "its files", "KB", 1e-3),
    ):
        line = scaling.slope(found["measured"], what)
        whole = line["intercept"] + RUNS * line["slope"]
        in_all = (
            f"{whole:,.0f} s"
            if what == "seconds"
            else f"{whole * (1 if what == 'peak_mb' else 1e-6):,.0f} MB"
        )
        low, at, high = (scale * line[key] for key in ("low", "slope", "high"))
        lines.append(f"| {title} | {at:,.2f} {unit} ({low:,.2f} – {high:,.2f}) | {in_all} |")
    sizes = sorted({one["runs"] for one in found["measured"]})
    kept = " · ".join(
        f"{name} {size / 1e3:,.1f}" for name, size in sorted(files.items(), key=lambda f: -f[1])[:5]
    )
    sentences = [
        f"The run is LoRA on {run['model']} with {run['steps']} steps and {run['n_validation']} validation rows.",
        f"Its largest files, in KB: {kept}.",
        f"Grids of {', '.join(f'{n:,}' for n in sizes)} copies with other scores were reported, "
        f"each {len(found['measured']) // len(sizes)} times. What is said of {RUNS:,} runs follows the line through them.",
    ]
    return "\n".join([*lines, "", *sentences, ""])


def of_claims(found: list[dict[str, Any]]) -> str:
    """Return what one process does in the shared folder, and what 100 do in a minute."""
    every, *rows = found
    lines = [
        "| machines | sign of life: opened | listed | look at the others' runs: opened | listed |",
        "|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        beat, look = row["beat"], row["look"]
        cells = [
            row["machines"],
            *(part.get(key, 0) for part in (beat, look) for key in ("opened", "listed")),
        ]
        lines.append(f"| {' | '.join(f'{cell:,}' for cell in cells)} |")
    last = rows[-1]
    beats = 60 / every["every_seconds"]["beat"] * last["machines"]
    looks = 60 / every["every_seconds"]["look"] * last["machines"]
    training, waiting = (
        [n * part.get(key, 0) for key in ("opened", "listed")]
        for n, part in ((beats, last["beat"]), (looks, last["look"]))
    )
    sentences = [
        f"With {last['machines']} machines in training that is {training[0]:,.0f} files opened and {training[1]:,.0f} listings a minute, "
        "all together, whatever the number of runs.",
        f"A process that waits for the last runs of others looks every {every['every_seconds']['look']:g} s. If all but a few of "
        f"{last['machines']} wait, that is up to {round(waiting[0], -3):,.0f} files opened and {round(waiting[1], -3):,.0f} listings "
        "a minute.",
    ]
    return "\n".join([*lines, "", *sentences, ""])


def of_plan(found: list[dict[str, Any]]) -> str:
    """Return the memory of each process, and what it sends."""
    lines = [
        "| method | processes | weights GB | trained, gradients, moments GB | activations and the rest GB | peak GB | sent a step GB |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for one in found:
        peak = {kind: size / 1e3 for kind, size in one["peak_memory_mb"].items()}
        how = f"{one['processes']}" + (
            ", layers shared out" if one["shard"] else ", each whole" if one["processes"] > 1 else ""
        )
        kept = peak["gradients"] + peak["optimizer"]
        rest = peak["total"] - peak["weights"] - kept
        sent = one.get("bytes_sent_a_step", 0) / 1e9
        name = f"{one['method']}, rank {one['rank']}"
        lines.append(
            f"| {name} | {how} | {peak['weights']:,.1f} | {kept:,.2f} | {rest:,.1f} | {peak['total']:,.1f} | {sent:,.2f} |"
        )
    return "\n".join(lines) + "\n"
