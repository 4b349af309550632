"""The commands. Each reads its arguments, calls the library once, and shows the result."""

import sys
from typing import NoReturn

from rankwise.runs import interruption

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 done, 2 an error in the input or the machine, 128 + signal interrupted, 1 a defect of rankwise."""
    try:
        with interruption.listening(to_the_end=arguments is None):
            with interruption.deferred() as interrupted:  # this takes a moment, and isn't left in its middle
                from rankwise.cli import commands
            if interrupted():
                raise interruption.Interrupted
            commands.main(arguments)
    except KeyboardInterrupt:  # before a command began, or while it ended
        print(f"{interruption.words()}.", file=sys.stderr)
        sys.exit(interruption.exit_code())
