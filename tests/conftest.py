"""Annotations are checked wherever tests run them, and what a command tells a script."""

import json
import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

import runtime_types

# Small tensors gain nothing from more, and tests run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts what runs in the background deaf to Ctrl-C, and what tests interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A deadline would fail a test because the machine is busy. `--hypothesis-profile thorough` searches longer.
settings.register_profile("quick", deadline=None, max_examples=25)
settings.register_profile("thorough", deadline=None, max_examples=200)
settings.register_profile("exhaustive", deadline=None, max_examples=2000)
settings.load_profile("quick")

runtime_types.install("rankwise")

SLOW = Path(__file__).with_name("slow.txt")
"""Tests that took 0.4 seconds or more when `make slow-tests` was run last; `make check` leaves them out as it does those marked slow."""


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items):
    listed = set(SLOW.read_text().splitlines())
    for item in items:
        if item.nodeid in listed:
            item.add_marker("slow")


@pytest.fixture
def told(capfd):
    """Runs a command that must end well, and returns the JSON object that it prints."""

    def call(*arguments: object) -> dict:
        from rankwise.cli import main

        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([*map(str, arguments), "--json"])
        captured = capfd.readouterr()
        assert stopped.value.code == 0, captured.err
        return json.loads(captured.out)

    return call
