"""Which sources a corpus is mixed from: by recipes, by texts, by a table; and tables that are refused."""

from pathlib import Path

import pytest
from proxycast.config.corpora import Corpus
from proxycast.config.experiments.selection_options import MixtureOptions
from proxycast.experiments.data_selection.mixtures import as_csv
from proxycast.options import InputError
from proxycast.study.loader import load_plan
from proxycast.study.yaml_files import read_yaml
from proxycast.truth.mixture_ratios import known_mixtures, ratio_table, read_ratios

ROOT = Path(__file__).parents[2]
NAMES = {"a": "a", "Corpus B": "b", "c": "c"}


def test_recipes_with_their_filters():
    base = {"source": "web", "weight": 3, "deduplicate": True}
    rich = base | {"heuristics": True, "classifier": "qa", "keep": 0.25, "weight": 1}
    corpora = [
        Corpus(name="a", recipe={"mixture": [base, rich, base | {"weight": 1}]}),
        Corpus(name="b", recipe={"mixture": [base]}),
        Corpus(name="c", checkpoints=[{"folder": "x"}]),
    ]
    assert known_mixtures(corpora, None, {}) == {
        "a": {"web deduplicate": 0.8, "web deduplicate heuristics qa:0.25": 0.2},
        "b": {"web deduplicate": 1.0},
    }
    assert known_mixtures(corpora[1:], None, {}) == {}  # one mixture alone
    assert (
        known_mixtures([corpora[1], Corpus(name="d", recipe={"mixture": [rich]})], None, {}) == {}
    )  # nothing is mixed


def test_texts():
    parts = [{"files": "web/*.jsonl", "weight": 0.75}, {"files": ["b.txt", "c.txt"], "hub": "a/b", "weight": 0.25}]
    filtered = parts[0] | {"where": "score > 3", "weight": 1.0}
    corpora = [Corpus(name="a", text={"mixture": parts}), Corpus(name="b", text={"mixture": [filtered]})]
    assert known_mixtures(corpora, None, {}) == {
        "a": {"web/*.jsonl": 0.75, "a/b: b.txt; c.txt": 0.25},
        "b": {"web/*.jsonl where score > 3": 1.0},
    }


def test_ratios_that_were_written_are_read_again(tmp_path):
    plan = load_plan(read_yaml(ROOT / "config/config.yaml"), "config/config.yaml", ROOT / "config")
    assert len(plan.mixtures) == 25
    assert plan.mixtures["core_25_base_75"]["web deduplicate"] == pytest.approx(0.255)
    as_csv("ratios", ratio_table(plan.mixtures)).write_csv(tmp_path / "ratios.csv")
    found = read_ratios(tmp_path / "ratios.csv", {name: name for name in plan.mixtures})
    assert found.keys() == plan.mixtures.keys()
    for name, shares in plan.mixtures.items():
        assert found[name] == pytest.approx(shares) and sum(found[name].values()) == pytest.approx(1)


def test_a_table_takes_the_place_of_recipes(tmp_path):
    path = tmp_path / "ratios.csv"
    path.write_text("run,name,index,web,code\na,x,0,0.7,0.304\nCorpus B,y,1,1,0\n")
    corpora = [Corpus(name="a", recipe={"mixture": [{"source": "web", "weight": 1}]})]
    found = known_mixtures(corpora, MixtureOptions(ratios=path), NAMES)
    assert found == {"a": pytest.approx({"web": 0.7 / 1.004, "code": 0.304 / 1.004}), "b": {"web": 1.0}}


@pytest.mark.parametrize(
    "text, said",
    [
        ("corpus,web,code\na,1,0\n", "found the columns ['corpus', 'web', 'code'], but none is run"),
        ("run,web\na,1\nc,1\n", "found 1 columns of sources"),
        ("run,web,code\na,1,0\nd,1,0\n", "line 3: run 'd' is no corpus of the study"),
        (
            "run,web,code\na,1,0\nCorpus b,1,0\n",
            "line 3: run 'Corpus b' is no corpus of the study; did you mean 'Corpus B'?",
        ),
        ("run,web,code\na,1,0\na,0,1\n", "line 3: a stands there twice"),
        ("run,web,code\na,0.5,0.4\nc,1,0\n", "line 2 (a): the shares sum to 0.9; they must sum to 1"),
        ("run,web,code\na,50,50\nc,1,0\n", "line 2 (a): web: found '50'; a share of tokens is from 0 to 1"),
        ("run,web,code\na,1,\nc,1,0\n", "line 2 (a): code: found None; a share"),
        ("run,web,code\na,nan,1\nc,1,0\n", "line 2 (a): web: found 'nan'; a share"),
        ("run,web,code\na,-0.1,1.1\nc,1,0\n", "line 2 (a): web: found '-0.1'; a share"),
        ("run,web,code\na,1,0\n", "found 1 corpora; mixtures are compared from two on"),
        ("run,web,code\n,1,0\nc,1,0\n", "line 2: run None is no corpus of the study"),
    ],
)
def test_tables_that_are_refused(tmp_path, text, said):
    path = tmp_path / "ratios.csv"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_ratios(path, NAMES)
    assert str(path) in str(error.value) and said in str(error.value)


def test_the_key_is_for_a_data_selection(tmp_path):
    path = tmp_path / "ratios.csv"
    path.write_text("run,web,code\nbase,0.5,0.5\nweb,1,0\n")
    study = read_yaml(ROOT / "config/config.yaml") | {"mixtures": {"ratios": str(path)}}
    assert load_plan(study, "s.yaml", ROOT / "config").mixtures["web"] == {"web": 1.0}
    path.write_text("run,web,code\nbase,0.5,0.5\nwbe,1,0\n")
    with pytest.raises(InputError, match="line 3: run 'wbe' is no corpus of the study; did you mean 'web'"):
        load_plan(study, "s.yaml", ROOT / "config")
    models = read_yaml(ROOT / "config/miniature_model_selection.yaml") | {"mixtures": {"ratios": str(path)}}
    with pytest.raises(InputError, match="s.yaml: mixtures: corpora are mixtures in a data selection"):
        load_plan(models, "s.yaml", ROOT / "config")
