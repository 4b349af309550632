"""Draw docs/images/architecture.svg from the imports in src, and list the packages in docs/architecture.md.

python studies/figures/architecture.py

An arrow that follows from others is left out: if A imports B and B imports C, no arrow goes from A to C.
"""

import ast
import textwrap
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

import grimp
import networkx as nx

from stored import DOCS, IMAGES, ROOT, replace_between

SOURCE = ROOT / "src" / "rankwise"
PAGE, IMAGE = DOCS / "architecture.md", IMAGES / "architecture.svg"
BEGIN = "<!-- python studies/figures/architecture.py -->"

BASE = "modules that all use"
"""Stands for those of the lowest layer."""
BASE_DOC = "The run folder, files, settings, downloads, hardware, random numbers, errors."

WIDTH, BOX, GAP, HEIGHT, DOWN = 960, 420, 24, 64, 34
"""Of the drawing; of a box and between two; of a box and between two rows."""
INK, FAINT, FILL, EDGE, RED = "#222222", "#666666", "#eef3f8", "#4477aa", "#cc3311"


@dataclass(frozen=True)
class Package:
    """A package of src/rankwise, or one of its own modules above the lowest layer."""

    name: str
    summary: str
    modules: tuple[str, ...]


@dataclass(frozen=True)
class Imports:
    """Which package imports which.

    Attributes:
        packages: by name.
        down: pairs (importer, imported) that the layers allow.
        up: pairs that they don't.
        modules: how many modules there are.
        lines: how many imports of one module by another.
    """

    packages: dict[str, Package]
    down: set[tuple[str, str]]
    up: set[tuple[str, str]]
    modules: int
    lines: int

    @property
    def arrows(self) -> list[tuple[str, str]]:
        """The allowed imports that don't follow from others."""
        return sorted(nx.transitive_reduction(nx.DiGraph(sorted(self.down))).edges)

    @property
    def rows(self) -> list[list[str]]:
        """Packages from the top down: each one row below the lowest that imports it."""
        graph = nx.DiGraph(sorted(self.down))
        return [sorted(row) for row in nx.topological_generations(graph)]


def main() -> None:
    imports = read()
    IMAGE.write_text(drawing(imports), encoding="utf-8")
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), imports), encoding="utf-8")
    print(
        f"{len(imports.packages)} packages in {len(imports.rows)} rows, {len(imports.down) + len(imports.up)} arrows between them "
        f"({len(imports.arrows)} drawn, {len(imports.up)} upwards); {imports.modules} modules, {imports.lines} imports."
    )


def read() -> Imports:
    """Read the packages and their imports from src, and the layers from pyproject.toml."""
    layers = _layers()
    order = {name: i for i, layer in enumerate(layers) for name in layer}
    base = set(layers[-1])
    graph = grimp.build_graph("rankwise", cache_dir=None)
    pairs, lines = set(), 0
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            lines += 1
            pairs.add((_top(module), _top(imported)))
    pairs = {(a, b) for a, b in pairs if a != b and a in order and b in order and a != "__main__"}
    named = {(BASE if a in base else a, BASE if b in base else b) for a, b in pairs}
    up = {(a, b) for a, b in pairs if order[a] > order[b]}
    packages = {
        name: Package(name, _summary(name), _modules(name)) for layer in layers[:-1] for name in layer
    }
    packages[BASE] = Package(BASE, BASE_DOC, tuple(sorted(base)))
    del packages["__main__"]
    return Imports(packages, {(a, b) for a, b in named - up if a != b}, up, len(graph.modules), lines)


def drawing(imports: Imports) -> str:
    """Return the SVG: a box a package, an arrow from each to those that it imports."""
    place: dict[str, tuple[float, float]] = {}
    for i, row in enumerate(imports.rows):
        wide = len(row) * BOX + (len(row) - 1) * GAP
        for j, name in enumerate(row):
            place[name] = ((WIDTH - wide) / 2 + j * (BOX + GAP) + BOX / 2, GAP + i * (HEIGHT + DOWN))
    height = GAP + len(imports.rows) * (HEIGHT + DOWN) - DOWN + GAP
    parts = [f'<rect width="{WIDTH}" height="{height}" rx="8" fill="white"/>']
    parts += [_arrow(place[a], place[b], EDGE) for a, b in imports.arrows]
    parts += [_arrow(place[a], place[b], RED) for a, b in sorted(imports.up)]
    for name, (x, y) in place.items():
        parts += _box(imports.packages[name], x, y)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" role="img">\n'
        f"<title>The packages of rankwise: each imports only what stands below it</title>\n"
        f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{EDGE}"/></marker></defs>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def with_table(page: str, imports: Imports) -> str:
    """Return the page with the list of packages between its markers."""
    lines = ["| package | what it is for | modules |", "|---|---|---|"]
    for package in (imports.packages[name] for row in imports.rows for name in row):
        modules = ", ".join(f"`{module}`" for module in package.modules)
        lines.append(f"| **{package.name}** | {package.summary} | {modules} |")
    return replace_between(page, BEGIN, "\n".join(lines) + "\n")


def _layers() -> list[list[str]]:
    """The layers that import-linter holds, top first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (layers,) = (contract["layers"] for contract in settings["contracts"] if contract["type"] == "layers")
    return [layer.replace("|", " ").replace(":", " ").split() for layer in layers]


def _top(module: str) -> str:
    return [*module.split("."), "__init__"][1]


def _summary(name: str) -> str:
    """The first sentence of a package's docstring."""
    file = SOURCE / name / "__init__.py" if (SOURCE / name).is_dir() else SOURCE / f"{name}.py"
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).split(". ")[0].rstrip(".") + "."


def _modules(name: str) -> tuple[str, ...]:
    folder = SOURCE / name
    if not folder.is_dir():
        return (name,)
    files = (file.stem for file in folder.glob("*.py") if file.stem != "__init__")
    folders = (f"{file.parent.name}/" for file in folder.glob("*/__init__.py"))
    return tuple(sorted([*files, *folders]))


def _box(package: Package, x: float, y: float) -> Iterable[str]:
    yield (
        f'<rect x="{x - BOX / 2:g}" y="{y:g}" width="{BOX}" height="{HEIGHT}" rx="6" fill="{FILL}" stroke="{EDGE}"/>'
    )
    yield f'<text x="{x:g}" y="{y + 20:g}" font-size="15" font-weight="bold" fill="{INK}" text-anchor="middle">{package.name}</text>'
    for i, line in enumerate(
        textwrap.wrap(package.summary.replace("`", ""), 68, max_lines=2, placeholder=" …")
    ):
        yield f'<text x="{x:g}" y="{y + 38 + 15 * i:g}" font-size="12" fill="{FAINT}" text-anchor="middle">{escape(line)}</text>'


def _arrow(start: tuple[float, float], end: tuple[float, float], colour: str) -> str:
    """An arrow between rows, or beside the boxes where there are rows between."""
    (x1, y1), (x2, y2) = start, end
    if y2 - y1 > HEIGHT + DOWN:
        x1, x2, y1, y2 = x1 - BOX / 2, x2 - BOX / 2 - 1, y1 + HEIGHT / 2, y2 + HEIGHT / 2
        left = min(x1, x2) - 30
        path = f"M{x1:g} {y1:g} C{left:g} {y1:g} {left:g} {y2:g} {left + 30:g} {y2:g} L{x2:g} {y2:g}"
    else:
        y1, y2 = (y1 + HEIGHT, y2 - 1) if y1 < y2 else (y1, y2 + HEIGHT + 1)
        middle = (y1 + y2) / 2
        path = f"M{x1:g} {y1:g} C{x1:g} {middle:g} {x2:g} {middle:g} {x2:g} {y2:g}"
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5" marker-end="url(#tip)"/>'


if __name__ == "__main__":
    main()
