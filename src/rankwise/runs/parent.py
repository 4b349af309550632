"""What a run's process hears from its grid over standard input: that the machine is shared, or that the grid has ended."""

import os
import threading

SHARED = b"s"
"""Sent when another process begins to train on the same machine."""

_shared = threading.Event()


def die_with_parent() -> None:
    """Ends this process when its parent has ended in any way: the parent holds the other end of stdin."""

    def watch() -> None:
        while heard := os.read(0, 1024):  # not sys.stdin: a thread must not hold its lock when Python ends
            if SHARED in heard:
                _shared.set()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def shares_machine() -> bool:
    """Return whether another process has trained on this machine since this one was started."""
    return _shared.is_set()
