"""Signals that ask a process to end, in the process of the test."""

import signal
import sys
import time

import pytest

from rankwise.runs import interruption


class _Raising:
    """An object whose end sends the process a signal: what is raised there Python prints, and goes on."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.001)


def test_an_interruption_that_python_swallows_comes_a_moment_later(capfd):
    def work() -> None:
        _Raising()
        signal.pause()

    with interruption.listening((signal.SIGTERM,)), pytest.raises(interruption.Interrupted):
        work()
    assert interruption.heard() is signal.SIGTERM
    assert capfd.readouterr().err == ""


def test_it_is_then_the_first_signal_so_that_work_that_defers_it_can_end_its_step():
    with interruption.listening((signal.SIGTERM,)):
        _Raising()
        with interruption.deferred() as interrupted:
            until = time.monotonic() + 10
            while not interrupted() and time.monotonic() < until:
                time.sleep(0.01)
            time.sleep(0.05)  # were it a second one, it would be raised here
            assert interrupted()


def test_other_errors_that_python_swallows_are_told_as_before(monkeypatch):
    class Faulty:
        def __del__(self) -> None:
            raise ValueError("not an interruption")

    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: told.append(str(lost.exc_value)))
    with interruption.listening((signal.SIGTERM,)):
        Faulty()
    assert told == ["not an interruption"]
