"""`proxycast tokens`: a solution token by token, the tokens that decide, and what is refused."""

import json
import shutil

import pytest
from proxycast.command import token_screen
from rich.console import Console
from test_main import project, refused, said  # noqa: F401
from token_study import TOP5, pairs_of_bytes, study_file, value, write_ranking, write_study

TINY = "config/tiny.yaml"


@pytest.fixture
def tiny(project):  # noqa: F811
    """A finished study in the working directory."""
    write_study(project / "results/tiny")
    write_ranking(project / "results/tiny")
    study_file(project)
    return project / "results/tiny"


def test_the_first_and_the_last_of_the_order_are_shown(tiny):
    order = write_ranking(tiny)["corpus"].to_list()
    before = sorted(path.stat().st_mtime_ns for path in tiny.rglob("*"))
    text = said("tokens", TINY)
    difference = [
        sum(value(tiny, f"{c}-small-seed{s}-step20", TOP5) for s in (0, 1)) / 2 for c in (order[0], order[-1])
    ]
    assert f"{order[0]} less {order[-1]} is {difference[0] - difference[1]:+.4g}, the sum over all tokens" in text
    assert f"{order[0]}, step 20" in text and f"{order[-1]}, step 20" in text and "cross_entropy" in text
    assert "tokens that decide, largest first" in text
    assert "\x1b" not in text  # no terminal, no colours
    assert sorted(path.stat().st_mtime_ns for path in tiny.rglob("*")) == before


def test_the_two_that_the_study_names_are_shown_and_the_command_may_name_others(tiny, project):  # noqa: F811
    study_file(project, token_view=["bad", "fair"])
    text = said("tokens", TINY)
    assert "bad less fair is" in text and "good" not in text
    assert "good less bad is" in said("tokens", TINY, "--candidates", "good", "bad")


def test_what_is_named_is_shown(tiny):
    words = "--task", "words", "--solution", "words-1", "--candidates", "bad", "fair", "--step", "10"
    text = said("tokens", TINY, *words, "--by", "difference")
    assert "words: words-1, by contribution" in text and "before: Q1:⏎" in text
    assert "bad, step 10" in text and "fair, step 10" in text and "good" not in text


def test_what_is_unknown_is_told_with_what_there_is(tiny):
    assert "no task 'word' here; did you mean 'words'?; there are sums, words" in refused(
        "tokens", TINY, "--task", "word"
    )
    of_words = refused("tokens", TINY, "--task", "words", "--solution", "sums-1")
    assert "no solution 'sums-1' here" in of_words and "words-0" in of_words
    assert "no corpus 'x' here" in refused("tokens", TINY, "--candidates", "x", "good")
    assert "no step 3 here; there are 10, 20" in refused("tokens", TINY, "--step", "3")
    assert "'rank'" in refused("tokens", TINY, "--by", "ranks", status=2)


def test_a_study_without_token_statistics_is_refused(tiny):
    shutil.rmtree(tiny / "token_stats")
    assert "no token statistics in results/tiny/token_stats; run it first" in refused("tokens", TINY)


def test_a_damaged_table_is_told_and_left_where_it_is(tiny):
    for path in tiny.glob("token_stats/*/*step20.parquet"):
        path.write_bytes(path.read_bytes()[:-40] + bytes(40))
    assert "damaged" in refused("tokens", TINY) and not list(tiny.rglob("*.damaged"))


def test_other_tokenizers_are_shown_apart(tiny):
    write_study(tiny, tokenizers={"bad": pairs_of_bytes})
    text = said("tokens", TINY, "--candidates", "good", "bad")
    assert "their tokenizers differ" in text and "solutions that decide" in text


def test_a_terminal_gets_colours_and_no_control_characters_of_the_texts(tiny, monkeypatch, capsys):
    path = tiny / "solutions/sums.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["prompt"] = "\x1b]0;title\x07"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tiny / "solutions/.sums.jsonl.sha256").unlink()
    monkeypatch.setattr(
        token_screen, "Console", lambda **keys: Console(width=100, force_terminal=True, color_system="truecolor")
    )
    text = said("tokens", TINY, "--task", "sums")
    assert "\x1b]0" not in text and "\\x1b]0;title\\x07" in text
    assert "\x1b[30;48;2;" in text  # black on a colour
    assert "ranks it better, by 4 times or more" in text
