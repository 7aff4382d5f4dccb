"""The process of one copy of an engine: `python -m proxycast.extraction.engines.engine_process DESCRIPTOR`.

The descriptor is one end of `data_parallel`'s pipe. The process ends with its parent, whatever that dies of.
"""

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from proxycast import processes
from proxycast.config.extraction import ExtractionOptions
from proxycast.extraction.engines.base import Engine
from proxycast.extraction.engines.factory import make_engine
from proxycast.options import InputError


def serve(pipe: Connection) -> None:
    """Answer each (method, arguments) with (None, result) or (kind of error, message), until the pipe is closed."""
    engine: Engine | None = None

    def start(options: ExtractionOptions, threads: int, level: int, parent: int) -> None:
        nonlocal engine
        import torch

        threading.Thread(target=_end_with, args=(parent, processes.start_of(parent)), daemon=True).start()
        logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
        torch.set_num_threads(threads)
        engine = make_engine(options)

    def load(folder: Path) -> int:
        engine.load(folder)
        return engine.vocabulary

    while True:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            break
        pipe.send(_answered({"start": start, "load": load}.get(method, partial(_call, engine, method)), arguments))
    if engine is not None:
        engine.close()


def _call(engine: Engine, method: str, *arguments: object) -> object:
    return getattr(engine, method)(*arguments)


def _answered(method: Callable, arguments: tuple) -> tuple[type[Exception] | None, object]:
    try:
        return None, method(*arguments)
    except InputError as error:
        return InputError, str(error)
    except Exception:
        return RuntimeError, f"in a copy of the engine:\n{traceback.format_exc()}"


def _end_with(parent: int, start: int | None) -> None:
    """The pipe tells a copy that waits; one that computes looks whether its parent is still there."""
    while start is not None and processes.start_of(parent) == start:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
