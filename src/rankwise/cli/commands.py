"""Every command, registered with the application."""

from rankwise.cli import looking, measuring, trained, training
from rankwise.cli.app import app, main

__all__ = ["app", "looking", "main", "measuring", "trained", "training"]
