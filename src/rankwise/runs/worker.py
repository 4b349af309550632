"""`python -m rankwise.runs.worker FOLDER`: one run of a grid in its own process. It prints events to stdout, a line of JSON each."""

import sys

from rankwise.errors import RankwiseError
from rankwise.runs.grid import die_with_parent


def main() -> None:
    """Runs the folder that the command line names."""
    die_with_parent()
    from rankwise.run_folder import RunFolder
    from rankwise.runs.events import to_line
    from rankwise.runs.run import execute  # importing torch takes seconds, in which the parent may end

    try:
        execute(RunFolder(sys.argv[1]), lambda event: print(to_line(event), flush=True))
    except RankwiseError as error:
        print(to_line({"event": "error", "message": str(error)}), flush=True)
        sys.exit(2)
    except Exception as error:  # the parent reports it; the traceback goes to the run's log
        first_line = f"{type(error).__name__}: {error}".splitlines()[0]
        print(to_line({"event": "error", "message": first_line}), flush=True)
        raise


if __name__ == "__main__":
    main()
