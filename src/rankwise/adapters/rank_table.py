"""Ranks as a small table: layers from left to right, a row for each kind of module.

layer   0   1   2   3
query   ·   2   1   4
value   3   4   4   9
"""

import re
from collections.abc import Mapping


def place(path: str) -> tuple[str, int]:
    """Split a path into the kind of a module and the layer it is in (0 where none is named).

    `bert.encoder.layer.3.attention.self.query` → (`query`, 3).
    """
    numbers = re.findall(r"\.(\d+)\.", path)
    return path.rpartition(".")[2], int(numbers[0]) if numbers else 0


def name(path: str) -> str:
    """Write a path as `query, layer 3`."""
    kind, layer = place(path)
    return f"{kind}, layer {layer}"


def draw(ranks: Mapping[str, int]) -> list[str]:
    """Draw a table in lines of text.

    The first line numbers the layers; `·` is rank 0. Where a layer has two modules of one kind, rows are named by their paths.
    """
    kinds = [place(path)[0] for path in ranks]
    places = {path: place(path) for path in ranks}
    if len(set(places.values())) < len(places):
        kinds = [re.sub(r"\.\d+\.", ".", f".{path}").strip(".") for path in ranks]
        places = {path: (kind, place(path)[1]) for path, kind in zip(ranks, kinds, strict=True)}
    layers = sorted({layer for _, layer in places.values()})
    table = {kind: dict.fromkeys(layers, "") for kind in dict.fromkeys(kinds)}
    for path, rank in ranks.items():
        kind, layer = places[path]
        table[kind][layer] = str(rank) if rank else "·"
    head = max(len("layer"), *map(len, table)) if table else 0
    wide = max([2, *(len(cell) for row in table.values() for cell in row.values())]) + 1
    lines = ["layer".ljust(head) + "".join(str(layer).rjust(wide) for layer in layers)]
    for kind, row in table.items():
        lines.append(kind.ljust(head) + "".join(cell.rjust(wide) for cell in row.values()))
    return lines
