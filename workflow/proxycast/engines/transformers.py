"""The engine on plain `transformers`: any causal language model of the library, on a CPU or a GPU.

A batch runs through the model's body only; the head is applied to the hidden states in front of the scored tokens, some
rows at a time, so that no (tokens x vocabulary) matrix exists. What lies between the head's product and the logits (a
scale, a soft cap) is found in the config and then checked on the model itself; a model that does anything else is run
whole, slower, one sequence at a time.
"""

import hashlib
import logging
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch

from proxycast.engines import TOKEN_STATS_SCHEMA, ExtractionOptions
from proxycast.engines.model_folder import TOKENIZER_FILES, check_folder, safetensors_header, weight_files
from proxycast.options import InputError
from proxycast.solutions import ScoredSequence, prompt_tokens
from proxycast.token_stats import Head, NonFiniteLogits, TokenStats, token_stats, token_stats_from_hidden

log = logging.getLogger(__name__)

STOP_CHECK_STEPS = 8  # between two looks whether all texts of a batch have met a stop string


class TransformersEngine:
    """Loads one checkpoint after another and scores sequences with it; see `proxycast.engines.Engine`."""

    def __init__(self, options: ExtractionOptions):
        self.options = options
        if options.device == "cuda" and not torch.cuda.is_available():
            raise InputError("extraction, key device: found cuda, but torch sees no GPU; give auto or cpu")
        found = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = torch.device(found if options.device == "auto" else options.device)
        self._loaded: object = None  # which files the engine holds; None while a load is unfinished
        self._model = self._config = self._tokenizer = self._tokenizer_digest = None

    def load(self, folder: Path) -> None:
        """Make the checkpoint in `folder` the loaded one; the built module stays where config.json is the same."""
        files = _file_states(folder)
        if self._loaded == files:
            return
        check_folder(folder)
        self._loaded, self._folder = None, folder
        config = (folder / "config.json").read_bytes()
        anew = config != self._config or not _load_in_place(self._model, folder)
        if anew:
            self._model = self._config = None  # frees the old weights before the new ones come
            self._model = _build(folder, getattr(torch, self.options.dtype), self._device)
            self._config = config
        self._head = exact_head(self._model)
        if anew and self._head is None:
            log.warning("%s: a head of a form of its own; whole logits, one sequence at a time: slow", folder)
        self._load_tokenizer(folder)
        self._loaded = files

    def _load_tokenizer(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        digest = [
            hashlib.sha256((folder / name).read_bytes()).digest()
            for name in TOKENIZER_FILES
            if (folder / name).is_file()
        ]
        if digest != self._tokenizer_digest:
            self._tokenizer = self._tokenizer_digest = None
            try:
                self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            except (OSError, ValueError, KeyError) as error:
                raise InputError(f"{folder}: transformers cannot read this tokenizer: {error}") from error
            self._tokenizer_digest = digest

    @property
    def tokenizer(self):
        return self._tokenizer

    @property
    def context(self) -> int:
        """Most tokens that the loaded model reads at once; no limit for architectures that have none."""
        return getattr(self._model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize

    @property
    def vocabulary(self) -> int:
        """Number of logits, padding of the vocabulary included."""
        return self._model.get_output_embeddings().weight.shape[0]

    @torch.inference_mode()
    def token_stats(self, sequences: Sequence[ScoredSequence]) -> pl.DataFrame:
        """One row per scored token, columns TOKEN_STATS_SCHEMA, in the order of `sequences`.

        Raises InputError naming the folder, the sequence's key and the position where a logit is not finite. Broken
        attention can carry a NaN to earlier tokens of the sequence (0 * NaN is NaN), so the cause may lie behind it.
        """
        parts: list[np.ndarray | None] = [None] * len(sequences)
        for batch in self._batches(sequences):
            members = [sequences[i] for i in batch]
            try:
                stats = self._score(members)
            except NonFiniteLogits as error:
                key, position = _scored_token(members, error.row)
                raise InputError(
                    f"{self._folder}: the logits of {key} at position {position} are NaN or infinite; "
                    "the weights are broken"
                    + (" or too large for bfloat16; try dtype float32" if self.options.dtype == "bfloat16" else "")
                ) from None
            # Counts below 2^24 are exact in float32.
            columns = torch.stack([column.float() for column in stats]).cpu().numpy()  # (6, n)
            ends = np.cumsum([member.stop - member.start for member in members])
            for i, part in zip(batch, np.split(columns, ends[:-1], axis=1)):
                parts[i] = part
        return _frame(sequences, parts, self.vocabulary)

    def _batches(self, sequences: Sequence[ScoredSequence]) -> Iterator[list[int]]:
        """Indices of sequences of like length, longest first, as many as fit into `batch_tokens` with the padding."""
        if self._head is None:
            yield from ([i] for i in range(len(sequences)))
            return
        batch: list[int] = []
        for i in sorted(range(len(sequences)), key=lambda i: -len(sequences[i].token_ids)):
            if batch and (len(batch) + 1) * len(sequences[batch[0]].token_ids) > self.options.batch_tokens:
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _score(self, batch: list[ScoredSequence]) -> TokenStats:
        """Statistics of the scored tokens, one sequence after the other; t - 1 predicts the token at position t."""
        width = max(len(sequence.token_ids) for sequence in batch)
        # Right padding needs no attention mask: no token of a causal model sees what follows it.
        token_ids = np.zeros((len(batch), width), np.int64)
        for row, sequence in zip(token_ids, batch):
            row[: len(sequence.token_ids)] = sequence.token_ids
        rows = np.concatenate([i * width + np.arange(s.start - 1, s.stop - 1) for i, s in enumerate(batch)])
        targets = np.concatenate([sequence.token_ids[sequence.start : sequence.stop] for sequence in batch])
        token_ids, rows, targets = (torch.from_numpy(array).to(self._device) for array in (token_ids, rows, targets))
        if self._head is None:
            logits = self._model(input_ids=token_ids, use_cache=False).logits.flatten(0, 1)  # (b T, V)
            return token_stats(logits[rows], targets)
        hidden = self._model.base_model(input_ids=token_ids, use_cache=False).last_hidden_state  # (b, T, d)
        return token_stats_from_hidden(hidden.flatten(0, 1)[rows], self._head, targets, self.vocabulary)

    @torch.inference_mode()
    def generate(self, prompts: Sequence[str], max_new_tokens: int, stop: Sequence[str] = ()) -> list[str]:
        """Each prompt's greedy continuation, ended before the end-of-text token, a `stop` string or the context's end.

        Prompts of equal length run together, without padding, so that a batch changes nothing.
        """
        encoded = prompt_tokens(list(prompts), self._tokenizer)
        by_length: dict[int, list[int]] = defaultdict(list)
        for i, token_ids in enumerate(encoded):
            by_length[len(token_ids)].append(i)
        texts = [""] * len(encoded)
        for length, members in sorted(by_length.items()):
            if not 0 < length < self.context:
                raise InputError(
                    f"{self._folder}: found {length} tokens in the prompt {prompts[members[0]][:60]!r}...; "
                    f"to continue a prompt it must have 1 to {self.context - 1} tokens"
                )
            room = min(max_new_tokens, self.context - length)
            size = max(1, self.options.batch_tokens // (length + room))
            for start in range(0, len(members), size):
                batch = members[start : start + size]
                token_ids = torch.from_numpy(np.stack([encoded[i] for i in batch])).to(self._device)
                for i, text in zip(batch, self._continue(token_ids, room, stop)):
                    texts[i] = text
        return texts

    def _continue(self, token_ids: torch.Tensor, max_new_tokens: int, stop: Sequence[str]) -> list[str]:
        """Greedy continuations of `token_ids` (b, T) as texts."""
        from transformers import GenerationConfig, StoppingCriteriaList

        tokenizer, length, eos = self._tokenizer, token_ids.shape[1], self._tokenizer.eos_token_id

        def stopped(ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
            done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
            if stop and (ids.shape[1] - length) % STOP_CHECK_STEPS == 0:
                texts = tokenizer.batch_decode(ids[:, length:], skip_special_tokens=True)
                done |= torch.tensor([any(mark in text for mark in stop) for text in texts], device=ids.device)
            return done

        output = self._model.generate(
            token_ids,
            attention_mask=torch.ones_like(token_ids),
            generation_config=GenerationConfig(
                do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=eos, pad_token_id=0 if eos is None else eos
            ),
            stopping_criteria=StoppingCriteriaList([stopped]),
        )
        new = [ids[: ids.index(eos)] if eos in ids else ids for ids in output[:, length:].tolist()]
        texts = tokenizer.batch_decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [min((text.split(mark)[0] for mark in stop), key=len, default=text) for text in texts]


def exact_head(model: torch.nn.Module) -> Head | None:
    """The map from `model.base_model`'s last hidden state to its logits; None where it has not the form of `Head`.

    The config only suggests the form. The proof is a forward pass in which a ramp takes the place of the head's
    product: the logits must be the ramp as `Head` would adjust it, and the head must have been given the body's last
    hidden state.
    """
    linear, config = model.get_output_embeddings(), model.config.get_text_config()
    if not isinstance(linear, torch.nn.Linear):
        return None
    divisor = getattr(config, "logits_scaling", None) or 1.0
    head = Head(
        weight=linear.weight.detach().float(),
        bias=None if linear.bias is None else linear.bias.detach().float(),
        scale=(getattr(config, "logit_scale", None) or 1.0) / divisor,
        softcap=getattr(config, "final_logit_softcapping", None),
    )
    ramp = torch.linspace(-50, 50, linear.out_features, device=head.weight.device)
    given = []

    def replace(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        given.append(inputs[0])
        return ramp.expand(output.shape)

    token_ids = torch.arange(min(8, linear.out_features), device=head.weight.device).unsqueeze(0)
    hook = linear.register_forward_hook(replace)
    try:
        with torch.inference_mode():
            logits = model(input_ids=token_ids, use_cache=False).logits.float()
            hidden = model.base_model(input_ids=token_ids, use_cache=False).last_hidden_state
    finally:
        hook.remove()
    plain = (
        len(given) == 1
        and given[0].shape == hidden.shape
        and torch.allclose(given[0], hidden, rtol=1e-3, atol=1e-3, equal_nan=True)
    )
    return head if plain and torch.allclose(logits[0, -1], head.adjust(ramp), rtol=1e-4, atol=1e-4) else None


def _build(folder: Path, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    """The model in `folder`, every weight of it from the file, in evaluation mode."""
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # one bar per checkpoint would drown the log
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"{folder}: transformers cannot build this model: {error}") from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise InputError(
            f"{folder}: {len(missing)} weights missing from the safetensors files: {', '.join(missing[:5])}"
        )
    if report["unexpected_keys"]:
        log.warning(
            "%s: weights that the architecture has no place for: %s", folder, sorted(report["unexpected_keys"])[:5]
        )
    model.generation_config = GenerationConfig()  # the folder may ask for sampling; only greedy generation is done here
    return model.eval().to(device)


def _load_in_place(model: torch.nn.Module | None, folder: Path) -> bool:
    """Copy the folder's weights into `model`; False, with nothing copied, where they do not fill it exactly once.

    Tied weights share memory: the file may hold them under one name. A file that holds both names could untie them, so
    it is no match.
    """
    from safetensors.torch import load_file

    if model is None:
        return False
    own = model.state_dict()  # tensors that share memory with the module
    shapes = {name: shape for path in weight_files(folder) for name, shape in safetensors_header(path).items()}
    if any(name not in own or list(own[name].shape) != shape for name, shape in shapes.items()):
        return False
    filled = {own[name].data_ptr() for name in shapes}
    if len(filled) < len(shapes) or any(tensor.data_ptr() not in filled for tensor in own.values()):
        return False
    with torch.no_grad():
        for path in weight_files(folder):
            for name, tensor in load_file(path).items():
                own[name].copy_(tensor)
    return True


def _file_states(folder: Path) -> list[tuple[Path, int, int]] | None:
    """Path, size and time of each file: equal lists mean that nothing was written in between."""
    if not folder.is_dir():
        return None
    return [(path, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.iterdir())]


def _scored_token(batch: list[ScoredSequence], row: int) -> tuple[str, int]:
    """Key and position of the `row`-th scored token of a batch."""
    for sequence in batch:
        scored = sequence.stop - sequence.start
        if row < scored:
            return sequence.key, sequence.start + row
        row -= scored
    raise IndexError(row)


def _frame(sequences: Sequence[ScoredSequence], parts: list[np.ndarray], vocabulary: int) -> pl.DataFrame:
    if not sequences:
        return pl.DataFrame(schema=TOKEN_STATS_SCHEMA)
    lengths = [sequence.stop - sequence.start for sequence in sequences]
    columns = dict(zip(TokenStats._fields, np.concatenate(parts, axis=1)))
    return pl.DataFrame(
        {
            "key": pl.Series([sequence.key for sequence in sequences]).gather(
                np.repeat(np.arange(len(sequences)), lengths)
            ),
            "position": np.concatenate([np.arange(sequence.start, sequence.stop) for sequence in sequences]),
            "token": np.concatenate([sequence.token_ids[sequence.start : sequence.stop] for sequence in sequences]),
            "bytes": np.concatenate([sequence.token_bytes for sequence in sequences]),
            **columns,
            "vocabulary": np.full(sum(lengths), vocabulary),
        }
    ).cast(TOKEN_STATS_SCHEMA)
