"""The commands. Each reads its arguments, calls the library once, and shows the result."""

import sys
from typing import NoReturn

from rankwise.runs import interruption

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 done, 2 an error in the input or the machine, 128 + signal interrupted, 1 a defect of rankwise."""
    with interruption.listening(to_the_end=arguments is None):
        try:
            from rankwise.cli import commands  # takes a moment, in which Ctrl-C may come
        except KeyboardInterrupt:
            print(f"{interruption.words()} before anything began.", file=sys.stderr)
            sys.exit(interruption.exit_code())
        commands.main(arguments)
