"""How a script of the workflow runs: all that it says goes to its log; an error is told on the console too."""

import contextlib
import logging
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from proxycast.options import InputError


@contextlib.contextmanager
def job(log: Path | str) -> Iterator[None]:
    """Send stderr (log records, progress bars, warnings) to the file `log`; end the process with status 1 on an error.

    Bad input is told in its own words, without a traceback; for any other error the traceback stands in the log.
    """
    console = sys.stderr
    with open(log, "w", buffering=1, encoding="utf8") as file, contextlib.redirect_stderr(file):
        logging.basicConfig(stream=file, level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
        try:
            yield
        except Exception as error:
            message = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            if not isinstance(error, InputError):
                traceback.print_exc(file=file)
            for stream in (file, console):
                print(f"error: {message}", file=stream)
            sys.exit(1)
