"""From documents to a corpus: the tokenizer, what a component keeps, and the stream of tokens that a model reads."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from proxycast.config.corpora import Corpus
from proxycast.config.training import Component, Recipe
from proxycast.study.yaml_files import read_yaml
from proxycast.training.miniature import sources
from proxycast.training.miniature.recipes import (
    describe_documents,
    require_documents,
    select,
    token_stream,
    tokens_column,
)
from proxycast.training.miniature.sources import BOILERPLATE, write_sources
from proxycast.training.miniature.suite_tokenizer import END_OF_TEXT, PADDING_TOKEN, save_tokenizer, train_tokenizer
from sklearn.metrics import roc_auc_score
from transformers import AutoTokenizer

CORPORA = sorted((Path(__file__).parents[2] / "config" / "corpora" / "miniature").glob("*.yaml"))
VOCABULARY = 512


@pytest.fixture(scope="module")
def documents():
    """A small set of every source; its real text is made up, because reading the standard library takes long."""
    words = "alpha Beta gamma delta Epsilon zeta eta theta iota kappa lamda mu nu xi omicron pi".split()
    random = np.random.default_rng(0)
    kinds = {"code": "def {}({}):\n    return {} + {}", "documentation": "The {} of a {} is {} and {}."}
    kinds["literature"] = "And {} said unto {}, Behold, {} and {}."
    texts = {kind: [form.format(*random.choice(words, 4)) for _ in range(300)] for kind, form in kinds.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "snippets", lambda held_out: texts)
        return write_sources(seed=0, scale=0.03)


@pytest.fixture(scope="module")
def tokenizer(documents):
    return train_tokenizer(documents["text"], VOCABULARY)


@pytest.fixture(scope="module")
def pool(documents, tokenizer):
    return describe_documents(documents, tokenizer, seed=0)


# Tokenizer


@given(text=st.text() | st.sampled_from(["a  b\n\n\tc", "7*8, Ann?", "x = 10\n    y", "é€😀", " 2026 "]))
def test_tokenizer_gives_the_text_back(tokenizer, text):
    ids = tokenizer.encode(text).ids
    assert ids[0] == tokenizer.token_to_id(END_OF_TEXT) == 0
    assert tokenizer.decode(ids[1:], skip_special_tokens=False) == text
    assert max(ids) < tokenizer.get_vocab_size() == VOCABULARY


def test_digits_stand_alone(tokenizer):
    assert tokenizer.encode("1234 567").tokens[1:] == ["1", "2", "3", "4", "Ġ", "5", "6", "7"]


def test_saved_tokenizer_is_the_same(tokenizer, documents, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token) == (0, 0, PADDING_TOKEN)
    assert loaded.pad_token_id == 1 and len(loaded) == VOCABULARY
    texts = documents["text"].to_list()[:200]
    assert loaded(texts)["input_ids"] == [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    assert loaded.batch_decode(loaded(texts)["input_ids"], skip_special_tokens=True) == texts


# The pool


def test_documents_begin_with_end_of_text(pool, tokenizer):
    for text, ids in pool.sample(50, seed=0).select("text", "tokens").iter_rows():
        assert ids == tokenizer.encode(text).ids
        assert ids[0] == 0 and 0 not in ids[1:]


def test_each_tokenizer_has_its_column(documents, tokenizer, pool):
    others = {"small": train_tokenizer(documents["text"], 384), "large": train_tokenizer(documents["text"], 1024)}
    wide = describe_documents(documents, tokenizer, seed=0, others=others)
    assert wide.columns == [*pool.columns[:6], "tokens_small", "tokens_large", *pool.columns[6:]]
    assert wide.select(pool.columns).equals(pool)
    for name, other in others.items():
        column = tokens_column(name)
        for text, ids in wide.sample(20, seed=0).select("text", column).iter_rows():
            assert ids == other.encode(text).ids
    small, own, large = (wide[tokens_column(name)].list.len().mean() for name in ("small", None, "large"))
    assert small > 1.1 * own > 1.2 * large, "really different tokens"


def test_first_of_identical_documents(pool):
    seen = set()
    for source, text, first in pool.select("source", "text", "first").iter_rows():
        assert first == ((source, text) not in seen)
        seen.add((source, text))
    assert 0.05 < 1 - pool["first"].mean() < 0.6


def test_heuristics_drop_boilerplate_and_fragments(pool):
    assert not pool.filter(kind="boilerplate")["clean"].any()
    assert not pool.filter(pl.col("text").str.count_matches(" ") < 2)["clean"].any()
    assert pool.filter(pl.col("kind").is_in(["bench", "book", "web"]))["clean"].all()
    assert any("newsletter" in text for text in BOILERPLATE)


@pytest.mark.parametrize("reference", ["math", "code", "qa", "wiki", "books"])
def test_classifiers_know_their_source(pool, reference):
    known = pool.filter(pl.col("source").is_in([reference, "web"]))
    assert roc_auc_score(known["source"] == reference, known[f"quality_{reference}"]) > 0.75


@pytest.mark.parametrize("path", CORPORA, ids=lambda path: path.stem)
def test_recipes_of_the_suite_keep_documents(pool, path):
    recipe = Corpus(**read_yaml(path)).recipe
    assert min(require_documents(pool, recipe, str(path))) > 0


# What a component keeps


def made_up(sizes: dict[str, int], seed: int = 0) -> pl.DataFrame:
    """A pool of random documents in random order; the tokens of document n are 0 and then its number, repeated."""
    random = np.random.default_rng(seed)
    names = random.permutation(np.repeat(list(sizes), list(sizes.values())))
    return pl.DataFrame(
        {
            "source": names,
            "first": random.random(len(names)) < 0.7,
            "clean": random.random(len(names)) < 0.7,
            "quality_qa": random.integers(0, 5, len(names)) / 4,  # with ties
            "tokens": [[0] + [n + 1] * random.integers(1, 9) for n in range(len(names))],
        },
        schema_overrides={"tokens": pl.List(pl.Int32)},
    )


@given(
    seed=st.integers(0, 2**16),
    deduplicate=st.booleans(),
    heuristics=st.booleans(),
    keep=st.none() | st.sampled_from([0.1, 0.25, 0.5, 0.75, 1.0]),
)
def test_select_against_a_loop(seed, deduplicate, heuristics, keep):
    pool = made_up({"web": 30, "wiki": 20}, seed)
    ranked = {} if keep is None else {"classifier": "qa", "keep": keep}
    component = Component(source="web", weight=1, deduplicate=deduplicate, heuristics=heuristics, **ranked)
    kept = []
    for number, row in enumerate(pool.iter_rows(named=True)):
        if row["source"] == "web" and (row["first"] or not deduplicate) and (row["clean"] or not heuristics):
            kept.append((0 if keep is None else -row["quality_qa"], number))
    kept = sorted(kept)[: int(len(kept) * (keep or 1))]
    assert select(pool, component).tolist() == [number for _, number in kept]


# The stream of tokens


def mix(**weights: float) -> Recipe:
    return Recipe(mixture=[Component(source=source, weight=weight) for source, weight in weights.items()])


def numbers(pool: pl.DataFrame, stream: np.ndarray) -> list[int]:
    """Documents of a stream, in order."""
    starts = np.flatnonzero(stream == 0)
    return [int(stream[start + 1]) - 1 for start in starts if start + 1 < len(stream)]


POOL = made_up({"web": 400, "wiki": 300, "books": 20})


@given(st.integers(2, 9000), st.integers(0, 99), st.floats(0.01, 100), st.floats(0.01, 100))
def test_stream_is_as_long_as_asked_and_cut_at_its_end_alone(tokens, seed, web, books):
    stream = token_stream(POOL, mix(web=web, books=books), tokens, seed)
    assert len(stream) == tokens and stream.dtype == np.int32
    rest = [0, *np.concatenate([POOL["tokens"][n].to_numpy() for n in numbers(POOL, stream)])[1:]]
    assert stream.tolist() == rest[:tokens] or stream[-1] == 0


@pytest.mark.parametrize("tokenizer", [None, "other"])
@given(st.integers(0, 99), st.floats(0.1, 10), st.floats(0.1, 10))
def test_shares_are_shares_of_tokens(tokenizer, seed, web, books):
    """Also where documents differ in length and a component is repeated many times over; at any point of the stream."""
    sources = np.repeat(["web", "books"], [400, 20])
    lengths = np.random.default_rng(seed).integers(1, np.where(sources == "books", 30, 10))
    tokens = pl.Series([[n] * length for n, length in enumerate(lengths)], dtype=pl.List(pl.Int32))
    column = tokens_column(tokenizer)
    pool = pl.DataFrame({"source": sources, "tokens": [[0]] * 420} | {column: tokens})
    is_book = (sources == "books")[token_stream(pool, mix(web=web, books=books), 6000, seed, column)]
    for part in (is_book, is_book[:3000], is_book[3000:]):
        assert part.mean() == pytest.approx(books / (web + books), abs=0.05)


def test_short_component_is_repeated_in_whole_epochs():
    stream = token_stream(POOL, mix(web=1, books=1), 4000, seed=0)
    books = set(POOL.with_row_index().filter(source="books")["index"])
    met = [n for n in numbers(POOL, stream) if n in books]
    epochs = [met[start : start + 20] for start in range(0, len(met), 20)]
    assert len(epochs) > 10
    assert all(set(epoch) == books for epoch in epochs[:-1]), "each document once before any comes again"
    assert all(one != other for one, other in pairwise(epochs[:-1])), "each epoch in an order of its own"


def test_stream_of_another_tokenizer():
    """The same documents in the same order, as many as fill as many tokens."""
    shifted = pl.col("tokens").list.eval(pl.element() + 1000)
    pool = POOL.with_columns(tokens_other=pl.concat_list(shifted, shifted))
    plain = token_stream(pool, mix(web=1), 1500, seed=0)
    stream = token_stream(pool, mix(web=1), 3000, seed=0, column=tokens_column("other"))
    met = numbers(POOL, plain)
    expected = np.concatenate([np.tile(POOL["tokens"][n].to_numpy() + 1000, 2) for n in met])[:2900]
    assert stream[:2900].tolist() == expected.tolist()


def test_long_component_is_not_repeated():
    met = numbers(POOL, token_stream(POOL, mix(web=1), 1500, seed=0))
    assert len(set(met)) == len(met) > 200


def test_seed_decides_the_order():
    recipe = mix(web=1, wiki=2)
    one, same, other = (token_stream(POOL, recipe, 2000, seed) for seed in (0, 0, 1))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_corpora_meet_shared_documents_in_the_same_order():
    """Whatever else is in them: a comparison within a seed is a paired one."""
    recipes = [mix(web=1, wiki=1), mix(wiki=3, books=1), mix(books=1, wiki=1, web=2)]
    wiki = set(POOL.with_row_index().filter(source="wiki")["index"])
    orders = [[n for n in numbers(POOL, token_stream(POOL, r, 1200, seed=7)) if n in wiki] for r in recipes]
    shortest = min(map(len, orders))
    assert shortest > 40
    assert orders[0][: shortest - 1] == orders[1][: shortest - 1] == orders[2][: shortest - 1]
