"""What must be held out is counted in the finished pool, verbatim, by a check that does not know how it was split."""

import re
from collections.abc import Iterable, Sequence

from proxycast.options import InputError

# A run this long is no coincidence, and every document of real text but the shortest holds one.
RUN_CHARACTERS = 40
SHORTEST_DOCUMENT = 32


def count_leaks(documents: list[str], questions: list[str], texts: list[str]) -> dict[str, int]:
    """How many benchmark questions stand in a document; how many held-out texts share 40 characters in a row with one.

    Both are compared in lower case and with white space collapsed. A question counts where it stands as whole words. A
    document of 32 to 39 characters counts where it stands whole in a text.
    """
    documents = sorted({_collapsed(document) for document in documents})
    leaked_questions = count_leaked_questions(documents, questions)
    runs = {run for document in documents if len(document) >= SHORTEST_DOCUMENT for run in _character_runs(document)}
    lengths = {len(run) for run in runs}
    leaked_texts = sum(any(_substrings(_collapsed(text), n) & runs for n in lengths) for text in texts)
    return {"documents": len(documents), "questions": len(questions), "leaked_questions": leaked_questions} | {
        "texts": len(texts),
        "leaked_texts": leaked_texts,
    }


def count_leaked_questions(documents: Iterable[str], questions: Iterable[str]) -> int:
    """How many questions stand in a document as whole words, in lower case and with white space collapsed."""
    pool = "\n".join(sorted({_collapsed(document) for document in documents}))
    return sum(_stands_in(_collapsed(question), pool) for question in questions)


def holding_questions(texts: Sequence[str], questions: Sequence[str]) -> list[bool]:
    """Which of the texts hold one of the `questions`, or solutions, of the benchmark."""
    if not count_leaked_questions(texts, questions):  # fast, and the rule
        return [False] * len(texts)
    return [count_leaked_questions([text], questions) > 0 for text in texts]


def require_no_leak(leaks: dict[str, int]) -> None:
    """Stop unless both counts are zero."""
    if leaks["leaked_questions"] or leaks["leaked_texts"]:
        raise InputError(
            f"miniature suite: {leaks['leaked_questions']} of {leaks['questions']} benchmark questions and "
            f"{leaks['leaked_texts']} of {leaks['texts']} held-out texts stand verbatim in the training documents; "
            "none may"
        )


def _collapsed(text: str) -> str:
    return re.sub(r"\s+", " ", text.lower()).strip()


def _stands_in(question: str, pool: str) -> bool:
    """Whether `question` occurs with no letter or digit directly before or after it."""
    start = pool.find(question)
    while start >= 0:
        before, after = pool[max(0, start - 1) : start], pool[start + len(question) : start + len(question) + 1]
        if not (before.isalnum() or after.isalnum()):
            return True
        start = pool.find(question, start + 1)
    return False


def _character_runs(document: str) -> set[str]:
    return _substrings(document, RUN_CHARACTERS) or {document}


def _substrings(text: str, length: int) -> set[str]:
    return {text[i : i + length] for i in range(len(text) - length + 1)}
