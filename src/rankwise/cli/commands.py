"""Every command, registered with the application."""

from rankwise.cli import measuring, trained, training
from rankwise.cli.app import app, main

__all__ = ["app", "main", "measuring", "trained", "training"]
