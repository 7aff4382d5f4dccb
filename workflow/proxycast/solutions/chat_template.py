"""Prompts in the chat template of a tokenizer, rendered within limits of time and memory."""

from datetime import date
from typing import TYPE_CHECKING
from unittest.mock import patch

from proxycast.options import InputError, library_errors
from proxycast.sandbox import bounded_environment, limited

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Today's date for chat templates: the same on every day, and so the same result.
TEMPLATE_DATE = date(2025, 1, 1)
OTHER_MESSAGE = "7 <proxycast> 7"  # no prompt


def tokenizer_name(tokenizer: "PreTrainedTokenizerFast") -> str:
    return getattr(tokenizer, "name_or_path", "") or "the model"


def chat_prompts(prompts: list[str], tokenizer: "PreTrainedTokenizerFast") -> list[str]:
    """Each prompt as a user's message in the tokenizer's chat template, up to where the answer starts.

    Raises InputError for a template that fails or leaves the message out. The message must occur more often than in the
    same template with another message. (If it occurs nowhere, the round trip fails.)
    """
    if not tokenizer.chat_template:
        raise InputError(
            f"{tokenizer_name(tokenizer)}: this tokenizer has no chat template; give chat_template: false, or a "
            "checkpoint with a chat_template in tokenizer_config.json or in chat_template.jinja"
        )
    of_another = _in_template(OTHER_MESSAGE, tokenizer).replace(OTHER_MESSAGE, "")
    written: dict[str, str] = {}  # the choices of a problem share their prompt
    for prompt in prompts:
        if prompt in written:
            continue
        written[prompt] = _in_template(prompt, tokenizer)
        text = prompt.strip()
        if text and 0 < written[prompt].count(text) <= of_another.count(text):
            raise InputError(
                f"{tokenizer_name(tokenizer)}: its chat template leaves out the user's message {text[:60]!r}; give "
                "chat_template: false, or another checkpoint"
            )
    return [written[prompt] for prompt in prompts]


def _in_template(message: str, tokenizer: "PreTrainedTokenizerFast") -> str:
    """The chat template with one message of the user."""
    name = tokenizer_name(tokenizer)
    with library_errors(
        f"{name}: its chat template refuses a single user message; give chat_template: false, or another checkpoint"
    ):
        return _in_chat_template([{"role": "user", "content": message}], tokenizer, add_generation_prompt=True)


def _in_chat_template(messages: list[dict], tokenizer: "PreTrainedTokenizerFast", **options: bool) -> str:
    """The messages in the tokenizer's chat template, within limits of time and memory."""
    from transformers.utils import chat_template_utils

    with patch.object(chat_template_utils, "ImmutableSandboxedEnvironment", bounded_environment()), limited():
        chat = tokenizer.apply_chat_template(messages, tokenize=False, strftime_now=TEMPLATE_DATE.strftime, **options)
    chat.encode()
    return chat


def writes_space_before_answer(tokenizer: "PreTrainedTokenizerFast") -> bool:
    """Whether the chat template has a space between a prompt and an answer, as Llama 2's: "[INST] Q [/INST] A"."""
    (prompt,) = chat_prompts(["Q"], tokenizer)
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    try:
        chat = _in_chat_template(messages, tokenizer)
    except Exception:
        return False  # a template that knows no answers
    return chat.startswith(prompt + " A")
