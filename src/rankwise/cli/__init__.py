"""The commands: arguments in, one call, result out. Everything they decide lives in the rooms they call."""

from rankwise.cli import measuring, trained, training
from rankwise.cli.app import app, main

__all__ = ["app", "main", "measuring", "trained", "training"]
