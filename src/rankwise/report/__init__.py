"""What a grid found: a table for the terminal, one self-contained page (`report.html`), the same as text (`report.md`), and its figures
for machines (`report.json`, `results.parquet`)."""

from rankwise.report.document import Document, collect
from rankwise.report.files import write
from rankwise.report.row import Row
from rankwise.report.table import show, show_progress, to_json
from rankwise.report.watch import watch

__all__ = ["Document", "Row", "collect", "show", "show_progress", "to_json", "watch", "write"]
