"""`python -m rankwise.runs.worker FOLDER`: one run of a grid in a process of its own, telling its parent what happens on stdout."""

import sys

from rankwise.errors import RankwiseError
from rankwise.runs.grid import die_with_parent


def main() -> None:
    die_with_parent()
    from rankwise.run_folder import RunFolder
    from rankwise.runs.run import (  # after the watch has begun: torch takes seconds to import
        describe,
        execute,
    )

    try:
        execute(RunFolder(sys.argv[1]), lambda event: print(describe(event), flush=True))
    except RankwiseError as error:
        print(describe({"event": "error", "message": str(error)}), flush=True)
        sys.exit(2)
    except Exception as error:  # the parent says it; the traceback goes to the run's log
        first_line = f"{type(error).__name__}: {error}".splitlines()[0]
        print(describe({"event": "error", "message": first_line}), flush=True)
        raise


if __name__ == "__main__":
    main()
