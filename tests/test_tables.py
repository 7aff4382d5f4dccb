"""Sealed tables, and what tells that an input file has changed."""

import csv
import os
import re
import shutil

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from proxycast import tables
from proxycast.options import InputError
from proxycast.tables import (
    MANIFEST,
    input_states,
    is_sealed,
    is_unchanged,
    read_json,
    read_table,
    require_parts,
    require_unchanged,
    scan_tables,
    seal,
    sealed_by,
    table_fingerprint,
    table_metadata,
    write_json,
    write_table,
)

TABLE = pl.DataFrame({"key": [f"k{n % 7}" for n in range(500)], "value": [n * 0.37 for n in range(500)]})


@pytest.mark.parametrize("table", [TABLE, TABLE.lazy(), TABLE.head(0)], ids=["frame", "lazy", "empty"])
def test_a_sealed_table_is_parquet_for_every_reader(tmp_path, table):
    path = tmp_path / "a[b]*.parquet"
    write_table(table, path, "mark", metadata={"more": "told"})
    assert is_sealed(path)
    assert table_fingerprint(path) == "mark" and table_metadata(path)["more"] == "told"
    for found in (read_table(path), pl.read_parquet(path, glob=False), pl.scan_parquet(path, glob=False).collect()):
        assert_frame_equal(found, table.lazy().collect())
    assert scan_tables([path, path]).select(pl.len()).collect().item() == 2 * len(read_table(path))


@settings(max_examples=300)
@given(st.data())
def test_every_flipped_bit_is_found(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("flip") / "a.parquet"
    write_table(TABLE.head(20), path, "mark")
    content = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    assert not is_sealed(path) and table_fingerprint(path) is None
    with pytest.raises(InputError, match=r"a\.parquet: damaged: its bytes are not those that were written"):
        read_table(path)
    assert not path.exists() and path.with_name("a.parquet.damaged").read_bytes() == content


def test_a_table_without_a_seal_is_not_read(tmp_path):
    TABLE.write_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="damaged"):
        scan_tables(tmp_path / "a.parquet")


def test_parts_are_those_of_their_manifest(tmp_path):
    for name in "ab":
        write_table(TABLE, tmp_path / f"{name}.parquet", f"of {name}")
    manifest = tmp_path / MANIFEST
    write_json({"a": "of a", "b": "of b"}, manifest)
    assert require_parts(manifest) == [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    write_table(TABLE, tmp_path / "b.parquet", "of other settings")
    with pytest.raises(InputError, match=r"b\.parquet: found the fingerprint of other settings, but of b in manifest"):
        require_parts(manifest)
    assert not manifest.exists() and (tmp_path / "b.parquet").exists()


def replaced_as_by_rsync(path, content: bytes) -> None:
    """Another file of the same name, size and time."""
    before = path.stat()
    other = path.with_name("other")
    other.write_bytes(content)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.mark.parametrize("most_bytes", [100, -1], ids=["by content", "by stat"])
def test_an_input_that_was_replaced_with_its_time_kept_has_changed(tmp_path, most_bytes):
    path = tmp_path / "a.csv"
    path.write_bytes(b"before")
    first = input_states([path], most_bytes)
    assert input_states([str(path)], most_bytes) == first
    replaced_as_by_rsync(path, b"behind")
    assert input_states([path], most_bytes) != first


def test_a_copy_of_a_small_input_has_not_changed(tmp_path):
    (tmp_path / "one").mkdir()
    path = tmp_path / "one" / "a.csv"
    path.write_bytes(b"text")
    first = input_states([path])
    shutil.move(tmp_path / "one", tmp_path / "two")
    shutil.copytree(tmp_path / "two", tmp_path / "one")
    os.utime(path, (1, 1))
    assert input_states([path]) == first


def test_absent_inputs_count_too(tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    found = {input_states([]), input_states([tmp_path / "a"]), input_states([tmp_path / "a", tmp_path / "b"])}
    assert len(found) == 3


@given(st.data())
def test_a_sealed_text_is_not_read_once_a_bit_of_it_has_flipped(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("seal") / "a.jsonl"
    path.write_text('{"id": "1"}\n')
    seal(path)
    require_unchanged(path)
    (hidden,) = (file for file in path.parent.iterdir() if file != path)
    assert sealed_by(hidden) == path and sealed_by(path) is None
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    assert not is_unchanged(path)
    with pytest.raises(InputError, match="a.jsonl: damaged"):
        require_unchanged(path)
    assert not path.exists() and (path.parent / "a.jsonl.damaged").read_bytes() == content


def test_a_text_that_was_never_sealed_may_be_anything(tmp_path):
    (tmp_path / "own.jsonl").write_text("{}")
    require_unchanged(tmp_path / "own.jsonl")
    require_unchanged(tmp_path / "absent.jsonl")


@pytest.mark.parametrize("content", [None, "", "[]", "{", '{"a": 1', "\udc00"])
def test_a_record_that_is_not_whole_counts_as_absent(tmp_path, content):
    path = tmp_path / "record.json"
    if content is not None:
        path.write_bytes(content.encode(errors="surrogatepass"))
    assert read_json(path) == {}
    write_json({"a": 1}, path)
    assert read_json(path) == {"a": 1}


def test_edits_while_a_study_ran_change_the_state_of_their_file_alone(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("1")
    other.write_text("2")
    assert input_states([one], edits={}) == input_states([one]) == input_states([one], edits={str(other): 1})
    states = {input_states([one]), input_states([one], edits={str(one): 1}), input_states([one], edits={str(one): 2})}
    assert len(states) == 3


def test_a_dry_run_gives_no_file_another_name(tmp_path, monkeypatch):
    path = tmp_path / "solutions.jsonl"
    path.write_text("one")
    seal(path)
    path.write_text("two")
    monkeypatch.setattr(tables, "_CHANGES_NOTHING", [])
    tables.change_nothing()
    with pytest.raises(InputError, match="solutions.jsonl: damaged.*a run without -n"):
        require_unchanged(path)
    assert path.read_text() == "two" and not path.with_name("solutions.jsonl.damaged").exists()
    monkeypatch.setattr(tables, "_CHANGES_NOTHING", [])
    with pytest.raises(InputError, match="It is solutions.jsonl.damaged now"):
        require_unchanged(path)
    assert not path.exists()


FORMULAS = [
    "=1+1",
    "+1",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    " =1",
    "\n=1",
    "＝1",
    "x;=1+1",
    "x\t=1",
    'x"\n=cmd|calc!A0',
    ";=1",
]


def test_no_cell_of_a_csv_is_a_formula(tmp_path):
    """Whatever a spreadsheet takes for the end of a cell; numbers stay numbers."""
    table = pl.DataFrame({"text": FORMULAS, "number": [-1.5] * len(FORMULAS), "count": [-3] * len(FORMULAS)})
    kinds = [pl.String, pl.Categorical, pl.Enum(FORMULAS)]
    table = table.with_columns(pl.col("text").cast(kind).alias(f"text{n}") for n, kind in enumerate(kinds))
    write_table(table, tmp_path / "t.parquet", "x", csv=True)
    found = pl.read_csv(tmp_path / "t.csv")
    for name in ("text", "text0", "text1", "text2"):
        for cell in found[name]:
            assert not any(re.match(r"[\s=+\-@＝]", part) for part in re.split("[;\t\r\n]", cell) if part), repr(cell)
    assert found["number"].unique().to_list() == [-1.5] and found["count"].unique().to_list() == [-3]
    assert read_table(tmp_path / "t.parquet")["text"].to_list() == FORMULAS  # the parquet holds what was said


def test_quotes_and_columns_names_hide_no_formula(tmp_path):
    """Where a list is separated by semicolons, a cell may begin within a text, and loses its quotes."""
    table = pl.DataFrame({"=1+1": ['a;"=HYPERLINK(1);b', 'a;""@x'], "b;+1": [1, 2], "plain": [1, 2]})
    write_table(table, tmp_path / "t.parquet", "x", csv=True)
    rows = list(csv.reader((tmp_path / "t.csv").open(newline=""), delimiter=";"))
    assert len(rows) == 3 and not any(cell.lstrip('"')[:1] in "=+@" for row in rows for cell in row if cell)
    assert pl.read_csv(tmp_path / "t.csv").columns == ["'=1+1", "b;'+1", "plain"]


def test_ordinary_texts_of_a_csv_are_as_they_are(tmp_path):
    texts = ["a-b", "a = b", "1+1", "it's", "too few corpora; - none", "", None, "10 % (QC 7%, FW3)"]
    write_table(pl.DataFrame({"text": texts}), tmp_path / "t.parquet", "x", csv=True)
    assert pl.read_csv(tmp_path / "t.csv")["text"].to_list()[:5] == texts[:5]
