"""The commands. Each reads its arguments, calls the library once, and shows the result."""

from rankwise.cli import measuring, trained, training
from rankwise.cli.app import app, main

__all__ = ["app", "main", "measuring", "trained", "training"]
