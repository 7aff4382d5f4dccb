"""The head of a model of transformers, between its last hidden state and the logits, and the proof of its form."""

import torch

from proxycast.extraction.token_stats import Head


def body_of(model: torch.nn.Module) -> torch.nn.Module | None:
    """The part of `model` in front of its head: its `base_model`, or its `model` where that is none, as in Llama 4."""
    parts = (model.base_model, getattr(model, "model", None))
    return next((part for part in parts if isinstance(part, torch.nn.Module) and part is not model), None)


def head_by_config(model: torch.nn.Module) -> Head | None:
    """The map from the body's last hidden state to the logits that the config suggests; None without a linear head."""
    linear, config = model.get_output_embeddings(), model.config.get_text_config()
    if not isinstance(linear, torch.nn.Linear):
        return None
    divisor = getattr(config, "logits_scaling", None) or 1.0
    weight = linear.weight.detach()
    return Head(
        weight=weight if weight.is_cuda else weight.float(),  # a CPU has no fast product of 16-bit numbers in float32
        bias=None if linear.bias is None else linear.bias.detach().float(),
        scale=(getattr(config, "logit_scale", None) or 1.0) / divisor,
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def exact_head(model: torch.nn.Module) -> Head | None:
    """The map from the body's last hidden state to the logits of `model`; None if it has not the form of `Head`.

    The config only suggests the form. To prove it, a forward pass has a ramp in place of the head's product: the logits
    must be the ramp as `Head` adjusts it, and the head's input must be the body's last hidden state.
    """
    head, body, linear = head_by_config(model), body_of(model), model.get_output_embeddings()
    if head is None or body is None:
        return None
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
            hidden = getattr(body(input_ids=token_ids, use_cache=False), "last_hidden_state", None)
    finally:
        hook.remove()
    plain = (
        len(given) == 1
        and hidden is not None
        and given[0].shape == hidden.shape
        and torch.allclose(given[0], hidden.to(given[0].dtype), rtol=1e-3, atol=1e-3, equal_nan=True)
    )
    return head if plain and torch.allclose(logits[0, -1], head.adjust(ramp), rtol=1e-4, atol=1e-4) else None


@torch.inference_mode()
def count_logits(model: torch.nn.Module) -> int:
    token_ids = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
    return model(input_ids=token_ids, use_cache=False).logits.shape[-1]


def count_embeddings(model: torch.nn.Module) -> int:
    """Tokens that can be read; some models read more than they predict."""
    return getattr(model.get_input_embeddings(), "num_embeddings", None) or model.config.get_text_config().vocab_size
