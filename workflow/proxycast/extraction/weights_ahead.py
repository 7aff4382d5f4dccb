"""Weights are read before they are needed: by a thread, while the model in front of them runs."""

from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from threading import Semaphore, Thread

from proxycast.weights.model_folder import model_fingerprint

AHEAD = 1  # checkpoints; what is read of more may be gone from memory when it is needed


class WeightsAhead:
    """The fingerprint of each checkpoint's model, made in the order of `folders` (checkpoint -> folder).

    To make it is to read all weights, which then lie in the page cache when an engine loads them. A daemon: who is
    interrupted does not wait until some large file is read.
    """

    def __init__(self, folders: Mapping[str, Path]):
        self._folders = folders
        self._found: dict[str, Future[str]] = {checkpoint: Future() for checkpoint in folders}
        self._allowed = Semaphore(AHEAD)
        Thread(target=self._read, name="weights ahead", daemon=True).start()

    def __contains__(self, checkpoint: str) -> bool:
        return checkpoint in self._folders

    def begin(self, checkpoint: str) -> None:
        """The checkpoint is about to be loaded: its weights and those of the next one are read. In order, each once.

        Raises the error of `model_fingerprint` if the weights have been read by now, before an engine is given them.
        """
        if checkpoint in self:
            self._allowed.release()
            if self._found[checkpoint].done():
                self._found[checkpoint].result()

    def fingerprint(self, checkpoint: str) -> str:
        """`model_fingerprint` of a checkpoint that has begun, whose error it raises; waits until it is there."""
        return self._found[checkpoint].result()

    def _read(self) -> None:
        for checkpoint, folder in self._folders.items():
            self._allowed.acquire()
            try:
                self._found[checkpoint].set_result(model_fingerprint(folder))
            except BaseException as error:
                self._found[checkpoint].set_exception(error)
