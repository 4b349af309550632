"""Other libraries' warnings, log lines and output are kept off the terminal."""

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Say nothing for a block of code."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(None):
            yield
    finally:
        logging.disable(logging.NOTSET)
