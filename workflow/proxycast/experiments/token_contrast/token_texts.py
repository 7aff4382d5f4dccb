"""The text of each scored token, from the bytes that it covers: no tokenizer is asked.

The scored tokens are the last of a solution, so a token lies as far before the solution's end as the tokens behind it
cover. A token may hold a part of a character only. The part, which is no text by itself, is shown as the replacement
mark U+FFFD, and a token that covers no bytes (the rest of a split character) has an empty text.
"""

from proxycast.solutions.rows import Solution

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def token_text(solution: Solution, behind: int, size: int) -> str:
    """The text of a token of `size` bytes with `behind` bytes behind it.

    Where these are more bytes than the solution has, it is another text than the token's: a mark stands for it.
    """
    text = solution.solution.encode()
    stop = len(text) - behind
    return text[stop - size : stop].decode(errors="replace") if stop >= size else REPLACEMENT


def text_before(solution: Solution, behind: int, characters: int) -> str:
    """The last `characters` of prompt and solution before the solution's last `behind` bytes."""
    text = solution.solution.encode()
    return (solution.prompt + text[: max(0, len(text) - behind)].decode(errors="replace"))[-characters:]


def text_after(solution: Solution, behind: int, characters: int) -> str:
    """The first `characters` of the solution's last `behind` bytes."""
    text = solution.solution.encode()
    return text[max(0, len(text) - behind) :].decode(errors="replace")[:characters]
