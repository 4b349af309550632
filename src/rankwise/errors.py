"""Errors for the person at the keyboard: one sentence says what was found, where, and what to do.

An argument in a message is written as in Python, between backticks: `` `lr=` ``, `` `memory="fast"` ``. The command line shows it as a
flag (`--lr`, `--memory fast`; see `cli.parameters.in_flags`).
"""

import errno
import os
import re
from collections.abc import Iterable
from difflib import get_close_matches


class RankwiseError(Exception):
    """An error in the input. The command line prints its message alone and exits with code 2."""


class ProcessLost(Exception):
    """A training runs in several processes, and another of them has ended."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'sst2'? Known: …` for an unknown name, to be put behind the sentence that refuses it."""
    known = sorted(known)
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    guess = f" Did you mean {close[0]!r}?" if close else ""
    return f"{guess} Known: {', '.join(known)}."


def first_line(why: object) -> str:
    """Return the first line of an error's message, to be quoted in a sentence; the error's name where it has no message."""
    return (str(why).strip() or type(why).__name__).splitlines()[0]


NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What only writing meets: no space, a quota, a limit on a file's size, a read-only file system."""
OS_ERROR = re.compile(r"\(os error (\d+)\)|\[errno (\d+)\]", re.IGNORECASE)
"""How safetensors and pyarrow write the number of a system's error in their own messages."""


def machine_fault(error: BaseException) -> str | None:
    """Return a sentence for an error of the machine: a full disk, a file that may not be opened, too little memory.

    Returns:
        None for any other error.
    """
    said = str(error)
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in said
    ):
        return (
            "This machine has too little memory for this. Set a limit with `memory=`, or give a smaller `batch_size=` or "
            "`max_length=`."
        )
    found = OS_ERROR.search(said)
    number = error.errno if isinstance(error, OSError) else None
    if number is None and found is not None:
        number = int(found[1] or found[2])
    if number is None:
        return f"A file can't be used: {' '.join(said.split())}." if isinstance(error, OSError) else None
    file = getattr(error, "filename", None)
    what = f"{'A file' if file is None else file} can't be {'written' if number in NOT_WRITABLE else 'used'}"
    remedy = " Free some space there, or name another folder." if number in NOT_WRITABLE else ""
    return f"{what}: {os.strerror(number)}.{remedy}"
