"""Models and their training: the logits of transformers, the optimisers' formulas, and runs that survive a kill."""

import fcntl
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from proxycast.config.training import CONTEXT, Component, Recipe, Size, Suite, Training
from proxycast.options import InputError
from proxycast.study.checkpoints import count_parameters
from proxycast.training.miniature import train_corpus as pretraining
from proxycast.training.miniature.recipes import token_stream, tokens_column
from proxycast.training.miniature.suite_tokenizer import save_tokenizer, train_tokenizer
from proxycast.training.miniature.train_corpus import (
    ARCHITECTURES,
    Muon,
    compiled_loss,
    next_token_loss,
    orthogonalise,
    pretrain_corpus,
    schedule,
    train,
)
from proxycast.weights.model_folder import check_folder, model_fingerprint
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

VOCABULARY = 300
TINY = Size(hidden_size=32, layers=1, intermediate_size=32, steps=4, checkpoints=(2,))
SIZES = [
    TINY,
    Size(hidden_size=32, layers=3, intermediate_size=96, steps=1),
    Size(hidden_size=64, layers=2, intermediate_size=48, steps=1),
    Size(hidden_size=128, layers=1, intermediate_size=160, steps=1),
    Size(hidden_size=64, layers=2, intermediate_size=48, steps=1, architecture="gpt2"),
    Size(hidden_size=32, layers=3, intermediate_size=160, steps=1, architecture="gpt2"),
    Size(hidden_size=64, layers=2, intermediate_size=48, steps=1, architecture="gpt_neox"),
    Size(hidden_size=32, layers=3, intermediate_size=160, steps=1, architecture="gpt_neox"),
]
CLASSES = {"llama": "LlamaForCausalLM", "gpt2": "GPT2LMHeadModel", "gpt_neox": "GPTNeoXForCausalLM"}
TRAINING = Training(batch_sequences=2, sequence_length=8, warmup=0.0)
every_size = pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s.architecture}-{s.hidden_size}x{s.layers}")
every_architecture = pytest.mark.parametrize("architecture", CLASSES)


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch):
    """Compilation takes longer than all of these models train."""
    monkeypatch.setattr(pretraining, "compiled_loss", lambda size, *_: next_token_loss(size))
    pretraining._loss.cache_clear()
    yield
    pretraining._loss.cache_clear()


# The models


def initialise(size: Size, vocabulary: int, seed: int) -> dict[str, torch.Tensor]:
    return ARCHITECTURES[size.architecture].initialise(size, vocabulary, seed)


@every_size
def test_logits_are_those_of_transformers(size, tmp_path):
    module, parameters = ARCHITECTURES[size.architecture], initialise(size, VOCABULARY, seed=1)
    random = torch.Generator().manual_seed(0)
    # Norms are 1, biases 0 and logits small at first: shake them, so that each of them counts.
    parameters = {n: p + 0.3 * torch.randn(p.shape, generator=random) for n, p in parameters.items()}
    module.save_folder(parameters, size, tmp_path)
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert type(model).__name__ == CLASSES[size.architecture]
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = torch.randint(VOCABULARY, (3, CONTEXT), generator=random)
    with torch.no_grad():
        own = module.logits(parameters, size, tokens).log_softmax(-1)
        theirs = model(tokens).logits.log_softmax(-1)
    assert own.std() > 0.5
    torch.testing.assert_close(own, theirs, rtol=1e-5, atol=2e-5)


@every_size
def test_number_of_parameters(size, tmp_path):
    """N: all that the class of transformers holds, but an input embedding that is not the head as well."""
    ARCHITECTURES[size.architecture].save_folder(initialise(size, VOCABULARY, seed=0), size, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    is_tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert is_tied == (size.architecture != "gpt_neox")
    n = model.num_parameters() - (0 if is_tied else model.get_input_embeddings().weight.numel())
    assert size.parameters(VOCABULARY) == count_parameters(tmp_path) == n


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox"])
def test_initialisation_by_transformers(architecture):
    """The seed decides all of it, and nothing else draws from it; every matrix is (out, in)."""
    size = Size(hidden_size=32, layers=2, intermediate_size=80, steps=1, architecture=architecture)
    state = torch.random.get_rng_state()
    one, same, other = (initialise(size, VOCABULARY, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert {tuple(p.shape) for p in one.values() if p.dim() == 2} >= {(80, 32), (32, 80), (96, 32), (32, 32)}
    assert (32, 96) not in {tuple(p.shape) for p in one.values()}
    for name, parameter in one.items():
        assert torch.equal(parameter, same[name]) and parameter.is_contiguous()
        assert torch.equal(parameter, other[name]) == (parameter.dim() == 1), name


def test_initialisation_of_a_llama():
    """The scales that the docstring states; the seed decides all of it."""
    size = SIZES[2]
    parameters, same, other = (initialise(size, VOCABULARY, seed) for seed in (0, 0, 1))
    expected = {"embed_tokens": 0.02, "o_proj": (64 * 4) ** -0.5, "down_proj": (48 * 4) ** -0.5}
    for name, parameter in parameters.items():
        assert torch.equal(parameter, same[name])
        if "norm" in name:
            assert (parameter == 1).all()
        else:
            sd = next((sd for part, sd in expected.items() if part in name), 64**-0.5)
            assert parameter.std().item() == pytest.approx(sd, rel=0.06)
            assert not torch.equal(parameter, other[name])


# The optimisers


@given(rows=st.integers(2, 24), more=st.integers(0, 40), count=st.integers(1, 3), seed=st.integers(0, 2**16))
@settings(deadline=None)
def test_orthogonalise_is_close_to_the_polar_factor(rows, more, count, seed):
    """U V^T of the singular value decomposition is the nearest orthogonal matrix."""
    random = np.random.default_rng(seed)
    left, right = (np.linalg.qr(random.normal(size=(count, n, rows)))[0] for n in (rows, rows + more))
    singular = np.sort(random.uniform(0.2, 1, (count, rows)))
    matrices = torch.from_numpy((left * singular[:, None]) @ right.swapaxes(1, 2))
    found = orthogonalise(matrices).numpy()
    values = np.linalg.svd(found, compute_uv=False)
    assert values.min() > 0.6 and values.max() < 1.3
    polar = left @ right.swapaxes(1, 2)
    assert np.abs(np.linalg.norm(found - polar, axis=(1, 2)) / rows**0.5).max() < 0.35
    # The same for each matrix alone, whatever its scale.
    for matrix, together in zip(matrices, found):
        np.testing.assert_allclose(orthogonalise(100 * matrix[None])[0], together, rtol=1e-6, atol=1e-6)


def test_muon_against_one_matrix_at_a_time():
    """Stacks of one shape, wide and tall alike, move as Jordan's formula moves each matrix by itself."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 6), (6, 4), (5, 5), (4, 6), (5, 5)]
    matrices = [torch.randn(shape, generator=generator) for shape in shapes]
    expected, momenta = [m.double() for m in matrices], [torch.zeros(shape).double() for shape in shapes]
    muon = Muon(matrices)
    for rate in (0.1, 0.05, 0.2):
        for number, matrix in enumerate(matrices):
            matrix.grad = torch.randn(matrix.shape, generator=generator)
            gradient = matrix.grad.double()
            momenta[number] = 0.95 * momenta[number] + gradient
            update = gradient + 0.95 * momenta[number]
            rows, columns = update.shape
            x = update / update.norm()
            for _ in range(5):
                gram = x @ x.T
                x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
            expected[number] *= 1 - rate * 0.05
            expected[number] -= rate * max(1, rows / columns) ** 0.5 * x
        muon.step(rate)
    for found, wanted in zip(matrices, expected):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("warmup, decay", [(0.0, 0.3), (0.0, 1.0), (0.1, 0.3), (0.1, 0.8)])
def test_schedule(warmup, decay):
    training = Training(warmup=warmup, decay=decay)
    rates = np.array([schedule(step, 1000, training) for step in range(1000)])
    rising, plateau = round(1000 * warmup), 1000 - round(1000 * decay)
    assert rates[: max(0, rising - 1)] == pytest.approx(np.arange(1, max(1, rising)) / max(1, rising))
    assert (rates[rising : plateau + 1] == 1).all() and rates.max() <= 1
    falling = np.arange(1000 - max(plateau, rising), 0, -1) / (1000 * decay)
    assert rates[max(plateau, rising) :] == pytest.approx(np.maximum(falling, 0.05))
    assert rates[-1] == 0.05


def cross_entropy(size: Size):
    def loss(parameters, tokens):
        predicted = ARCHITECTURES[size.architecture].logits(parameters, size, tokens[:, :-1])
        return F.cross_entropy(predicted.flatten(0, 1), tokens[:, 1:].flatten())

    return loss


def random_stream(steps: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, steps * TRAINING.batch_tokens + 1).astype(np.int32)


NOT_MATRICES = {
    "llama": ["model.embed_tokens.weight"],
    "gpt2": ["transformer.wte.weight", "transformer.wpe.weight"],
    "gpt_neox": ["gpt_neox.embed_in.weight", "lm_head.weight"],
}


@every_architecture
def test_embeddings_and_vectors_follow_adamw(architecture):
    """Two steps against torch's plain AdamW, fed with gradients that are taken here; the first also by hand."""
    size = TINY.model_copy(update={"architecture": architecture})
    stream, loss = random_stream(size.steps), cross_entropy(size)
    before = initialise(size, VOCABULARY, seed=3)
    names = [name for name, p in before.items() if p.dim() == 1 or name in NOT_MATRICES[architecture]]
    assert set(NOT_MATRICES[architecture]) < set(names)
    reference = {name: before[name].clone().requires_grad_() for name in names}
    adam = torch.optim.AdamW(reference.values(), betas=(0.9, 0.95), weight_decay=0, foreach=False)
    for step, found in train(loss, size, VOCABULARY, TRAINING, stream, seed=3, checkpoints={1, 2}):
        start = (step - 1) * TRAINING.batch_tokens
        batch = torch.from_numpy(np.stack([stream[start + 8 * n : start + 8 * n + 9] for n in (0, 1)])).long()
        inputs = {name: p.clone().requires_grad_() for name, p in before.items()}
        loss(inputs, batch).backward()
        rate = TRAINING.learning_rate * schedule(step - 1, size.steps, TRAINING)
        for name in names:
            reference[name].grad = inputs[name].grad
        adam.param_groups[0]["lr"] = rate
        adam.step()
        for name in names:
            torch.testing.assert_close(found[name], reference[name].detach(), rtol=1e-4, atol=1e-6)
            if step == 1:  # both moments are the gradient's own
                gradient = inputs[name].grad
                moved = before[name] - rate * gradient / (gradient.abs() + 1e-8)
                torch.testing.assert_close(found[name], moved, rtol=1e-4, atol=1e-6)
        before = {name: p.clone() for name, p in found.items()}


@every_architecture
def test_matrices_follow_muon(architecture):
    """The first step is an orthogonal matrix, roughly, as long as the rate times sqrt(rows / columns) if it is tall."""
    size = TINY.model_copy(update={"architecture": architecture, "intermediate_size": 96})
    before = initialise(size, VOCABULARY, seed=3)
    stream = random_stream(size.steps)
    _, after = next(train(cross_entropy(size), size, VOCABULARY, TRAINING, stream, seed=3, checkpoints={1}))
    names = [name for name, p in before.items() if p.dim() == 2 and name not in NOT_MATRICES[architecture]]
    assert len(names) == (7 if architecture == "llama" else 4)
    for name in names:
        rows, columns = before[name].shape
        moved = before[name] * (1 - TRAINING.muon_learning_rate * 0.05) - after[name]
        length = torch.linalg.matrix_norm(moved, 2) / TRAINING.muon_learning_rate
        assert 0.7 < length / max(1, rows / columns) ** 0.5 < 1.3, name


@pytest.mark.parametrize("factor", [1.0, 0.1, 3.0])
def test_both_rates_are_the_factor_times_the_schedule(factor, monkeypatch):
    """To the last bit: a factor of 1 trains as a size without one."""
    size, training = (
        TINY.model_copy(update={"learning_rate_factor": factor}),
        TRAINING.model_copy(update={"warmup": 0.5}),
    )
    given = {"adam": [], "muon": []}
    step_of_adam, step_of_muon = torch.optim.AdamW.step, Muon.step

    def adam_step(adam):
        given["adam"].append(adam.param_groups[0]["lr"])
        return step_of_adam(adam)

    def muon_step(muon, rate):
        given["muon"].append(rate)
        return step_of_muon(muon, rate)

    monkeypatch.setattr(torch.optim.AdamW, "step", adam_step)
    monkeypatch.setattr(Muon, "step", muon_step)
    list(train(cross_entropy(size), size, VOCABULARY, training, random_stream(size.steps), 3, checkpoints={4}))
    scales = [schedule(step, size.steps, training) for step in range(size.steps)]
    assert scales[0] < 1 and scales[-1] < 1
    assert given["adam"] == [training.learning_rate * factor * scale for scale in scales]
    assert given["muon"] == [training.muon_learning_rate * factor * scale for scale in scales]


def test_half_the_rate_by_either_key_is_one_training():
    half = {name: getattr(TRAINING, name) / 2 for name in ("learning_rate", "muon_learning_rate")}
    runs = []
    for size, training in (
        (TINY.model_copy(update={"learning_rate_factor": 0.5}), TRAINING),
        (TINY, TRAINING.model_copy(update=half)),
        (TINY, TRAINING),
    ):
        [(_, found)] = train(cross_entropy(size), size, VOCABULARY, training, random_stream(4), 3, checkpoints={4})
        runs.append({name: p.clone() for name, p in found.items()})
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not any(torch.equal(runs[0][name], runs[2][name]) for name in runs[0])


def test_every_token_is_predicted_once():
    met = []

    def loss(parameters, tokens):
        met.append(tokens.clone())
        return sum(p.sum() for p in parameters.values())

    stream = random_stream(TINY.steps)
    steps = [step for step, _ in train(loss, TINY, VOCABULARY, TRAINING, stream, seed=0, checkpoints={2, 4})]
    assert steps == [2, 4] and [tuple(tokens.shape) for tokens in met] == [(2, 9)] * 4
    assert torch.cat([tokens[:, 1:].flatten() for tokens in met]).tolist() == stream[1:].tolist()
    assert torch.cat([tokens[:, :-1].flatten() for tokens in met]).tolist() == stream[:-1].tolist()


@every_architecture
def test_loss_goes_down(architecture):
    size = TINY.model_copy(update={"steps": 60, "architecture": architecture})
    training = TRAINING.model_copy(update={"batch_sequences": 4, "sequence_length": 16})
    stream = np.resize(np.arange(5, 25), size.steps * training.batch_tokens + 1).astype(np.int32)
    loss = pretraining.next_token_loss(size)
    (_, trained), *_ = train(loss, size, VOCABULARY, training, stream, seed=0, checkpoints={size.steps})
    tokens = torch.from_numpy(stream[:65].astype(np.int64))[None]
    with torch.no_grad():
        before, after = (loss(p, tokens).item() for p in (initialise(size, VOCABULARY, 0), trained))
    assert before == pytest.approx(np.log(VOCABULARY), abs=0.3) and after < 0.5


# Runs and their checkpoints


class Trained(list):
    """The runs (size's width, seed) that were trained since the last look."""

    def look(self) -> list:
        found = list(self)
        self.clear()
        return found


@pytest.fixture
def trained(monkeypatch):
    runs = Trained()

    def counted(loss, size, vocabulary, training, stream, seed, checkpoints):
        runs.append((size.hidden_size, seed))
        return train(loss, size, vocabulary, training, stream, seed, checkpoints)

    monkeypatch.setattr(pretraining, "train", counted)
    return runs


RECIPE = Recipe(mixture=[Component(source="web", weight=1)])
SUITE = Suite(
    vocabulary=VOCABULARY,
    training=TRAINING,
    sizes={"small": TINY.model_copy(update={"seeds": (0, 1)}), "large": SIZES[3].model_copy(update={"steps": 2})},
)
ALL = [(32, 0), (32, 1), (128, 0)]


@pytest.fixture
def pretrain(tmp_path):
    """A function that trains the corpus, with some of its arguments changed -> manifest."""
    tokenizers = {None: tmp_path / "tokenizer", "other": tmp_path / "other"}
    for name, vocabulary in {None: VOCABULARY, "other": 320}.items():
        save_tokenizer(train_tokenizer(["the cat sat on the mat, " * 9 + str(name)], vocabulary), tokenizers[name])
    pool = pl.DataFrame({"source": ["web"] * 20, "tokens": [[0, n + 2, n + 3] for n in range(20)]})
    pool = pool.with_columns(tokens_other=pool["tokens"].list.eval(pl.element() + 290))

    def run(recipe: Recipe = RECIPE, suite: Suite = SUITE, made_from: str = "pool") -> dict[str, str]:
        def stream_of(tokens: int, seed: int, tokenizer: str | None) -> np.ndarray:
            return token_stream(pool, recipe, tokens, seed, tokens_column(tokenizer))

        return pretrain_corpus("mine", suite, stream_of, tokenizers, tmp_path / "models", (recipe, made_from))

    run.models, run.tokenizers = tmp_path / "models", tokenizers
    return run


def contents(models: Path) -> dict[str, bytes]:
    return {str(path.relative_to(models)): path.read_bytes() for path in models.rglob("*") if path.is_file()}


def test_every_size_and_seed_is_trained(pretrain, trained):
    manifest = pretrain()
    assert trained.look() == ALL
    small = [f"mine-small-seed{seed}/step{step}" for seed in (0, 1) for step in (2, 4)]
    assert list(manifest) == [*small, "mine-large-seed0/step2"]
    assert len(set(manifest.values())) == 3
    for folder, mark in manifest.items():
        check_folder(pretrain.models / folder)
        assert pretraining.is_finished(pretrain.models / folder, mark)
    # No temporary folder is left over.
    assert sorted(f"{path.parent.name}/{path.name}" for path in pretrain.models.glob("*/*")) == sorted(manifest)


def test_checkpoint_is_a_model_folder(pretrain):
    pretrain()
    folder = pretrain.models / "mine-small-seed1" / "step4"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.num_parameters() == TINY.parameters(VOCABULARY)
    assert tokenizer("the cat")["input_ids"][0] == tokenizer.bos_token_id == model.config.bos_token_id == 0
    early = AutoModelForCausalLM.from_pretrained(folder.with_name("step2"))
    assert not torch.equal(early.lm_head.weight, model.lm_head.weight)


def test_finished_runs_are_kept(pretrain, trained):
    manifest = pretrain()
    before = contents(pretrain.models)
    trained.look()
    assert pretrain() == manifest and trained.look() == []
    assert contents(pretrain.models) == before


def damage_truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])


def damage_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def damage_mark(folder: Path) -> None:
    (folder / "fingerprint.txt").unlink()


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_checkpoint_with_a_flipped_bit_is_never_scored(pretrain, tmp_path, name):
    pretrain()
    trained = pretrain.models / "mine-small-seed1" / "step2"
    ours = shutil.copytree(trained, tmp_path / "results/mine/suite/models/run/step2")
    mark = model_fingerprint(ours)
    flip_a_bit(ours / name)
    with pytest.raises(InputError, match="step2: damaged: its bytes are not those that were written. It is step2.dam"):
        model_fingerprint(ours)
    assert not ours.exists() and (ours.parent / "step2.damaged" / name).is_file()
    # A copy is its user's, who may change it.
    users = shutil.copytree(ours.parent / "step2.damaged", tmp_path / "own/step2")
    assert model_fingerprint(users) != mark


@pytest.mark.parametrize("lose", [Path.unlink, lambda path: os.truncate(path, 30)])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_checkpoint_that_lost_a_small_file_is_told_before_it_is_loaded(pretrain, tmp_path, name, lose):
    pretrain()
    ours = shutil.copytree(pretrain.models / "mine-small-seed1" / "step2", tmp_path / "suite/models/run/step2")
    check_folder(ours)
    lose(ours / name)
    with pytest.raises(InputError, match="step2: damaged"):
        check_folder(ours)
    assert not ours.exists()


@pytest.mark.parametrize("lose", [flip_a_bit, lambda path: os.truncate(path, 30)])
def test_no_model_gets_a_tokenizer_that_has_changed_by_itself(pretrain, trained, lose):
    lose(pretrain.tokenizers["other"] / "tokenizer.json")
    with pytest.raises(InputError, match="other/tokenizer.json: damaged"):
        pretrain()
    assert not trained and not pretrain.models.exists()


@pytest.mark.parametrize("damage", [damage_truncated, damage_tokenizer, damage_mark])
def test_damaged_checkpoint_is_trained_again(pretrain, trained, damage):
    manifest = pretrain()
    before = contents(pretrain.models)
    trained.look()
    damage(pretrain.models / "mine-small-seed1" / "step2")
    assert pretrain() == manifest
    assert trained.look() == [(32, 1)]
    assert contents(pretrain.models) == before, "the same seed gives the same weights"


def test_kill_costs_one_run(pretrain, trained, monkeypatch):
    counted = pretraining.train

    def killed(loss, size, vocabulary, training, stream, seed, checkpoints):
        for number, checkpoint in enumerate(counted(loss, size, vocabulary, training, stream, seed, checkpoints)):
            if (seed, number) == (1, 1):
                raise KeyboardInterrupt
            yield checkpoint

    monkeypatch.setattr(pretraining, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        pretrain()
    assert trained.look() == [(32, 0), (32, 1)]
    monkeypatch.setattr(pretraining, "train", counted)
    pretrain()
    assert trained.look() == [(32, 1), (128, 0)]


def change(**update) -> Suite:
    return SUITE.model_copy(update=update)


LARGE = SUITE.sizes["large"]


@pytest.mark.parametrize(
    "changes, again",
    [
        ({"recipe": Recipe(mixture=[Component(source="web", weight=1, deduplicate=False, keep=1.0)])}, []),
        ({"recipe": Recipe(mixture=[Component(source="web", weight=2)])}, ALL),
        ({"made_from": "another pool"}, ALL),
        ({"suite": change(training=TRAINING.model_copy(update={"learning_rate": 0.1}))}, ALL),
        ({"suite": change(sizes=SUITE.sizes | {"large": LARGE.model_copy(update={"steps": 3})})}, [(128, 0)]),
        ({"suite": change(sizes=SUITE.sizes | {"large": LARGE.model_copy(update={"seeds": (0, 5)})})}, [(128, 5)]),
        (
            {"suite": change(sizes=SUITE.sizes | {"large": LARGE.model_copy(update={"learning_rate_factor": 0.1})})},
            [(128, 0)],
        ),
        ({"suite": change(problems=99)}, []),
    ],
    ids=["same", "recipe", "pool", "training", "steps", "seed", "rate", "problems"],
)
def test_only_what_changed_is_trained_again(pretrain, trained, changes, again):
    pretrain()
    trained.look()
    pretrain(**changes)
    assert trained.look() == again


# Architectures and tokenizers side by side

MIXED = SUITE.model_copy(
    update={
        "tokenizers": {"other": 320},
        "sizes": {
            "llama": TINY,
            "gpt2": TINY.model_copy(update={"architecture": "gpt2", "checkpoints": ()}),
            "neox": TINY.model_copy(update={"architecture": "gpt_neox", "tokenizer": "other", "checkpoints": ()}),
        },
    }
)


def test_each_model_has_its_architecture_and_tokenizer(pretrain, trained):
    manifest = pretrain(suite=MIXED)
    for size, (kind, vocabulary) in {"gpt2": ("gpt2", VOCABULARY), "neox": ("gpt_neox", 320)}.items():
        folder = pretrain.models / f"mine-{size}-seed0" / "step4"
        check_folder(folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert (model.config.model_type, model.config.vocab_size) == (kind, vocabulary)
        assert count_parameters(folder) == MIXED.parameters(size)
        tokenizer = pretrain.tokenizers["other" if size == "neox" else None] / "tokenizer.json"
        assert (folder / "tokenizer.json").read_bytes() == tokenizer.read_bytes()
    assert pretrain(suite=MIXED) == manifest and len(trained.look()) == 3
    # Another tokenizer costs the models that read with it, and no others.
    save_tokenizer(train_tokenizer(["a dog lay on the rug, " * 9], 320), pretrain.tokenizers["other"])
    changed = pretrain(suite=MIXED)
    assert [folder for folder in manifest if manifest[folder] != changed[folder]] == ["mine-neox-seed0/step4"]


def test_models_read_in_their_own_tokenizer(pretrain, monkeypatch):
    read = {}

    def spied(loss, size, vocabulary, training, stream, seed, checkpoints):
        read[size.architecture] = vocabulary, stream.min() == 0, stream.max()
        return train(loss, size, vocabulary, training, stream, seed, checkpoints)

    monkeypatch.setattr(pretraining, "train", spied)
    pretrain(suite=MIXED)
    assert read == {"llama": (300, True, 22), "gpt2": (300, True, 22), "gpt_neox": (320, False, 312)}


@pytest.mark.parametrize("compile", [True, False])
def test_loss_is_compiled_where_it_is_asked_for(pretrain, monkeypatch, compile):
    compiled = []
    monkeypatch.setattr(pretraining, "compiled_loss", lambda size, *_: compiled.append(size) or next_token_loss(size))
    pretrain(suite=change(training=TRAINING.model_copy(update={"compile": compile})))
    assert len(compiled) == (2 if compile else 0)


@pytest.fixture
def compiled_file(tmp_path, monkeypatch):
    """Where a compiled loss is kept; nothing is there yet. The compiler's own cache stays, which saves ten seconds."""
    monkeypatch.setattr(pretraining, "_compiled_file", lambda *_: tmp_path / "proxycast/loss.bin")
    return tmp_path / "proxycast/loss.bin"


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """The file of a compiled loss, and the gradients of that loss."""
    file = tmp_path_factory.mktemp("compiled") / "proxycast/loss.bin"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "_compiled_file", lambda *_: file)
        return file, gradients(compiled_loss(TINY, VOCABULARY, TRAINING))


@pytest.fixture
def made(compiled_once, compiled_file):
    """The gradients of a compiled loss, which is kept."""
    file, found = compiled_once
    compiled_file.parent.mkdir(mode=0o700)
    shutil.copy2(file, compiled_file)
    return found


def gradients(loss) -> dict[str, torch.Tensor]:
    parameters = {name: p.requires_grad_() for name, p in initialise(TINY, VOCABULARY, seed=1).items()}
    tokens = torch.randint(0, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
    loss(parameters, tokens).backward()
    return {name: p.grad for name, p in parameters.items()}


def test_a_compiled_loss_is_kept_for_later_jobs(made, compiled_file, monkeypatch):
    assert compiled_file.exists()
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled again"))
    loaded = gradients(compiled_loss(TINY.model_copy(update={"seeds": (3,), "steps": 9}), VOCABULARY, TRAINING))
    plain = gradients(next_token_loss(TINY))
    for name in plain:
        assert torch.equal(loaded[name], made[name])
        torch.testing.assert_close(loaded[name], plain[name], rtol=1e-4, atol=1e-6)


def test_a_lock_that_never_comes_is_not_waited_for(compiled_file, monkeypatch, caplog):
    compiled_file.parent.mkdir(mode=0o700)
    lock = compiled_file.with_suffix(".lock")
    lock.touch(0o644)
    monkeypatch.setattr(pretraining, "LOCK_SECONDS", 0.2)
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled without the lock"))
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("waits for ever"))
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        signal.alarm(30)
        try:
            gradients(compiled_loss(TINY, VOCABULARY, TRAINING))
        finally:
            signal.alarm(0)
    assert "another process has held the lock" in caplog.text and lock.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("folder", ["", ".."])
def test_a_compiled_loss_that_others_may_have_written_is_not_loaded(made, compiled_file, monkeypatch, folder):
    (compiled_file.parent / folder).chmod(0o770)
    monkeypatch.setattr(torch.compiler, "load_compiled_function", lambda file: pytest.fail("it was loaded"))
    monkeypatch.setattr(torch, "compile", lambda loss, **_: loss)
    for name, gradient in gradients(compiled_loss(TINY, VOCABULARY, TRAINING)).items():
        torch.testing.assert_close(gradient, made[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "size, vocabulary, training, cpu, threads",
    [
        (TINY.model_copy(update={"intermediate_size": 64}), VOCABULARY, TRAINING, {}, 1),
        (TINY, VOCABULARY + 1, TRAINING, {}, 1),
        (TINY, VOCABULARY, TRAINING.model_copy(update={"batch_sequences": 3}), {}, 1),
        (TINY, VOCABULARY, TRAINING, {"avx512_f": None}, 1),
        (TINY, VOCABULARY, TRAINING, {}, 2),
    ],
)
def test_what_a_compiled_loss_depends_on_is_in_its_name(monkeypatch, size, vocabulary, training, cpu, threads):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    known = pretraining._compiled_file(TINY, VOCABULARY, TRAINING)
    found = dict(torch.cpu.get_capabilities())
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found | cpu)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert pretraining._compiled_file(size, vocabulary, training) != known


def test_without_a_compiler_the_loss_runs_uncompiled(compiled_file, monkeypatch, caplog):
    def no_compiler(*_):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(pretraining, "_compile", no_compiler)
    found = gradients(compiled_loss(TINY, VOCABULARY, TRAINING))
    assert "uncompiled, which is slower: No working C++ compiler found" in caplog.text
    expected = gradients(next_token_loss(TINY))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not compiled_file.exists()


def test_a_tokenizer_that_is_not_there():
    size = {"hidden_size": 32, "layers": 1, "intermediate_size": 96, "steps": 160, "tokenizer": "othr"}
    with pytest.raises(ValidationError, match=r"sizes\.small\.tokenizer: 'othr' is not in `tokenizers`; known: other"):
        Suite(tokenizers={"other": 384}, sizes={"small": size})
    with pytest.raises(ValidationError, match="greater than or equal to 300"):
        Suite(tokenizers={"other": 200}, sizes={"small": size})


def test_vocabulary_and_parameters_by_size():
    assert [MIXED.vocabulary_of(size) for size in MIXED.sizes] == [300, 300, 320]
    assert MIXED.parameters("neox") == MIXED.sizes["neox"].parameters(320)
    assert MIXED.parameters("gpt2") == MIXED.sizes["gpt2"].parameters(300)
