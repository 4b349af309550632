"""Draw docs/images/method.svg: adaptive rank over a training, with the ranks of a stored run (sst2, seed 0, studies/grid.py).

python studies/figures/method.py
"""

import json
import math
import re
from collections.abc import Mapping
from html import escape

from stored import IMAGES, SIZE, Row, read

WIDTH, HEIGHT = 960, 560
LEFT, RIGHT = 150, 930
"""Where 0 and 100 % of the training are."""
INK, FAINT, LINE, BLUE, RED = "#222222", "#666666", "#bbbbbb", "#4477aa", "#cc3311"
GROW, PRUNE = (10, 20, 30), (40, 80)
"""Percent of the training steps."""
WARMUP = 6
MATRICES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attn. out": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
START, LAYERS = 16, 6
CELL_X, CELL_Y = 46, 20


def main() -> None:
    (IMAGES / "method.svg").write_text(drawing(stored_run()))


def stored_run() -> Row:
    """Return the run that is drawn."""
    runs = read("grid.parquet")
    (run,) = (row for row in runs if (row["task"], row["method"], row["seed"]) == ("sst2", SIZE, 0))
    return run


def drawing(run: Row) -> str:
    """Return the SVG of a run of the grid: its ranks and the texts of its decisions."""
    decisions: list[str] = json.loads(run["decisions"])
    ranks: dict[str, int] = json.loads(run["rank"])
    first, last = (_counts(text) for text in decisions if re.match(r"step \d+: (cut|prune|pruned),", text))
    held_out = re.findall(r"on (\d+) rows", decisions[1])[0]
    parts = [
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="white"/>',
        *_held_out(held_out),
        *_components(first[0], first[1], last[1]),
        *_checks(),
        *_learning_rate(),
        *_pattern(LEFT, 392, f"start: rank {START} in all {len(ranks)} layers", dict.fromkeys(ranks, START)),
        _text(LEFT + 338, 478, "→", 30, FAINT, "middle"),
        _text(LEFT - 14, 374, "ranks by layer", 13, INK, "end"),
        _text(RIGHT, 535, "One stored run:", 11, FAINT, "end"),
        _text(RIGHT, 549, "sst2, seed 0", 11, FAINT, "end"),
        *_pattern(LEFT + 400, 392, f"end: {sum(ranks.values())} components", ranks),
    ]
    style = 'font-family="system-ui, Helvetica, Arial, sans-serif"'
    label = "Adaptive rank over a training: checks, held-out rows, components and the ranks at the end"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {style} role="img" aria-label="{label}">\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _counts(text: str) -> tuple[int, int]:
    """Return the numbers of components before and after a decision."""
    before, after = re.findall(r"(\d+) → (\d+) components", text)[0]
    return int(before), int(after)


def _at(percent: float) -> float:
    return LEFT + (RIGHT - LEFT) * percent / 100


def _checks() -> list[str]:
    """Return the time axis with its checks."""
    parts = [_line(LEFT, 330, RIGHT, 330, INK)]
    for percent in (0, *GROW, *PRUNE, 100):
        x = _at(percent)
        parts += [
            _line(x, 330, x, 335, INK),
            _text(x, 350, f"{percent} %", 12, FAINT, "middle"),
        ]
    for percent in (*GROW, *PRUNE):
        color = BLUE if percent in GROW else RED
        parts.append(_line(_at(percent), 52, _at(percent), 330, color, "4 4"))
    names = (
        (_at(20), "growth checks", BLUE, "middle"),
        (_at(40), "prune check", RED, "middle"),
        (_at(80), "restore? then prune check", RED, "middle"),
    )
    parts += [_text(x, 24, name, 14, color, anchor, bold=True) for x, name, color, anchor in names]
    parts += [
        _text(_at(20), 42, "double layers short of rank", 11, FAINT, "middle"),
        _text(_at(40) + 4, 42, "least important first", 11, FAINT, "middle"),
        _text(_at(80), 42, "as much as held-out rows allow", 11, FAINT, "middle"),
        _text(LEFT - 24, 350, "steps", 12, FAINT, "end"),
    ]
    return parts


def _learning_rate() -> list[str]:
    half = WARMUP + 0.8 * (100 - WARMUP)
    points = ((0, 0), (WARMUP, 1), (half, 0.5), (100, 0))
    path = " ".join(f"{_at(x):.1f},{118 - 50 * y:.1f}" for x, y in points)
    return [
        _text(LEFT - 14, 100, "learning rate", 13, INK, "end"),
        f'<polyline points="{path}" fill="none" stroke="{INK}" stroke-width="2"/>',
        _text(_at(60), 112, "two-phase: to half the peak, then to zero", 11, FAINT, "middle"),
    ]


def _held_out(rows: str) -> list[str]:
    end = _at(PRUNE[1])
    return [
        _text(LEFT - 14, 154, "held-out rows", 13, INK, "end"),
        f'<rect x="{LEFT}" y="138" width="{end - LEFT}" height="24" rx="3" fill="#e8eef5"/>',
        _text(_at(60), 154, f"{rows} rows judge each proposal", 12, INK, "middle"),
        f'<rect x="{end + 2}" y="138" width="{RIGHT - end - 2}" height="24" rx="3" fill="#f3f3f3"/>',
        _text(_at(90), 154, "then trained on", 12, FAINT, "middle"),
    ]


def _components(start: int, middle: int, end: int) -> list[str]:
    """Return the steps of the number of components, on a logarithmic scale."""

    def height(count: int) -> float:
        return 140 * math.log(count / 10) / math.log(600 / 10)

    parts = [
        _text(LEFT - 14, 232, "components", 13, INK, "end"),
        _text(LEFT - 14, 248, "(log scale)", 11, FAINT, "end"),
    ]
    for left, right, count in ((0, PRUNE[0], start), (*PRUNE, middle), (PRUNE[1], 100, end)):
        label = (max(left, GROW[-1]) + right) / 2
        h = height(count)
        parts += [
            f'<rect x="{_at(left):.1f}" y="{330 - h:.1f}" width="{_at(right) - _at(left):.1f}" height="{h:.1f}" fill="#f0c4b8"/>',
            _line(_at(left), 330 - h, _at(right), 330 - h, RED, width=2),
            _text(_at(label), 330 - h + 20, f"{count}", 15, INK, "middle", bold=True),
        ]
    parts.append(_text(_at(100), 322, "sorted by importance", 10, FAINT, "end"))
    return parts


def _pattern(x: float, y: float, title: str, ranks: Mapping[str, int]) -> list[str]:
    """Return the ranks of the encoder's layers as a table of shades."""
    parts = [_text(x, y - 18, title, 13, INK, bold=True)]
    parts += [
        _text(x + CELL_X * (i + 0.5), y - 3, name, 10, FAINT, "middle") for i, name in enumerate(MATRICES)
    ]
    for layer in range(LAYERS):
        top = y + 2 + CELL_Y * layer
        parts.append(_text(x - 8, top + 14, f"layer {layer + 1}", 10, FAINT, "end"))
        for i, name in enumerate(MATRICES.values()):
            rank = ranks[f"bert.encoder.layer.{layer}.{name}"]
            parts += _cell(x + CELL_X * i, top, rank)
    top = y + 2 + CELL_Y * LAYERS
    parts.append(_text(x - 8, top + 14, "pooler", 10, FAINT, "end"))
    return parts + _cell(x, top, ranks["bert.pooler.dense"])


def _cell(x: float, y: float, rank: int) -> list[str]:
    shade = math.log2(rank + 1) / math.log2(START + 1)
    red, green, blue = (round(255 + shade * (dark - 255)) for dark in (204, 51, 17))
    ink = "white" if shade > 0.7 else INK if rank else LINE
    return [
        f'<rect x="{x}" y="{y}" width="{CELL_X - 2}" height="{CELL_Y - 2}" rx="2" '
        f'fill="rgb({red},{green},{blue})" stroke="#e4e4e4"/>',
        _text(x + CELL_X / 2 - 1, y + 13, f"{rank}", 11, ink, "middle"),
    ]


def _line(x1: float, y1: float, x2: float, y2: float, color: str, dashes: str = "", width: float = 1) -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" '
        f'stroke-width="{width}"{dashed}/>'
    )


def _text(
    x: float, y: float, text: str, size: int, color: str, anchor: str = "start", bold: bool = False
) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{color}" text-anchor="{anchor}"{weight}>'
        f"{escape(text)}</text>"
    )


if __name__ == "__main__":
    main()
