"""The engine for a model that is in memory, as in the middle of its training. Nothing of the model is changed.

The forward passes, the batches and the proofs are those of the engine on `transformers`, and so are the numbers: those
of the checkpoint that is saved from the model, to the last bit, on the same device, with as many threads.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import torch

from proxycast.config.extraction import ExtractionOptions
from proxycast.extraction.engines.base import BATCH_TOKENS
from proxycast.extraction.engines.modules.model_head import head_by_config
from proxycast.extraction.engines.modules.reading import rope_reset
from proxycast.extraction.engines.transformers import TransformersEngine
from proxycast.extraction.shared_prompts import Family
from proxycast.options import InputError, one_line
from proxycast.solutions.tokenisation import ScoredSequence
from proxycast.weights.model_config import OTHER_HEADS, config_shape

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
# Where TF32 may be allowed: what the engine for folders turns off for good is turned off here for a while.
PRODUCTS = (
    *(torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn),
    *(torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv),
)


class InMemoryEngine(TransformersEngine):
    """`load` takes a module in the place of a folder. The first pass over a module proves how it reads a text."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", options: ExtractionOptions):
        # Without the parent's, which chooses the device and turns TF32 off for good.
        self.options, self._own_tokenizer = options, tokenizer
        self._given: torch.nn.Module | None = None
        self._part, self._parts = 0, 1
        self._let_go()

    def load(self, model: torch.nn.Module) -> None:
        """Make `model` the loaded one. Raises InputError for one whose next-token distributions cannot be read."""
        device, dtype = _place(model)
        self._folder = f"the model in memory ({type(model).__name__})"
        is_of_library = hasattr(model, "is_custom_code")
        if not is_of_library and self.options.max_model_len is None:
            raise InputError(
                f"{self._folder}: no model of transformers; give max_model_len, the most tokens that it reads"
            )
        if model is not self._given or device != self._device:
            self._let_go()
            self._given, self._device = model, device
            self._model = model if is_of_library else OtherModule(model)
            self._batch_tokens = self._full_batch()
            self._forget = rope_reset(self._model)
        self.options = self.options.model_copy(update={"dtype": dtype})
        self.tokenizer = self._own_tokenizer
        if not self._is_proven:
            self._require_causal_head()
            self._prove()
        elif self._head is not None:
            self._head = head_by_config(self._model)  # of the weights as they are now
            self._vocabulary = len(self._head.weight)

    @property
    def context(self) -> int:
        """Most tokens that the model reads at once."""
        context = config_shape(self._model.config.get_text_config()).context
        return min(context, self.options.max_model_len or context)

    def divide(self, part: int, parts: int) -> None:
        """Let `token_stats` run each `parts`-th batch alone, and gather the others from the other processes."""
        self._part, self._parts = part, parts

    def _scored(
        self,
        sequences: Sequence[ScoredSequence],
        temperatures: Sequence[float],
        plan: tuple[list[Family], list[int]] | None = None,
    ) -> tuple[np.ndarray, list[int]]:
        """As the parent's. Whole batches are divided among processes, so that the numbers stay the same.

        With a `plan` it is a part that is read by this process alone.
        """
        if self._parts == 1 or plan is not None:
            return super()._scored(sequences, temperatures, plan)
        plans = [self._batches(sequences)]
        torch.distributed.broadcast_object_list(plans)  # a process whose weights differ might make other batches
        own, error = [], None
        try:
            for part in plans[0][self._part :: self._parts]:
                own.append(super()._scored(sequences, temperatures, part))
        except Exception as fault:  # told to all: the others wait in the gathering
            error = f"process {self._part}: {fault if isinstance(fault, InputError) else one_line(fault)}"
        found: list = [None] * self._parts
        torch.distributed.all_gather_object(found, (own, error))
        if errors := [error for _, error in found if error]:
            raise InputError(errors[0])
        scored = [batch for own, _ in found for batch in own]
        columns = [np.empty((6 + len(temperatures), 0), np.float32), *(columns for columns, _ in scored)]
        return np.concatenate(columns, axis=1), [i for _, order in scored for i in order]

    def _batches(self, sequences: Sequence[ScoredSequence]) -> list[tuple[list[Family], list[int]]]:
        """The batches in which the parent runs the sequences, each as a plan. A family is cut in a part for each."""
        families, alone = self._plan(sequences)
        waiting = sorted(alone, key=lambda i: -len(sequences[i].token_ids))
        batches = [([part], []) for family in families for part in family.divided(self._parts)]
        while waiting:
            size = self._batch_size(len(sequences[i].token_ids) for i in waiting)
            batches.append(([], waiting[:size]))
            waiting = waiting[size:]
        return batches

    @torch.inference_mode()
    def _require_causal_head(self) -> None:
        """Raise InputError for a module that makes no logits for each token: an encoder, a classifier, a bare body."""
        if getattr(self._model.config, "is_encoder_decoder", False) or OTHER_HEADS.search(type(self._given).__name__):
            raise InputError(f"{self._folder}: its head predicts no next token; give a causal language model")
        try:
            output = self._model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=self._device), use_cache=False)
        except Exception as error:  # a library's, of any kind
            raise InputError(f"{self._folder}: it cannot read two tokens: {one_line(error)}") from error
        logits = getattr(output, "logits", None)
        if not isinstance(logits, torch.Tensor) or logits.shape[:2] != (1, 2) or logits.ndim != 3:
            found = "no logits" if logits is None else f"logits of shape {tuple(getattr(logits, 'shape', ()))}"
            raise InputError(
                f"{self._folder}: found {found} for 2 tokens, expected logits of shape (1, 2, vocabulary); give a "
                "causal language model with its head, as AutoModelForCausalLM loads it"
            )


class OtherModule(torch.nn.Module):
    """A module that is none of `transformers`, as the engine sees it: token ids (b, T) in, logits (b, T, V) out."""

    def __init__(self, module: torch.nn.Module):
        from transformers import PretrainedConfig

        super().__init__()
        self.module = module
        self.config = PretrainedConfig(vocab_size=sys.maxsize)  # it may read all that it predicts
        self.base_model = None

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> SimpleNamespace:
        output = self.module(input_ids)
        return SimpleNamespace(logits=getattr(output, "logits", output))

    def is_custom_code(self) -> bool:
        return False  # its texts are read one by one, so that nothing of batches must be proven

    def get_output_embeddings(self) -> None:
        """Its head is not known, so whole logits are computed."""

    def get_input_embeddings(self) -> None:
        """Nor are its embeddings."""


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The module within the wrappers of DistributedDataParallel, DataParallel and torch.compile."""
    data_parallel = torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel
    while isinstance(model, data_parallel) or hasattr(model, "_orig_mod"):
        model = model.module if isinstance(model, data_parallel) else model._orig_mod
    return model


def _place(model: torch.nn.Module) -> tuple[torch.device, str]:
    """The device that holds all of the model, and the type in which it computes."""
    where = f"the model in memory ({type(model).__name__})"
    parameters = list(model.parameters())
    if _is_sharded(model, parameters):
        raise InputError(
            f"{where}: its parameters are divided among processes (FSDP, DeepSpeed ZeRO-3 or tensor parallelism), and "
            "only whole models are scored in memory; save a checkpoint and score its folder"
        )
    devices = sorted({str(parameter.device) for parameter in parameters})
    if len(devices) != 1 or parameters[0].device.type not in BATCH_TOKENS:
        raise InputError(
            f"{where}: found parameters on {', '.join(devices) or 'no device'}; to be scored in memory, all must be "
            f"on one device, of the kind {' or '.join(BATCH_TOKENS)}"
        )
    types = {parameter.dtype for parameter in parameters if parameter.is_floating_point()}
    if not types or not types <= DTYPES.keys():
        found = ", ".join(sorted(str(kind) for kind in types)) or "no floating-point numbers"
        raise InputError(f"{where}: found parameters of {found}; a model is scored in float32 or bfloat16")
    return parameters[0].device, DTYPES[torch.bfloat16 if torch.bfloat16 in types else torch.float32]


def _is_sharded(model: torch.nn.Module, parameters: Sequence[torch.nn.Parameter]) -> bool:
    """Whether a process holds parts of the parameters only."""
    if any(hasattr(parameter, "ds_id") for parameter in parameters):  # DeepSpeed ZeRO-3
        return True
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in parameters) or any(
        isinstance(part, FullyShardedDataParallel) for part in model.modules()
    )


@contextmanager
def undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """Within it `model` is evaluated as a saved checkpoint is; behind it all is as before, whatever happened.

    No dropout, no autocast, no compiled code, no TF32. The random state, the training mode of each part and the
    `forward` that accelerate has put into the model come back.
    """
    device, _ = _place(model)
    modes = [(part, part.training) for part in model.modules()]
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(_exact_products())
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if "_original_forward" in vars(model):  # accelerate: the other one runs in autocast
            stack.callback(setattr, model, "forward", model.forward)
            model.forward = model._original_forward
        for part, mode in modes:
            stack.callback(setattr, part, "training", mode)
            part.training = False
        stack.callback(rope_reset(model))  # frequencies that grow with the texts
        yield


@contextmanager
def _exact_products() -> Iterator[None]:
    """No TF32. The settings of all backends hide those of each, so they are set aside first."""
    of_all, torch.backends.fp32_precision = torch.backends.fp32_precision, "none"
    of_each = [backend.fp32_precision for backend in PRODUCTS]
    try:
        for backend in PRODUCTS:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(PRODUCTS, of_each):
            backend.fp32_precision = precision
        torch.backends.fp32_precision = of_all
