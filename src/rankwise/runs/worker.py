"""`python -m rankwise.runs.worker FOLDER`: one run of a grid in its own process. It prints events to stdout, a line of JSON each.

SIGTERM, which a grid that is interrupted sends, ends it after its step. Ctrl-C reaches the whole group of processes; the grid hears it.
"""

import signal
import sys

from rankwise.errors import RankwiseError, machine_fault
from rankwise.runs import interruption
from rankwise.runs.parent import die_with_parent


def main() -> None:
    """Runs the folder that the command line names."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interruption.listening((signal.SIGTERM,)):
        die_with_parent()
        _run(sys.argv[1])


def _run(folder: str) -> None:
    from rankwise.runs.events import to_line

    try:
        from rankwise.run_folder import RunFolder
        from rankwise.runs.run import execute  # importing torch takes seconds, in which the parent may end

        execute(RunFolder(folder), lambda event: print(to_line(event), flush=True))
    except KeyboardInterrupt as interrupted:
        why = str(interrupted) or f"{interruption.words()} before its first step."
        print(to_line({"event": "error", "message": why}), flush=True)
        sys.exit(interruption.exit_code())
    except Exception as error:
        # the parent reports it; the traceback of a defect goes to the run's log
        why = str(error) if isinstance(error, RankwiseError) else machine_fault(error)
        why = why or f"{type(error).__name__}: {error}".splitlines()[0]
        print(to_line({"event": "error", "message": why}), flush=True)
        if isinstance(error, RankwiseError):
            sys.exit(2)
        raise


if __name__ == "__main__":
    main()
