"""Reports on a grid of runs: a table for the terminal, a self-contained page, and the same as Markdown, JSON and Parquet.

run folders ─► cells (task × method, by seed) ─► rows, curves, rank patterns, examples ─► Document ─► table, page, files
"""

from rankwise.report.document import Document, collect
from rankwise.report.files import check_page, write, write_look
from rankwise.report.row import Row
from rankwise.report.table import show, show_progress, to_json
from rankwise.report.watch import watch

__all__ = [
    "Document",
    "Row",
    "check_page",
    "collect",
    "show",
    "show_progress",
    "to_json",
    "watch",
    "write",
    "write_look",
]
