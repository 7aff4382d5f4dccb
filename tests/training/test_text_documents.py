"""Documents against what was written into files of every kind; damaged files and columns that are not there."""

import gzip
import json
import random

import polars as pl
import pytest
from backports import zstd
from proxycast.config.training import Source, Text
from proxycast.options import InputError
from proxycast.training.text import documents as module
from proxycast.training.text.documents import Counts, documents, documents_fingerprint
from pydantic import ValidationError

ROWS = [
    {"text": f"text {i} é€😀\n" * (i % 4), "score": None if i % 7 == 0 else i % 6, "language": ["en", "de"][i % 2]}
    for i in range(200)
]
TEXTS = [row["text"] for row in ROWS if row["text"]]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
JSON_KINDS = (".jsonl", ".ndjson", ".json.gz", ".jsonl.gz", ".jsonl.zst", ".json.zst")


def with_checksum(data: bytes) -> bytes:
    """As the program `zstd` does; without one, changed bytes may go unnoticed."""
    return zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1})


def packed(data: bytes, kind: str) -> bytes:
    """In two members or frames, as parallel compressors write them."""
    pack = {"gz": gzip.compress, "zst": with_checksum}.get(kind.rsplit(".")[-1])
    half = len(data) // 2
    return pack(data[:half]) + pack(data[half:]) if pack else data


def write_rows(folder, kind):
    path = folder / f"rows{kind}"
    if kind == ".parquet":
        pl.DataFrame(ROWS).write_parquet(path, row_group_size=30)
    else:
        path.write_bytes(packed(LINES, kind))
    return path


def read(*paths, counts=None, seed=0, **keys):
    source = Source(files=str(paths[0]), **keys)
    return [text for batch in documents(paths, source, seed, counts) for text in batch]


@pytest.mark.parametrize("kind", [*JSON_KINDS, ".parquet"])
@pytest.mark.parametrize("batch_bytes", [1 << 22, 100])
def test_all_texts_come_in_order(kind, batch_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BATCH_BYTES", batch_bytes)
    monkeypatch.setattr(module, "SLICE_BYTES", 1000)
    counts = Counts()
    assert read(write_rows(tmp_path, kind), counts=counts) == TEXTS
    assert (counts.read, counts.filtered, counts.empty) == (200, 0, 50)


@pytest.mark.parametrize("kind", [".jsonl.zst", ".parquet"])
@pytest.mark.parametrize("batch_bytes", [1 << 22, 100])  # of 100: a batch may hold nothing but null scores
def test_where_keeps_what_python_keeps(kind, batch_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BATCH_BYTES", batch_bytes)
    counts = Counts()
    texts = read(write_rows(tmp_path, kind), where="score >= 3 and lower(language) = 'en'", counts=counts)
    kept = [row for row in ROWS if (row["score"] or 0) >= 3 and row["language"] == "en"]
    assert texts == [row["text"] for row in kept if row["text"]] and texts
    assert counts == Counts(200, 200 - len(kept), sum(not row["text"] for row in kept))
    assert str(counts).startswith(f"200 documents read, {len(texts)} kept, {200 - len(kept)} dropped by `where`")


def test_columns_of_structs_and_other_names(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"content": "a", "meta": {"stars": 5}}, {"content": "b", "meta": {"stars": 1}}, {"content": "c"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert read(path, column="content", where="meta.stars > 2") == ["a"]


def test_a_column_that_is_null_for_a_while_keeps_its_type(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BATCH_BYTES", 1)
    path = tmp_path / "a.jsonl"
    rows = [{"text": "a", "language": "EN"}, {"text": "b", "language": None}, {"text": None, "language": "en"}]
    rows += [{"text": "c", "language": "en"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert read(path, where="lower(language) = 'en'") == ["a", "c"]


def test_batches_are_bounded_by_bytes(tmp_path):
    texts = ["é" * n for n in (300_000, 300_000, 3_000_000, 1_000_000, 1_000_000, 1, 10, 2_097_000)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))  # \u00e9: a line of 18 MB
    batches = list(documents([path], Source(files="a")))
    assert [[len(text) for text in batch] for batch in batches] == [
        [300_000, 300_000],
        [3_000_000],
        [1_000_000, 1_000_000, 1, 10],
        [2_097_000],
    ]
    assert [text for batch in batches for text in batch] == texts


def test_small_files_share_a_batch_and_come_in_a_seeded_order(tmp_path):
    paths = [tmp_path / f"{i:02}.txt" for i in range(20)]
    for path in paths:
        path.write_text(path.name)
    names = [path.name for path in paths]
    source = Source(files="*.txt")
    assert len(list(documents(paths, source))) == 1
    assert read(*paths) == read(*paths[::-1])  # of the same files, however they are listed
    assert read(*paths, seed=1) != read(*paths, seed=2) != names
    assert sorted(read(*paths, seed=1)) == names


@pytest.mark.parametrize("kind", [".txt", ".txt.gz", ".txt.zst"])
def test_a_text_file_is_one_document_or_pieces_of_whole_lines(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PIECE_BYTES", 50)
    rng = random.Random(0)
    path = tmp_path / f"a{kind}"

    def pieces(text):
        path.write_bytes(packed(b"\xef\xbb\xbf" + text.encode(), kind))
        return read(path)

    whole = "é\r\n\n" + "x" * 42  # exactly 50 bytes with the mark
    assert pieces(whole) == [whole]
    lines = "".join("é€😀a"[rng.randrange(4)] * rng.randrange(12) + "\n" for _ in range(200))
    found = pieces(lines)
    assert "".join(found) == lines
    assert all(len(piece.encode()) <= 50 and piece.endswith("\n") for piece in found) and len(found) > 20
    one_line = "".join(rng.choice("é€😀a") for _ in range(1000))
    found = pieces(one_line)
    assert "".join(found) == one_line and all(40 < len(piece.encode()) <= 50 for piece in found[1:-1])


def test_marks_blank_lines_and_halves_of_pairs(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [b'\xef\xbb\xbf{"text": "a"}\r', b"", b"  ", b'{"text": "\\uD83D\\uDE00 \\uDFFF|"}', b'{"text": "\\udfff"}']
    path.write_bytes(b"\n".join([*lines, b'{"text": ""}', b'{"other": 1}']))
    counts = Counts()
    assert read(path, counts=counts) == ["a", "😀 �|", "�"]
    assert counts == Counts(5, 0, 2)


@pytest.mark.parametrize(
    "line, words",
    [
        (b'{"text": "b"', "line 3: no valid JSON"),
        (b'{"text": "\xff"}', "line 3: no valid JSON .*can't decode byte 0xff"),
        (b'["b"]', "line 3: found a list; each line must be one JSON object"),
        (b'{"text": 12}', "line 3, key text: found the int 12; it must be a string"),
        (b'{"text": ["b"]}', "line 3, key text: found the list"),
    ],
)
def test_bad_lines(line, words, tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n\n' + line + b'\n{"text": "c"}\n'))
    with pytest.raises(InputError, match=f"a.jsonl.gz, {words}"):
        read(path)


@pytest.mark.parametrize("kind", [".jsonl.gz", ".jsonl.zst", ".parquet", ".txt.gz", ".txt.zst"])
@pytest.mark.parametrize("damage", ["truncated", "other", "flipped"])
def test_damaged_files_are_named(kind, damage, tmp_path):
    rng = random.Random(0)
    rows = [{"text": rng.randbytes(200).hex()} for _ in range(2000)]
    path = tmp_path / f"a{kind}"
    if kind == ".parquet":
        pl.DataFrame(rows).write_parquet(path)
    else:
        path.write_bytes(packed("".join(json.dumps(row) + "\n" for row in rows).encode(), kind))
    data = path.read_bytes()
    middle = len(data) // 4
    flipped = data[:middle] + bytes(255 - byte for byte in data[middle : middle + 500]) + data[middle + 500 :]
    path.write_bytes(
        {"truncated": data[: len(data) * 3 // 4], "other": b"something else" * 9, "flipped": flipped}[damage]
    )
    with pytest.raises(InputError, match=f"a{kind}"):
        read(path)


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
def test_columns_that_are_not_there_are_told(kind, tmp_path):
    path = write_rows(tmp_path, kind)
    with pytest.raises(InputError, match="no column 'body', which column names; found language, score, text"):
        read(path, column="body")
    with pytest.raises(InputError, match="no column 'stars', which where names; found language, score, text"):
        read(path, where="stars > 1 and score > 1")
    with pytest.raises(InputError, match=r"where: \"score > 'x'\" cannot be told.*columns: .*score \(Int64\)"):
        read(path, where="score > 'x'")
    for where in ("score + 1", "1 = 1", "sum(score) > 3"):
        with pytest.raises(InputError, match="it must say of each row whether it is kept"):
            read(path, where=where)


def test_each_file_needs_the_columns(tmp_path):
    for name, key in (("a", "text"), ("b", "content")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({key: "x"}))
    with pytest.raises(InputError, match="b.jsonl: no column 'text'"):
        read(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    (tmp_path / "c.txt").write_text("x")
    with pytest.raises(InputError, match="c.txt: no column 'content', which column names; found text"):
        read(tmp_path / "c.txt", column="content")
    pl.DataFrame({"text": [1]}).write_parquet(tmp_path / "d.parquet")
    with pytest.raises(InputError, match="d.parquet, column text: found type Int64; it must hold strings"):
        read(tmp_path / "d.parquet")


def test_other_errors_of_files(tmp_path):
    for name in ("a.csv", "a.parquet.gz", "a.gz"):
        with pytest.raises(InputError, match=f"{name}: unknown kind of file"):
            read(write_rows(tmp_path, ".jsonl"), tmp_path / name)
    (tmp_path / "a.txt").write_bytes(b"good \xe9 bad")
    with pytest.raises(InputError, match="a.txt: byte 5 is not UTF-8"):
        read(tmp_path / "a.txt")
    with pytest.raises(InputError, match="rows.jsonl: no document left; 200 documents read, 0 kept, 200 dropped"):
        read(write_rows(tmp_path, ".jsonl"), where="score > 99")
    (tmp_path / "null.jsonl").write_text('{"text": null}\n{"text": ""}')
    with pytest.raises(
        InputError, match="null.jsonl: no document left; 2 documents read, 0 kept, .* 2 dropped because"
    ):
        read(tmp_path / "null.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(InputError, match="empty.jsonl: no document left; 0 documents read"):
        read(tmp_path / "empty.jsonl")


def test_the_fingerprint_changes_with_files_and_filter_not_with_the_weight(tmp_path):
    path = write_rows(tmp_path, ".jsonl")
    source = Source(files="a", weight=0.5)
    first = documents_fingerprint([path], source)
    assert documents_fingerprint([path], Source(files="a", weight=0.7)) == first
    assert documents_fingerprint([path], Source(files="a", where="score > 1")) != first
    assert documents_fingerprint([path], Source(files="a", column="body")) != first
    assert documents_fingerprint([path], source, seed=1) != first
    path.write_bytes(LINES * 2)
    assert documents_fingerprint([path], source) != first


def test_the_options_of_a_mixture():
    text = Text(mixture=[{"files": "a", "weight": 0.7, "where": "score > 1"}, {"files": ["b"], "weight": 0.3}])
    assert [source.weight for source in text.mixture] == [0.7, 0.3] and text.max_epochs == 4
    assert Text(mixture=[{"files": "a"}]).mixture[0].column == "text"
    with pytest.raises(ValidationError, match="weights of the mixture sum to 1.3; they must sum to 1"):
        Text(mixture=[{"files": "a"}, {"files": "b", "weight": 0.3}])
    with pytest.raises(ValidationError, match="sum to 0.99999"):
        Text(mixture=[{"files": "a", "weight": 0.5}, {"files": "b", "weight": 0.49999}])
    for where, words in [
        ("score >=", "is no condition in SQL"),
        ("a, b", "is no condition in SQL"),
        ("COLUMNS(*) > 1", "gives several columns"),
    ]:
        with pytest.raises(ValidationError, match=words):
            Source(files="a", where=where)
    for wrong in ({"weight": 0}, {"wheer": "x"}, {"column": ""}):
        with pytest.raises(ValidationError):
            Source(files="a", **wrong)
