"""Every command, registered with the application."""

from rankwise.cli import comparing, looking, measuring, trained, training
from rankwise.cli.app import app, main

__all__ = ["app", "comparing", "looking", "main", "measuring", "trained", "training"]
