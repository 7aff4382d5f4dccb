"""The layers of a model as compiled code, which fuses what lies between the matrix products: norms, rotary, casts.

Layers of a kind share their code: weights, and the sizes of a batch, are what it is called with. So a sweep compiles
once, and weights may be loaded into the module. Compiled layers count only after a proof: logits as without, for texts
of several widths, alone and in batches, and all that `reading.prove` has found. Where they cannot be compiled, or
differ, there is one warning, and the model runs as it is.

torch's compiler (TorchInductor) keeps its code in TORCHINDUCTOR_CACHE_DIR, else in the folder for temporary files; jobs
may share it.
"""

import logging
import os
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Literal, TypeVar

import torch

from proxycast.extraction.engines.modules.model_head import body_of
from proxycast.extraction.engines.modules.reading import NotReadable, Reader, Sharing, prove
from proxycast.options import one_line

log = logging.getLogger(__name__)

BACKEND = "inductor"
# Assumed, for the choice of `auto`. On an H200 a Llama of 24 layers of 2048 took about 1.2e-5 s a token, nearly half of
# it between the matrix products; compiling may save two thirds of that, 4e-6 s. It grows with layers x hidden size.
SECONDS_TO_COMPILE = 30.0
SECONDS_SAVED = 8e-11  # per token, layer and unit of the hidden state
WIDEST = 448  # tokens of the texts that are compared
MOST_RECOMPILED = 256  # of all kinds of models with layers of one class, in one process; torch would stop at 8
MOST_GRAPHS = 12  # of one kind of model: a layer is one graph, or some, each for one text and for several

# Of the tracer. An error is told: elsewhere it may be hidden, which would leave layers uncompiled without a word.
SETTINGS = dict(recompile_limit=MOST_RECOMPILED, allow_unspec_int_on_nn_module=True, suppress_errors=False)

Outcome = TypeVar("Outcome")


class TooManyGraphs(RuntimeError):
    """The layers are compiled again and again."""


class Compiled:
    """How the layers of one kind of model are run: as they are, until `begin` has compiled and proven them."""

    def __init__(self, when: Literal["auto", "always", "never"] = "never", device: torch.device | None = None):
        self.when, self._device = when, device
        self.is_on, self.graphs = False, 0
        self._was_tried, self._has_warned, self._most_graphs = False, False, MOST_GRAPHS
        self._layers: list[weakref.ref[torch.nn.Module]] = []  # the memory of the module may be freed
        self._functions: dict[type, Callable] = {}
        self._model = ""

    def attach(self, model: torch.nn.Module) -> None:
        """Make the layers of `model`, a module of the kind, those that are run compiled."""
        self._layers = [weakref.ref(layer) for layer in layers_of(body_of(model) or model)]
        self._model = type(model).__name__

    def pays(self, model: torch.nn.Module, tokens: int) -> bool:
        """Whether to compile the layers of `model` if `tokens` are about to be read by it and others of its kind."""
        if self.when != "auto" or self._device.type != "cuda" or model.is_custom_code():
            return self.when == "always"
        hidden = getattr(model.config.get_text_config(), "hidden_size", 0)
        return tokens * len(self._layers) * hidden * SECONDS_SAVED >= SECONDS_TO_COMPILE

    def begin(self, reader: Reader, sharing: Sharing, context: int) -> bool:
        """Compile the layers, once for a kind; whether they run compiled from now on.

        `reader` runs them; `sharing` was found without; `context`: most tokens that the model reads.
        """
        if self._was_tried:
            return False
        self._was_tried, began = True, time.monotonic()
        try:
            why = self._fault(reader, sharing, min(WIDEST, context)) if self._layers else "it has no list of layers"
        except Exception as error:  # of a library, or of memory: what stays is the model as it is
            why = one_line(error)
        if why and (self.is_on or not self._has_warned):
            self._stop(why)
        if self.is_on:
            took = time.monotonic() - began
            log.info(
                "%s: %d layers compiled, as %d graphs, in %.0f s", self._model, len(self._layers), self.graphs, took
            )
        return self.is_on

    def _fault(self, reader: Reader, sharing: Sharing, widest: int) -> str | None:
        """Compile the layers for `reader`: why they must not be used; None if they may. They stay on."""
        if os.environ.get("TORCHDYNAMO_DISABLE") == "1":
            return "TORCHDYNAMO_DISABLE is set, as for vLLM on a CPU"
        texts = [_texts(reader, 3, width) for width in [*_two_and_between(min(36, widest)), *_two_and_between(widest)]]
        texts += [_texts(reader, 1, width) for width in (2 * reader.half, widest)]
        plain = [reader.read(text) for text in texts]
        self.is_on = True
        for number, (text, expected) in enumerate(zip(texts, plain)):
            before, bound = self.graphs, reader.bound(expected)
            difference = float((reader.read(text) - expected).abs().max())
            if not self.is_on:
                return None  # `run` has said why
            if number in (2, 5) and self.graphs > before:
                return "it would be compiled anew for each width of a batch"
            if not difference <= bound:
                return f"logits differ by {difference:.2g}, and {bound:.2g} would be rounding"
        try:
            found, _ = prove(reader)
        except NotReadable as error:
            return str(error)
        if found.mixed_up_to < sharing.mixed_up_to or found.equal_lengths < sharing.equal_lengths:
            return "texts would change each other's numbers in a batch"
        self._most_graphs = 2 * self.graphs + 2  # some layers get a mask only for long texts
        return None if self.graphs else "its layers are not called as modules"

    def run(self, work: Callable[[], Outcome]) -> Outcome:
        """What `work`, a pass through the model, returns, with compiled layers if they are on.

        An error turns them off for good, and `work` is done without. Memory that does not suffice is no such error.
        """
        if not self.is_on:
            return work()
        try:
            with self._in_place():
                return work()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of the tracer, the compiler, a compiler of C++ that is not there, ...
            self._stop(one_line(error.inner_exception if hasattr(error, "inner_exception") else error))
        return work()

    def _stop(self, why: str) -> None:
        self.is_on, self._has_warned = False, True
        log.warning("%s: its layers run uncompiled, slower on a GPU: %s", self._model, why)

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """Within it each layer's `forward` is the compiled one."""
        import torch._dynamo

        changed = []
        with torch._dynamo.config.patch(**SETTINGS):
            try:
                for layer in filter(None, (found() for found in self._layers)):
                    if "forward" not in vars(layer):  # nobody else has put one there
                        vars(layer)["forward"] = MethodType(self._function(type(layer)), layer)
                        changed.append(layer)
                yield
            finally:
                for layer in changed:
                    del vars(layer)["forward"]

    def _function(self, kind: type[torch.nn.Module]) -> Callable:
        """The compiled `forward` of all layers of that class."""
        if kind not in self._functions:
            self._functions[kind] = torch.compile(kind.forward, backend=self._compile, dynamic=True)
        return self._functions[kind]

    def _compile(self, graph: torch.fx.GraphModule, inputs: list) -> Callable:
        from torch._dynamo import lookup_backend

        if self.graphs >= self._most_graphs:
            raise TooManyGraphs(f"its layers are {self.graphs} graphs already, and batches of other sizes need more")
        made = lookup_backend(BACKEND)(graph, inputs)
        self.graphs += 1  # only now: the tracer may have begun anew
        return made


def layers_of(body: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers of a model: the members of its largest list of modules; of the outer one, where a layer has lists."""
    lists = [part for part in body.modules() if isinstance(part, torch.nn.ModuleList) and len(part)]
    return list(max(lists, key=lambda part: sum(weight.numel() for weight in part.parameters()), default=[]))


def _two_and_between(widest: int) -> tuple[int, int, int]:
    """Two widths of texts up to `widest` tokens, and one between them, which needs no code of its own.

    Unless code is made for each width, as for a loop over tokens or chunks, which is unrolled: first of few tokens. All
    are odd: the tracer takes sizes that are equal for one and the same.
    """
    return tuple(width - 1 | 1 for width in (widest // 2, widest - 1, widest * 5 // 6))


def _texts(reader: Reader, count: int, width: int) -> torch.Tensor:
    """Token ids (count, width) of text."""
    parts = -(-width // reader.half)
    return reader.halves(count * parts).reshape(count, parts * reader.half)[:, :width]
