"""A corpus from the pool of documents: sources, deduplication, quality filters and mixtures, as in DataDecide.

The pool is one table with a row a document, computed once for all corpora: whether it is the first of its copies,
whether it passes the heuristics of C4, and how much a classifier takes it for each curated source.
"""

import platform
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, get_args

import numpy as np
import polars as pl
from tokenizers import Tokenizer

from proxycast.config.training import Component, Recipe, Reference, Suite
from proxycast.options import InputError
from proxycast.tables import fingerprint

# scikit-learn is imported where the pool is made: every training job reads this module, and would wait for it.
if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

END_OF_TEXT_ID = 0  # the token id that begins every document


def describe_documents(
    documents: pl.DataFrame, tokenizer: Tokenizer, seed: int, others: Mapping[str, Tokenizer] = MappingProxyType({})
) -> pl.DataFrame:
    """The pool: `documents` (source, kind, text) with `first`, `clean`, `quality_<reference>` and `tokens` (int32).

    Each further tokenizer in `others` adds its `tokens_<name>`.
    """
    texts = documents["text"].to_list()
    features = _word_features(texts)
    qualities = {f"quality_{name}": _quality(features, documents["source"], name, seed) for name in get_args(Reference)}
    tokenizers = {None: tokenizer, **others}
    return documents.with_columns(
        first=pl.struct("source", "text").is_first_distinct(),
        clean=_is_clean(pl.col("text")),
        **{tokens_column(name): _token_lists(trained, texts) for name, trained in tokenizers.items()},
        **{name: pl.Series(values, dtype=pl.Float32) for name, values in qualities.items()},
    )


def tokens_column(tokenizer: str | None) -> str:
    """The pool's column of token ids of a further tokenizer, or (None) of the suite's own."""
    return "tokens" if tokenizer is None else f"tokens_{tokenizer}"


def _token_lists(tokenizer: Tokenizer, texts: list[str]) -> pl.Series:
    encoded = [[END_OF_TEXT_ID, *e.ids] for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    return pl.Series(encoded, dtype=pl.List(pl.Int32))


def pool_fingerprint(suite: Suite) -> str:
    """What the pool is made from: the suite's settings and this Python, whose library is part of the documents."""
    return fingerprint(suite.settings_of_pool(), platform.python_version())


def _is_clean(text: pl.Expr) -> pl.Expr:
    """C4's rules (Raffel et al. 2020, section 2.2) as far as they suit short documents: prose, and no boilerplate."""
    boilerplate = text.str.to_lowercase().str.contains_any(["cookie", "newsletter", "copyright", "all rights reserved"])
    return ~boilerplate & ~text.str.contains("{", literal=True) & (text.str.count_matches(" ") >= 2)


def _word_features(texts: list[str]) -> "csr_matrix":
    """Hashed words and pairs of words, with every digit as 0 so that a classifier learns form and not sums.

    Many documents are copies, or differ by digits alone: each form is hashed once.
    """
    from sklearn.feature_extraction.text import HashingVectorizer

    hashing = HashingVectorizer(n_features=2**15, ngram_range=(1, 2), token_pattern=r"[^\s]+", lowercase=False)
    places: dict[str, int] = {}
    rows = [places.setdefault(form, len(places)) for form in pl.Series(texts).str.replace_all(r"\d", "0")]
    return hashing.transform(places)[rows]


def _quality(features: "csr_matrix", sources: pl.Series, reference: str, seed: int) -> np.ndarray:
    """(documents,) log odds that a document is from `reference` and not from the web, as fastText filters score it."""
    from sklearn.linear_model import SGDClassifier

    random = np.random.default_rng(seed)
    positive, negative = (np.flatnonzero(sources == name) for name in (reference, "web"))
    size = min(3000, len(positive), len(negative))
    chosen = np.concatenate(
        [random.choice(positive, size, replace=False), random.choice(negative, size, replace=False)]
    )
    classifier = SGDClassifier(loss="log_loss", alpha=1e-5, random_state=seed)
    classifier.fit(features[chosen], np.repeat([1, 0], size))
    return classifier.decision_function(features)


def select(pool: pl.DataFrame, component: Component) -> np.ndarray:
    """Row numbers of the documents that a component keeps, best first where a classifier ranks them."""
    rows = pool.lazy().with_row_index("row").filter(source=component.source)
    if component.deduplicate:
        rows = rows.filter("first")
    if component.heuristics:
        rows = rows.filter("clean")
    if component.classifier:
        rows = rows.sort(f"quality_{component.classifier}", descending=True, maintain_order=True)
    rows = rows.select("row").collect()["row"].to_numpy()
    # Rounded first: 100 x 0.29 is 28.999... in floating point, and 29 documents are meant.
    return rows[: int(round(len(rows) * component.keep, 6))]


def require_documents(pool: pl.DataFrame, recipe: Recipe, where: str) -> list[int]:
    """How many documents each component keeps; an error that names the component if it keeps none."""
    counts = [len(select(pool, component)) for component in recipe.mixture]
    for number, (component, count) in enumerate(zip(recipe.mixture, counts, strict=True)):
        if not count:
            available = pool.filter(source=component.source).height
            raise InputError(
                f"{where}: mixture[{number}] (source {component.source}) keeps none of its {available} documents; "
                f"loosen its filters (keep: {component.keep:g})"
            )
    return counts


def token_stream(pool: pl.DataFrame, recipe: Recipe, tokens: int, seed: int, column: str = "tokens") -> np.ndarray:
    """`tokens` token ids (int32) of the corpus: documents in random order, in whole epochs where a component is short.

    The order depends on the seed and the document, not on the corpus. Corpora that share documents meet them in a
    similar order, so that a comparison within a seed is a paired one.
    """
    lengths = pool[column].list.len().to_numpy()
    total = sum(component.weight for component in recipe.mixture)
    chosen, places = [], []
    for component in recipe.mixture:
        wanted = tokens * component.weight / total
        rows, epoch, position = select(pool, component), 0, 0.0
        while position < 1:
            order = np.random.default_rng((seed, epoch)).random(len(lengths))[rows]
            by_order = np.argsort(order)
            ends = np.cumsum(lengths[rows[by_order]]) / wanted
            chosen.append(rows[by_order])
            places.append(position + ends)
            epoch, position = epoch + 1, position + ends[-1]
    rows, place = np.concatenate(chosen), np.concatenate(places)
    rows = rows[np.argsort(place, kind="stable")]
    rows = rows[: np.searchsorted(np.cumsum(lengths[rows]), tokens) + 1]
    return pool[column].gather(rows).explode().to_numpy()[:tokens]
