"""Shards against a plain loop over the tokenizer; the order of a run against its definition, for any mixture."""

import json
from collections import Counter

import numpy as np
import pytest
from conftest import EOS, byte_level_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from proxycast.options import InputError
from proxycast.training.text import shards as module
from proxycast.training.text.shards import Tokens, TokenStream, _finished_shards, shares, tokenize_source
from tokenizers import Tokenizer, models, pre_tokenizers

END, VOCABULARY = 1, 295
DOCUMENTS = [f"Q: what is {i} plus 3?\nA: é€😀 {i} " * (1 + i % 5) for i in range(60)]
BATCHES = [DOCUMENTS[:1], DOCUMENTS[1:20], DOCUMENTS[20:45], DOCUMENTS[45:]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_level_tokenizer(bos=True, eos=True).save_pretrained(folder)  # adds tokens of its own where it may
    return folder / "tokenizer.json"


def expected(tokenizer, documents=DOCUMENTS):
    """One document after the other, by the plain call."""
    library = Tokenizer.from_file(str(tokenizer))
    return [i for text in documents for i in (*library.encode(text, add_special_tokens=False).ids, END)]


def tokens_in(folder):
    tokens = Tokens(folder)
    out = np.empty(tokens.tokens, np.int64)
    tokens.read(0, out)
    return out.tolist()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("shard_tokens", [1, 700, 10**6])
def test_shards_hold_what_a_plain_loop_gives(shard_tokens, tokenizer, tmp_path):
    manifest = tokenize_source(iter(BATCHES), tokenizer, tmp_path, 10**9, END, "x", shard_tokens)
    reference = expected(tokenizer)
    assert tokens_in(tmp_path) == reference
    names = [shard["name"] for shard in manifest["shards"]]
    assert len(names) == {1: 4, 700: 3, 10**6: 1}[shard_tokens]
    assert b"".join((tmp_path / name).read_bytes() for name in names) == np.array(reference, "<u2").tobytes()
    assert manifest == json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["tokens"], manifest["documents"]) == (len(reference), 60)
    assert manifest["text_bytes"] == len("".join(DOCUMENTS).encode())
    assert (manifest["dtype"], manifest["vocabulary"], manifest["end_of_text"]) == ("<u2", VOCABULARY, END)
    assert sorted(contents(tmp_path)) == sorted(
        [*names, *(name.replace("bin", "json") for name in names), "manifest.json"]
    )


def test_no_more_is_read_than_needed(tokenizer, tmp_path):
    batches = iter(BATCHES)
    first_two = expected(tokenizer, DOCUMENTS[:20])
    tokenize_source(batches, tokenizer, tmp_path, len(first_two), END, "x")
    assert tokens_in(tmp_path) == first_two and next(batches) == BATCHES[2]
    tokenize_source(iter(BATCHES), tokenizer, tmp_path, len(first_two) + 1, END, "x")  # goes on behind those
    assert tokens_in(tmp_path) == expected(tokenizer, DOCUMENTS[:45])


def test_large_vocabularies_take_four_bytes(tmp_path):
    words = {f"w{i}": i for i in range(70_000)} | {"?": 70_000}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "t.json"))
    manifest = tokenize_source(iter([["w66666 w3"]]), tmp_path / "t.json", tmp_path / "s", 9, 70_000, "x")
    assert manifest["dtype"] == "<u4" and tokens_in(tmp_path / "s") == [66666, 3, 70_000]


@pytest.mark.parametrize("size, dtype", [(2**16, "<u2"), (2**16 + 1, "<u4")])
def test_the_largest_vocabulary_of_two_bytes(size, dtype, tmp_path):
    words = {"?": size - 1}  # ids may have gaps
    Tokenizer(models.WordLevel(words, unk_token="?")).save(str(tmp_path / "t.json"))
    manifest = tokenize_source(iter([["a"]]), tmp_path / "t.json", tmp_path / "s", 9, 0, "x")
    assert manifest["dtype"] == dtype and tokens_in(tmp_path / "s") == [size - 1, 0]


def test_special_tokens_in_text_stay_text(tokenizer, tmp_path):
    text = f"a{EOS}b"
    assert END in Tokenizer.from_file(str(tokenizer)).encode(text, add_special_tokens=False).ids
    tokenize_source(iter([[text]]), tokenizer, tmp_path, 10**9, END, "x")
    found = tokens_in(tmp_path)
    assert found.count(END) == 1 and found[-1] == END
    assert Tokenizer.from_file(str(tokenizer)).decode(found[:-1]) == text


def test_truncation_and_padding_of_the_tokenizer_are_off(tokenizer, tmp_path):
    limited = Tokenizer.from_file(str(tokenizer))
    limited.enable_truncation(5)
    limited.enable_padding()
    limited.save(str(tmp_path / "t.json"))
    tokenize_source(iter(BATCHES), tmp_path / "t.json", tmp_path / "s", 10**9, END, "x")
    assert tokens_in(tmp_path / "s") == expected(tokenizer)


class Killed(BaseException):
    pass


def killed_after(batches):
    yield from BATCHES[:batches]
    raise Killed


@pytest.mark.parametrize("batches, done", [(0, 0), (1, 0), (2, 20), (3, 45)])
def test_a_killed_job_goes_on_behind_its_finished_shards(batches, done, tokenizer, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    tokenize_source(iter(BATCHES), tokenizer, whole, 10**9, END, "x", 700)
    assert [shard["documents"] for shard in json.loads((whole / "manifest.json").read_text())["shards"]] == [20, 25, 15]
    folder = tmp_path / "killed"
    if batches:
        with pytest.raises(Killed):
            tokenize_source(killed_after(batches), tokenizer, folder, 10**9, END, "x", 700)
        assert not list(folder.glob("manifest.json"))
        (folder / ".00001.99.bin").write_bytes(b"half")  # of a process that could not tidy up
    seen = []
    encode = module._encode_documents
    monkeypatch.setattr(module, "_encode_documents", lambda *a: (seen.extend(a[1]), encode(*a))[1])
    rerun = [DOCUMENTS[:30], DOCUMENTS[30:]] if done else BATCHES  # other batches, same documents
    tokenize_source(iter(rerun), tokenizer, folder, 10**9, END, "x", 700)
    assert seen == DOCUMENTS[done:]
    assert tokens_in(folder) == tokens_in(whole)
    assert done or contents(folder) == contents(whole)
    assert not list(folder.glob(".*"))


def test_nothing_is_reused_of_other_text_or_another_tokenizer(tokenizer, tmp_path):
    other = tmp_path / "other.json"
    other.write_text(tokenizer.read_text() + "\n")
    made = [("x", tokenizer, END), ("y", tokenizer, END), ("y", other, END), ("y", other, 0)]
    for number, (made_from, path, end) in enumerate(made):
        batches = [[f"text {number}"]] * (4 - number)
        tokenize_source(iter(batches), path, tmp_path / "s", 10**9, end, made_from, 1)
        assert tokens_in(tmp_path / "s") == [*expected(path, [f"text {number}"])[:-1], end] * len(batches)
        assert len(list((tmp_path / "s").glob("*.bin"))) == len(batches)


def test_a_killed_job_leaves_no_manifest_of_former_text(tokenizer, tmp_path):
    tokenize_source(iter(BATCHES), tokenizer, tmp_path, 10**9, END, "x")
    with pytest.raises(Killed):
        tokenize_source(killed_after(2), tokenizer, tmp_path, 10**9, END, "y", 1)
    with pytest.raises(InputError, match="no such file; .* let that job finish"):
        Tokens(tmp_path)


@pytest.mark.parametrize("name", ["00000.bin", "00001.bin"])
@pytest.mark.parametrize("damage", ["truncated", "gone"])
def test_damaged_shards_are_told_and_made_anew(name, damage, tokenizer, tmp_path):
    tokenize_source(iter(BATCHES), tokenizer, tmp_path, 10**9, END, "x", 700)
    path = tmp_path / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    if damage == "gone":
        path.unlink()
    with pytest.raises(InputError, match=rf"{name}: found .*promises {len(whole)} bytes; run the same command again"):
        Tokens(tmp_path)
    tokenize_source(iter(BATCHES), tokenizer, tmp_path, 10**9, END, "x", 700)
    assert path.read_bytes() == whole and tokens_in(tmp_path) == expected(tokenizer)


def test_bad_input(tokenizer, tmp_path):
    with pytest.raises(InputError, match="manifest.json: no such file"):
        Tokens(tmp_path)
    for end in (-1, VOCABULARY):
        with pytest.raises(InputError, match=f"end-of-text token {end} is not among its ids 0 to {VOCABULARY - 1}"):
            tokenize_source(iter(BATCHES), tokenizer, tmp_path, 9, end, "x")
    (tmp_path / "t.json").write_text("{}")
    for name in ("t.json", "none.json"):
        with pytest.raises(InputError, match=f"{name}: no readable tokenizer"):
            tokenize_source(iter(BATCHES), tmp_path / name, tmp_path, 9, END, "x")


def test_a_document_at_which_the_tokenizer_fails_is_an_error(tmp_path):
    Tokenizer(models.Unigram([("a", 0.0), ("<end>", 0.0)])).save(str(tmp_path / "t.json"))  # knows no unknown token
    with pytest.raises(InputError, match="t.json: the tokenizer fails behind document 1 of 00000.bin: .*unk_id"):
        tokenize_source(iter([["aa"], ["ab"]]), tmp_path / "t.json", tmp_path, 9, 1, "x")
    assert not (tmp_path / "00000.bin").exists()


def write_tokens(folder, lengths, first=0, tokenizer="t"):
    """Shards whose tokens count up from `first`, so that each sequence tells where it is from."""
    tokens = np.arange(first, first + sum(lengths), dtype="<u4")
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{i:05}.bin" for i in range(len(lengths))]
    for name, part in zip(names, np.split(tokens, np.cumsum(lengths)[:-1])):
        part.tofile(folder / name)
    listed = [{"name": name, "tokens": length} for name, length in zip(names, lengths)]
    manifest = {"tokens": len(tokens), "dtype": "<u4", "tokenizer": tokenizer, "shards": listed}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


SOURCES = st.lists(
    st.tuples(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.floats(0.01, 1)), min_size=1, max_size=4
)


@settings(max_examples=60)
@given(SOURCES, st.integers(1, 7), st.integers(1, 12), st.integers(1, 5), st.integers(0, 9))
def test_the_order_of_any_mixture(tmp_path_factory, sources, length, steps, batch_sequences, seed):
    """Each sequence is a block; each source has its share; of each source, every block comes once an epoch."""
    root = tmp_path_factory.mktemp("mixture")
    sources = [([*lengths, length], weight) for lengths, weight in sources]  # at least a block in each
    folders = [write_tokens(root / str(i), lengths, 10_000 * i) for i, (lengths, _) in enumerate(sources)]
    weights = [weight for _, weight in sources]
    stream = TokenStream(folders, weights, steps, batch_sequences, length, seed, max_epochs=10**6)
    batches = [stream.batch(step) for step in range(steps)]
    assert all(batch.shape == (batch_sequences, length) and batch.dtype == np.int64 for batch in batches)
    rows = np.concatenate(batches)
    assert (rows == rows[:, :1] + np.arange(length)).all()
    origin, start = rows[:, 0] // 10_000, rows[:, 0] % 10_000
    assert (start % length == 0).all()
    for number, (lengths, weight) in enumerate(sources):
        blocks = (start[origin == number] // length).tolist()
        assert abs(len(blocks) - weight / sum(weights) * steps * batch_sequences) < 1 + 1e-9
        count = sum(lengths) // length
        for epoch in range(0, len(blocks), count):
            part = blocks[epoch : epoch + count]
            assert len(set(part)) == len(part) and set(part) <= set(range(count))
    again = TokenStream(folders, weights, steps, batch_sequences, length, seed, max_epochs=10**6)
    for step in reversed(range(steps)):  # another object, another order of steps
        assert (again.batch(step) == batches[step]).all()


@given(st.lists(st.floats(1e-3, 1), min_size=1, max_size=8), st.integers(0, 10**7))
def test_shares_are_exact_within_one(weights, total):
    counts = shares(weights, total)
    assert sum(counts) == total
    assert all(abs(count - weight / sum(weights) * total) < 1 + 1e-6 for count, weight in zip(counts, weights))


def test_shares_of_weights_that_are_no_binary_fractions():
    assert shares([0.7, 0.2, 0.1], 10) == [7, 2, 1]
    assert shares([0.5, 0.3, 0.2], 9) == [4, 3, 2]  # of 4.5, 2.7, 1.8


def test_seeds_and_epochs_have_orders_of_their_own(tmp_path):
    folders = [write_tokens(tmp_path / "a", [500, 500]), write_tokens(tmp_path / "b", [1000], 10_000)]

    def order(seed):
        stream = TokenStream(folders, [0.5, 0.5], 40, 10, 10, seed)
        return np.concatenate([stream.batch(step)[:, 0] for step in range(40)])

    orders = {seed: order(seed) for seed in range(3)}
    assert len({tuple(x) for x in orders.values()}) == 3
    assert len({tuple(x >= 10_000) for x in orders.values()}) == 3  # also in which source comes when
    alone = [TokenStream(folders[:1], [1], 1, 100, 10, seed).batch(0)[:, 0].tolist() for seed in range(3)]
    assert alone[0] != alone[1] != alone[2] != alone[0]
    one, other = orders[0][orders[0] < 10_000], orders[0][orders[0] >= 10_000] - 10_000
    assert len(one) == len(other) == 200
    epochs = [tuple(x[i : i + 100]) for x in (one, other) for i in (0, 100)]
    assert len(set(epochs)) == 4 and all(sorted(x) == list(range(0, 1000, 10)) for x in epochs)
    assert set(epochs).isdisjoint([tuple(range(0, 1000, 10))])
    halves = Counter((orders[0][:200] >= 10_000).tolist())
    assert 70 < halves[True] < 130  # a share is spread over the run, not in one part of it


def test_repeats_are_limited(tmp_path):
    folders = [write_tokens(tmp_path / "a", [105]), write_tokens(tmp_path / "b", [4000])]
    TokenStream(folders, [0.25, 0.75], 16, 10, 10, 0)  # 40 sequences of 10 blocks: 4 epochs
    words = "a, source 0 of the mixture: found 105 tokens, but its share of the run is 410, more than 4 epochs"
    with pytest.raises(InputError, match=words):
        TokenStream(folders, [0.25, 0.75], 164, 1, 10, 0)
    TokenStream(folders, [0.25, 0.75], 164, 1, 10, 0, max_epochs=4.1)
    with pytest.raises(InputError, match="found 105 tokens, but its share of the run is 106"):
        TokenStream(folders[:1], [1], 1, 1, 106, 0)


def test_tokenizers_must_agree_and_steps_exist(tmp_path):
    folders = [write_tokens(tmp_path / "a", [10]), write_tokens(tmp_path / "b", [10], tokenizer="u")]
    with pytest.raises(InputError, match="tokenised by different tokenizers"):
        TokenStream(folders, [0.5, 0.5], 1, 2, 5, 0)
    stream = TokenStream(folders[:1], [1], 1, 2, 5, 0)
    for step in (-1, 1):
        with pytest.raises(IndexError):
            stream.batch(step)


@pytest.mark.parametrize("name", ["../b/00000.bin", "{outside}", "00001.bin", "./00000.bin", 7, None])
@pytest.mark.parametrize("place", ["manifest.json", "00000.json"])
def test_shards_are_read_under_their_own_names_alone(tmp_path, place, name):
    """A record that somebody else wrote may name any file of two bytes a token."""
    outside = write_tokens(tmp_path / "b", [10]) / "00000.bin"
    folder = write_tokens(tmp_path / "a", [10])
    shard = {"name": str(outside) if name == "{outside}" else name, "tokens": 10}
    before = outside.read_bytes()
    if place == "manifest.json":
        manifest = json.loads((folder / place).read_text())
        (folder / place).write_text(json.dumps(manifest | {"shards": [shard]}))
        with pytest.raises(InputError, match="a/manifest.json: no list of shards"):
            Tokens(folder)
    else:
        (folder / place).write_text(json.dumps(shard | {"documents": 1, "text_bytes": 1, "made_from": "x"}))
        assert _finished_shards(folder, np.dtype("<u4"), "x") == [] and not (folder / place).exists()
    assert outside.read_bytes() == before


@pytest.mark.parametrize("counts", [{"documents": -9}, {"documents": "x"}, {"text_bytes": "x"}, {"text_bytes": None}])
def test_counts_of_a_shard_are_numbers_or_it_is_made_again(tmp_path, counts):
    folder = write_tokens(tmp_path / "a", [10])
    shard = {"name": "00000.bin", "tokens": 10, "documents": 1, "text_bytes": 1, "made_from": "x"}
    kind = np.dtype(json.loads((folder / "manifest.json").read_text())["dtype"])
    for said, count in ((shard, 1), (shard | counts, 0)):
        (folder / "00000.json").write_text(json.dumps(said))
        assert len(_finished_shards(folder, kind, "x")) == count


@pytest.mark.parametrize("manifest", ["[]", "{}", "{", '{"shards": [7]}', '{"shards": [], "dtype": "O"}', "[" * 10**5])
def test_a_manifest_of_bad_faith(tmp_path, manifest):
    folder = write_tokens(tmp_path / "a", [10])
    (folder / "manifest.json").write_text(manifest)
    with pytest.raises(InputError, match="no list of shards"):
        Tokens(folder)


def test_a_shard_that_is_a_link_is_not_read(tmp_path):
    folder, outside = write_tokens(tmp_path / "a", [10]), write_tokens(tmp_path / "b", [10]) / "00000.bin"
    (folder / "00000.bin").unlink()
    (folder / "00000.bin").symlink_to(outside)
    with pytest.raises(InputError, match="00000.bin: found"):
        Tokens(folder)
