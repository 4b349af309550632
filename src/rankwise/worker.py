"""`python -m rankwise.worker FOLDER`: one run of a grid in a process of its own, telling its parent what happens on stdout."""

import sys

from rankwise.errors import RankwiseError
from rankwise.grid import die_with_parent


def main() -> None:
    die_with_parent()
    from rankwise.run import describe, execute  # after the watch has begun: torch takes seconds to import
    from rankwise.store import RunFolder

    try:
        execute(RunFolder(sys.argv[1]), lambda event: print(describe(event), flush=True))
    except RankwiseError as error:
        print(describe({"event": "error", "message": str(error)}), flush=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
