"""Ctrl-C, SIGTERM and SIGHUP: work ends at once, a training after its step, when its state can be saved.

signal ─► `Interrupted` is raised ─► the command says what was saved, and exits with 128 + the signal's number
       ├► in `deferred()`: kept until the work asks for it; a second signal raises `Interrupted` at once
       └► raised where Python can't raise (a weak reference's callback, `__del__`): raised again a moment later
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""What asks a process to end."""


class Interrupted(KeyboardInterrupt):
    """The process was asked to end. Its text, if it has one, says what was saved."""


_heard: signal.Signals | None = None
_deferred = False


@contextlib.contextmanager
def listening(signals: Sequence[signal.Signals] = SIGNALS, *, to_the_end: bool = False) -> Iterator[None]:
    """Have signals raise `Interrupted` in a `with` block. Signals that the process was started to ignore stay ignored.

    Outside the main thread, which alone may set handlers, nothing changes.

    Args:
        signals: to handle.
        to_the_end: the process ends with the block, so nothing is put back.
    """
    global _heard
    _heard = None
    main = threading.current_thread() is threading.main_thread()
    handled = [one for one in signals if signal.getsignal(one) is not signal.SIG_IGN] if main else []
    before, hook = [(one, signal.signal(one, _hear)) for one in handled], sys.unraisablehook
    if main:
        sys.unraisablehook = lambda lost: _again() if isinstance(lost.exc_value, Interrupted) else hook(lost)
    try:
        yield
    finally:
        if main and not to_the_end:
            sys.unraisablehook = hook
            for one, handler in before:
                signal.signal(one, handler)


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Keep a first signal from raising in a `with` block; yield a function that returns whether there was one."""
    global _deferred
    _deferred = True
    try:
        yield lambda: _heard is not None
    finally:
        _deferred = False


def heard() -> signal.Signals | None:
    """Return the signal that this process was asked to end by, None if there was none."""
    return _heard


def words() -> str:
    """Return `Interrupted`, with the signal's name where it was no Ctrl-C."""
    return "Interrupted" if _heard is None or _heard is signal.SIGINT else f"Interrupted by {_heard.name}"


def exit_code() -> int:
    """Return the exit code that tells a shell of the signal: 130 after Ctrl-C."""
    return 128 + (signal.SIGINT if _heard is None else _heard)


def _hear(number: int, frame: FrameType | None) -> None:
    global _heard
    again = _heard is not None
    _heard = signal.Signals(number)
    if not _deferred or again:
        raise Interrupted


def _again() -> None:
    """Raise `Interrupted` again in a moment."""
    main = threading.get_ident()

    def send() -> None:
        global _heard
        number, _heard = _heard, None  # counts as a first signal
        if number is None:
            return
        if hasattr(signal, "pthread_kill"):  # to the main thread, so that it doesn't sleep on
            signal.pthread_kill(main, number)
        else:
            signal.raise_signal(number)

    timer = threading.Timer(0.01, send)
    timer.daemon = True
    timer.start()
