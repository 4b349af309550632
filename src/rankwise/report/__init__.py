"""What a grid found: a table for the terminal, the same as `report.md`, and every run's figures as `results.parquet`."""

from rankwise.report.document import Document, Row, collect
from rankwise.report.files import write
from rankwise.report.table import show, to_json

__all__ = ["Document", "Row", "collect", "show", "to_json", "write"]
