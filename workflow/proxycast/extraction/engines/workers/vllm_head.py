"""The head of a model in vLLM as a matrix, so that statistics need none of vLLM's logits.

vLLM's `compute_logits` writes all logits to memory, and where workers share the vocabulary (tensor parallelism) it
exchanges them. As a `Head`, each worker reduces the logits of its own tokens, and six numbers a token are exchanged.

That the logits are this matrix's is not taken on trust: `head_of` watches one call of `compute_logits`, and compares
the statistics of random hidden states by both ways.
"""

import inspect
from dataclasses import dataclass

import torch

from proxycast.extraction.schema import TokenStats
from proxycast.extraction.token_stats import Head, Slice, token_stats, token_stats_from_hidden, token_stats_of_slice

PROBES = 16  # random hidden states
TOLERANCE = 1e-4  # of the largest logit, or nats: two orders of summing in float32


class NotAMatrix(ValueError):
    """The model's logits are no plain product of hidden states and a matrix; the message says why."""


@dataclass(frozen=True)
class WorkerHead:
    """A worker's part of the head: `layer` holds the weights, which a reload in place may replace."""

    layer: torch.nn.Module
    has_bias: bool
    scale: float
    softcap: float | None
    vocabulary: int  # of all workers together
    ranks: int

    def statistics(self, hidden: torch.Tensor, targets: torch.Tensor) -> TokenStats:
        """Of hidden states (n, d) at the token ids `targets` (n,). All workers call it with the same ones."""
        first, stop = self.layer.shard_indices.org_vocab_start_index, self.layer.shard_indices.org_vocab_end_index
        weight, bias = self.layer.weight[: stop - first], self.layer.bias[: stop - first] if self.has_bias else None
        head = Head(weight, bias, self.scale, self.softcap)
        if self.ranks == 1:
            return token_stats_from_hidden(hidden, head, targets, self.vocabulary)
        return token_stats_of_slice(hidden, Slice(head, first, _total, self._gather), targets, self.vocabulary)

    def _gather(self, parts: torch.Tensor) -> torch.Tensor:
        """(6, n) of each worker -> (6, workers, n)."""
        from vllm.distributed import tensor_model_parallel_all_gather

        return tensor_model_parallel_all_gather(parts.contiguous(), dim=-1).unflatten(-1, (self.ranks, -1))


def _total(values: torch.Tensor) -> torch.Tensor:
    from vllm.distributed import tensor_model_parallel_all_reduce

    return tensor_model_parallel_all_reduce(values)


def head_of(
    model: torch.nn.Module, vocabulary: int, width: int, dtype: torch.dtype, device: torch.device
) -> WorkerHead:
    """The head of a model of vLLM with hidden states of `width` numbers, on its last pipeline stage.

    Raises NotAMatrix where its logits are made otherwise. All workers that share the layers must call it.
    """
    hidden = torch.randn(PROBES, width, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    with torch.inference_mode():
        logits, head = _watched(model, hidden)
        _require_of_all(head if isinstance(head, str) else "")
        logits = logits.float()
        targets = logits.argmax(1)  # of one half; any tokens of the other
        targets[::2] = 7919 * torch.arange(len(targets[::2]), device=device) % vocabulary
        statistics = head.statistics(hidden, targets)
    _require_of_all(_difference(statistics, logits, targets))
    return head


def _watched(model: torch.nn.Module, hidden: torch.Tensor) -> tuple[torch.Tensor, WorkerHead | str]:
    """vLLM's logits of `hidden`, and the head that one call shows; what stands against it where it is none."""
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod
    from vllm.model_executor.layers.logits_processor import LogitsProcessor
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod, VocabParallelEmbedding

    calls = []

    def watch(processor: torch.nn.Module, args: tuple, kwargs: dict, output: torch.Tensor) -> None:
        given = inspect.signature(LogitsProcessor.forward).bind(processor, *args, **kwargs)
        given.apply_defaults()
        calls.append((processor, given.arguments, output))

    processors = [module for module in model.modules() if isinstance(module, LogitsProcessor)]
    handles = [processor.register_forward_hook(watch, with_kwargs=True) for processor in processors]
    try:
        logits = model.compute_logits(hidden)
    finally:
        for handle in handles:
            handle.remove()
    if not logits.isfinite().all():
        return logits, "they are not finite"
    if len(calls) != 1:
        return logits, f"{len(calls)} layers of vLLM's LogitsProcessor made them"
    [(processor, given, output)] = calls
    layer, bias = given["lm_head"], given["embedding_bias"]
    plain = {
        f"{type(processor).__name__} has its own code": type(processor) is LogitsProcessor,
        "the head gets logits": not processor.logits_as_input,
        "something stands in front of the head": torch.equal(given["hidden_states"], hidden),
        "something stands behind the head": output.shape == logits.shape and torch.equal(output, logits),
        f"the head is a {type(layer).__name__}": isinstance(layer, VocabParallelEmbedding),
    }
    if all(plain.values()):
        quantised = not isinstance(layer.quant_method, UnquantizedEmbeddingMethod | UnquantizedLinearMethod)
        plain = {
            f"the head is quantised ({type(layer.quant_method).__name__})": not quantised,
            "the head has tokens of adapters": layer.num_added_embeddings == 0,
            "the vocabulary is cut": processor.org_vocab_size == layer.org_vocab_size == logits.shape[-1],
            "its workers are a group of their own": layer.parallel_group is None,
            "the bias is of another layer": bias is None or bias is getattr(layer, "bias", None),
            # vLLM scales what is squashed already, `Head` before.
            "it is both squashed and scaled": processor.soft_cap is None or processor.scale == 1.0,
        }
    if against := [reason for reason, holds in plain.items() if not holds]:
        return logits, "; ".join(against)
    return logits, WorkerHead(
        layer, bias is not None, processor.scale, processor.soft_cap, logits.shape[-1], layer.tp_size
    )


def _difference(statistics: TokenStats, logits: torch.Tensor, targets: torch.Tensor) -> str:
    """Which statistics are not those of vLLM's logits (n, V); empty if all are."""
    expected = token_stats(logits, targets)
    bound = TOLERANCE * max(float(logits.abs().max()), 1.0)
    fields = TokenStats._fields[:4]
    apart = [name for name, a, b in zip(fields, statistics, expected) if not (float((a - b).abs().max()) <= bound)]
    target = logits.gather(1, targets.unsqueeze(1))
    least, most = (logits > target + bound).sum(1), (logits > target - bound).sum(1)
    if not bool(((statistics.n_greater >= least) & (statistics.n_greater <= most)).all()):
        apart.append("n_greater")
    return f"by the matrix, {', '.join(apart)} are others" if apart else ""


def _require_of_all(against: str) -> None:
    """Raise NotAMatrix if one of the workers has something against the head: all must go the same way."""
    from vllm.distributed import get_tensor_model_parallel_world_size, get_tp_group, tensor_model_parallel_all_reduce

    refused = bool(against)
    if get_tensor_model_parallel_world_size() > 1:
        count = torch.tensor([float(refused)], device=get_tp_group().device)
        refused = bool(tensor_model_parallel_all_reduce(count).item())
    if refused:
        raise NotAMatrix(against or "another worker has something against it")
