"""Draw docs/images/compare.svg, the table of a grid as the terminal shows it: `python studies/figures/compare_table.py runs/compare`."""

import io
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from rankwise.report import collect
from rankwise.report.table import table
from stored import IMAGES

WIDTH = 118
FRAME = """<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
font-size: {char_height}px; line-height: {line_height}px; }} {styles}</style>
<defs>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})">{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g>
</svg>
"""


def main() -> None:
    document = collect(Path(sys.argv[1]))
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text("$ make compare\n", style="bold green"))
    console.print(table(document))
    console.print()
    for note in document.notes[:3]:
        console.print(Text(note), style="dim")
    target = IMAGES / "compare.svg"
    target.write_text(
        console.export_svg(title="rankwise", theme=MONOKAI, code_format=FRAME), encoding="utf-8"
    )
    print(f"Written: {target}")


if __name__ == "__main__":
    main()
