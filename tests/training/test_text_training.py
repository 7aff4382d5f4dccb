"""Training of a ladder's models: AdamW and the schedule written out in float64, runs that are killed, bad input."""

import math
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from conftest import EOS, PUBLISHED, byte_level_tokenizer
from proxycast.config.ladder import Ladder, LadderSize
from proxycast.options import InputError
from proxycast.study.checkpoints import count_parameters
from proxycast.training.text import train_run as pretraining
from proxycast.training.text.train_run import learning_rate, pretrain, summed_loss
from proxycast.weights.model_config import context_of
from proxycast.weights.model_folder import check_folder
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

VOCABULARY = 352


def make_ladder(optimisation: dict | None = None, **size) -> Ladder:
    size = (
        dict(hidden_size=32, layers=2, heads=4, batch_sequences=4, steps=12, learning_rate=1e-3, intermediate_size=48)
        | size
    )
    return Ladder.model_validate(
        dict(
            name="tiny",
            tokenizer={"folder": "t"},
            vocabulary=VOCABULARY,
            sequence_length=24,
            norm_epsilon=1e-5,
            rope_theta=500.0,
            checkpoint_every=4,
            seeds={0: "zero", 1: "one"},
            optimisation={"warmup_tokens_per_parameter": 0.01} | (optimisation or {}),
            sizes={"1k": size},
        )
    )


def random_batches(step: int) -> np.ndarray:
    return np.random.default_rng(step).integers(0, VOCABULARY, (4, 24))


def only_from(first: int):
    def batches(step):
        assert step >= first, f"step {step} is trained again"
        return random_batches(step)

    return batches


@pytest.fixture(autouse=True)
def one_thread():
    """The same bits need the same number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def train(tmp_path):
    """train(ladder, steps, run, ...) -> manifest: `pretrain` with a tokenizer, below a folder of the run's name."""
    byte_level_tokenizer().save_pretrained(tmp_path / "tokenizer")

    def run(ladder=None, steps=(0, 4, 12), name="run", batches=random_batches, seed=0, **changes):
        ladder = ladder or make_ladder()
        folder = tmp_path / name
        arguments = dict(tokenizer=tmp_path / "tokenizer", state=folder / "state", made_from="text", device="cpu")
        return pretrain(ladder, "1k", seed, batches, folder / "models", steps, **(arguments | changes))

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def assert_same_bits(expected: Path, found: Path) -> None:
    """All checkpoints and losses of two runs."""
    names = sorted(path.name for path in (expected / "models").iterdir())
    assert names == sorted(path.name for path in (found / "models").iterdir())
    for name in names:
        for file in ("model.safetensors", "loss.csv"):
            assert (expected / "models" / name / file).read_bytes() == (found / "models" / name / file).read_bytes()


# The optimisation


@pytest.mark.parametrize("clip", [0.05, 100.0])
def test_steps_are_those_of_adamw_written_out_in_float64(train, tmp_path, clip):
    optimisation = dict(
        beta1=0.8,
        beta2=0.9,
        epsilon=1e-5,
        weight_decay=0.3,
        gradient_clip=clip,
        warmup_tokens_per_parameter=0.01,
        final_learning_rate=0.2,
    )
    ladder = make_ladder(optimisation, steps=6, learning_rate=2e-3)
    train(ladder, steps=(0, 1, 6))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run/models/step0", dtype=torch.float64)
    parameters = list(model.parameters())
    means, squares = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    n = 2 * (4 * 32 * 32 + 3 * 32 * 48 + 2 * 32) + 32 + VOCABULARY * 32
    rates = []
    for step in range(1, 7):
        tokens = torch.from_numpy(random_batches(step - 1))
        log_probabilities = model(tokens).logits.log_softmax(-1)
        loss = -log_probabilities[:, :-1].gather(2, tokens[:, 1:, None]).sum() / (4 * 23)
        gradients = torch.autograd.grad(loss, parameters)
        norm = math.sqrt(sum((g**2).sum().item() for g in gradients))
        assert (norm > clip) == (clip < 1)
        if step * 96 < 0.01 * n:
            rate = 2e-3 * step * 96 / (0.01 * n)
        else:
            angle = math.pi * (step * 96 - 0.01 * n) / (6 * 96 - 0.01 * n)
            rate = 2e-3 * (0.2 + 0.8 * 0.5 * (1 + math.cos(angle)))
        rates.append(rate)
        with torch.no_grad():
            for parameter, gradient, mean, square in zip(parameters, gradients, means, squares):
                gradient = gradient * min(1.0, clip / norm)
                mean.mul_(0.8).add_(gradient, alpha=0.2)
                square.mul_(0.9).add_(gradient**2, alpha=0.1)
                direction = (mean / (1 - 0.8**step)) / ((square / (1 - 0.9**step)).sqrt() + 1e-5)
                parameter.mul_(1 - rate * 0.3).sub_(rate * direction)
        if step in (1, 6):
            found = weights(tmp_path / f"run/models/step{step}")
            for name, expected in model.state_dict().items():
                torch.testing.assert_close(found[name].double(), expected, rtol=0, atol=1e-6)
    losses = pl.read_csv(tmp_path / "run/models/step6/loss.csv")
    assert losses.columns == ["step", "tokens", "loss", "learning_rate"]
    assert losses["learning_rate"].to_list() == pytest.approx(rates)
    assert losses["tokens"].to_list() == [96 * step for step in range(1, 7)]
    assert losses["loss"][-1] == pytest.approx(loss.item(), rel=1e-5)


def test_loss_falls_to_the_entropy_of_what_is_learnt(train, tmp_path):
    def batches(step):
        """Each token is followed by one of two, at random: ln 2 nats a token."""
        rng = np.random.default_rng([1, step])
        rows = [rng.integers(0, 32, 4)]
        for _ in range(23):
            rows.append((5 * rows[-1] + rng.integers(0, 2, 4)) % 32)
        return np.stack(rows, 1)

    train(make_ladder(steps=250, learning_rate=2e-2), steps=(250,), batches=batches)
    losses = pl.read_csv(tmp_path / "run/models/step250/loss.csv")["loss"]
    assert losses[0] == pytest.approx(math.log(VOCABULARY), abs=0.1)
    assert math.log(2) - 0.02 < losses[-20:].mean() < math.log(2) + 0.05


def test_learning_rate_rises_to_its_peak_at_n_tokens_and_falls_to_a_tenth():
    ladder = make_ladder({"warmup_tokens_per_parameter": 1.0}, hidden_size=32, steps=4000)
    n = 28_832  # 300.3 steps of 96 tokens
    assert ladder.sizes["1k"].parameters(VOCABULARY) == n
    rates = [learning_rate(ladder, "1k", step) for step in (30, 300, 301, 4000)]
    assert rates == pytest.approx([30 * 96e-3 / n, 300 * 96e-3 / n, 1e-3, 0.1e-3])
    half = learning_rate(ladder, "1k", round((n / 96 + 4000) / 2))
    assert half == pytest.approx(0.55e-3, rel=1e-3)  # the middle of a cosine from 1 to 0.1
    short = make_ladder({"warmup_tokens_per_parameter": 1.0}, steps=100)  # all of it warm-up
    assert learning_rate(short, "1k", 100) == pytest.approx(100 * 96e-3 / n)
    none = make_ladder({"warmup_tokens_per_parameter": 0.0, "final_learning_rate": 0.0})
    assert [learning_rate(none, "1k", step) for step in (6, 12)] == pytest.approx([0.5e-3, 0])


@pytest.mark.parametrize("of_torch", [True, False])  # torch before 2.13 has none
@pytest.mark.parametrize("length", [2, 40, 200])
def test_summed_loss_and_its_gradients_are_those_of_all_logits(length, of_torch, monkeypatch):
    if not of_torch:
        monkeypatch.delattr(F, "linear_cross_entropy", raising=False)
    torch.manual_seed(length)
    hidden, head = torch.randn(3, length, 16), torch.randn(90, 16)
    tokens = torch.randint(90, (3, length))
    exact = [x.double().requires_grad_() for x in (hidden, head)]
    logits = exact[0] @ exact[1].T
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
    (3 * expected).backward()
    found = [x.requires_grad_() for x in (hidden, head)]
    loss = summed_loss(*found, tokens)
    (3 * loss).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for a, b in zip(found, exact):
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-4, atol=1e-4)


def test_batch_in_parts_gives_the_same_model(train, tmp_path, monkeypatch):
    calls = []

    def loss(hidden, head, tokens):
        calls.append(len(tokens))
        return summed_loss(hidden, head, tokens)

    monkeypatch.setattr(pretraining, "summed_loss", loss)
    train(name="whole", steps=(4,))
    monkeypatch.setattr(pretraining, "CPU_BUDGET", 250_000)
    train(name="parts", steps=(4,))
    assert calls == [4] * 4 + [2] * 8
    expected, found = (weights(tmp_path / name / "models/step4") for name in ("whole", "parts"))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [dict(hidden_size=64, heads=8), dict(hidden_size=32, intermediate_size=256)])
def test_estimate_of_activations_is_what_autograd_keeps(size):
    """Counted: the storages kept by a deep model less those kept by a shallow one."""
    kept = []
    for layers in (2, 6):
        shape = make_ladder(layers=layers, **size).sizes["1k"]
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.inner,
            num_hidden_layers=layers,
            num_attention_heads=shape.heads,
        )
        model, storages = LlamaForCausalLM(config).train(), {}

        def pack(tensor, storages=storages):
            storages[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address comes twice
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.model(input_ids=torch.zeros(4, 24, dtype=torch.int64), use_cache=False)
        parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        kept.append(sum(t.untyped_storage().nbytes() for a, t in storages.items() if a not in parameters))
    estimate = kept[1] - kept[0]  # of 4 sequences in 4 layers
    ladder = make_ladder(layers=4, **size)
    assert pretraining._micro_batch(ladder, "1k", 1.1 * estimate) == 4
    assert pretraining._micro_batch(ladder, "1k", 0.9 * estimate) == 2
    assert pretraining._micro_batch(ladder, "1k", 0.0) == 1


def test_parts_are_about_equal():
    ladder = make_ladder(batch_sequences=10)
    one = 4 * 24 * 2 * (10 * 32 + 4 * 48)
    assert [pretraining._micro_batch(ladder, "1k", n * one) for n in (1, 3, 4, 5, 9, 10, 99)] == [1, 3, 4, 5, 5, 10, 10]


def test_memory_that_does_not_suffice_halves_the_parts(train, tmp_path, monkeypatch, caplog):
    train(name="whole", steps=(4,))

    def small_memory(hidden, head, tokens):
        if len(tokens) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return summed_loss(hidden, head, tokens)

    monkeypatch.setattr(pretraining, "summed_loss", small_memory)
    train(name="parts", steps=(4,))
    assert [line for line in caplog.messages if "suffice" in line][-1].endswith("from here 1 sequences at once")
    expected, found = (weights(tmp_path / name / "models/step4") for name in ("whole", "parts"))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-6)


# The folders


@pytest.mark.parametrize("intermediate", [None, 40])
def test_checkpoint_is_a_whole_model_of_the_ladders_shape(train, tmp_path, intermediate):
    ladder = make_ladder(intermediate_size=intermediate, steps=1)
    manifest = train(ladder, steps=(0, 1))
    assert list(manifest) == ["step0", "step1"]
    for name, mark in manifest.items():
        folder = tmp_path / "run/models" / name
        check_folder(folder)
        assert count_parameters(folder) == ladder.sizes["1k"].parameters(VOCABULARY)
        assert (folder / "fingerprint.txt").read_text().split()[0] == mark
        assert context_of(folder) == 24
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        assert type(model) is LlamaForCausalLM and model.dtype == torch.float32
        assert tokenizer("the cat") == byte_level_tokenizer()("the cat")
        assert tokenizer.eos_token == EOS and model.config.eos_token_id == tokenizer.eos_token_id
        assert model.config.rms_norm_eps == 1e-5 and model.config.rope_parameters["rope_theta"] == 500.0
        assert not model.config.tie_word_embeddings and model.config.pad_token_id is None
        assert model.config.intermediate_size == (intermediate or 128)
        assert not [n for n, _ in model.named_parameters() if "bias" in n]
    first, second = (weights(tmp_path / "run/models" / name) for name in manifest)
    assert not torch.equal(first["lm_head.weight"], second["lm_head.weight"])


def test_start_is_drawn_by_the_seed(train, tmp_path):
    ladder = make_ladder({"initialisation": 0.05}, layers=1)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(1)  # the start depends on no other random numbers
        train(ladder, steps=(0,), name=name, seed=seed)
    a, b, c = (weights(tmp_path / name / "models/step0") for name in "abc")
    for name, matrix in a.items():
        assert torch.equal(matrix, b[name])
        if matrix.dim() == 2:
            assert matrix.std().item() == pytest.approx(0.05, rel=0.05)
            assert not torch.equal(matrix, c[name])
        else:
            assert torch.equal(matrix, torch.ones_like(matrix))


def test_fingerprint_tells_trainings_apart(train):
    common = dict(steps=(0,))
    first = train(make_ladder(), **common)["step0"]
    assert train(make_ladder(checkpoint_every=2, stopped={0: 8}), **common)["step0"] == first  # the same model
    others = [
        train(make_ladder(), seed=1, **common),
        train(make_ladder(), made_from="other text", **common),
        train(make_ladder(learning_rate=2e-3), **common),
        train(make_ladder({"beta1": 0.5}), **common),
        train(make_ladder().model_copy(update={"rope_theta": 100.0}), **common),
    ]
    assert len({first, *(other["step0"] for other in others)}) == 6


def test_whole_checkpoints_are_kept_and_broken_ones_made_again(train, tmp_path):
    manifest = train()
    models = tmp_path / "run/models"
    assert not (tmp_path / "run/state/state.pt").exists()
    assert train(batches=only_from(12)) == manifest
    untouched = (models / "step0/model.safetensors").stat().st_mtime_ns
    before = (models / "step4/model.safetensors").read_bytes()
    (models / "step4/model.safetensors").write_bytes(before[:-1])
    assert train(batches=stop_at(4)) == manifest  # no step after the missing checkpoint is done
    assert (models / "step4/model.safetensors").read_bytes() == before
    assert (models / "step0/model.safetensors").stat().st_mtime_ns == untouched
    assert train(made_from="other text") != manifest
    assert (models / "step0/model.safetensors").stat().st_mtime_ns != untouched


# Runs that are stopped


# Two runs at once, after one import: the process itself and a copy of it, whose id it tells. Each trains up to step 8,
# says so and waits.
TWO_RUNS = """
import os, sys, time
from pathlib import Path
import numpy as np
import torch
from proxycast.config.ladder import Ladder
from proxycast.training.text.train_run import pretrain

torch.set_num_threads(1)
folder, ladder = Path(sys.argv[1]), Ladder.model_validate_json(sys.argv[2])
name, minutes = ("ended", 10) if os.fork() else ("killed", 0)

def batches(step):
    if step == 8:
        os.write(1, f"{name} {os.getpid()}\\n".encode())
        while not (folder / "go_on").exists():
            time.sleep(0.01)
    return np.random.default_rng(step).integers(0, ladder.vocabulary, (4, 24))

files = dict(models=folder / name / "models", tokenizer=folder / "tokenizer", state=folder / name / "state")
pretrain(ladder, "1k", 0, batches, steps=(0, 4, 12), made_from="text", device="cpu", state_minutes=minutes, **files)
"""


def test_killed_run_ends_with_the_same_bits(train, tmp_path, caplog):
    """SIGKILL with a state saved at every step, SIGTERM with one that only the signal makes it save."""
    caplog.set_level("INFO")
    train(name="whole")
    arguments = [sys.executable, "-c", TWO_RUNS, tmp_path, make_ladder().model_dump_json()]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as child:
        processes = dict(child.stdout.readline().split() for _ in range(2))
        os.kill(int(processes["killed"]), signal.SIGKILL)
        child.terminate()
        (tmp_path / "go_on").touch()
        assert child.wait(60) == 143
    for name in processes:
        assert (tmp_path / name / "models/step4").exists() and not (tmp_path / name / "models/step12").exists()
        train(name=name, batches=only_from(8))
        assert f"{tmp_path / name / 'models'}: goes on after step 8" in caplog.messages
        assert_same_bits(tmp_path / "whole", tmp_path / name)
        assert not list((tmp_path / name / "state").glob("*.pt"))


class Stopped(Exception):
    pass


def stop_at(step: int):
    def batches(asked):
        if asked == step:
            raise Stopped
        return random_batches(asked)

    return batches


def test_state_is_saved_at_checkpoints_and_by_the_clock(train, tmp_path):
    for name, minutes, steps_done in (("rarely", 10, 4), ("often", 0, 7)):
        with pytest.raises(Stopped):
            train(name=name, batches=stop_at(7), state_minutes=minutes)
        state = torch.load(tmp_path / name / "state/state.pt", weights_only=True)
        assert len(state["losses"]) == steps_done


@pytest.mark.parametrize("damage", ["truncated", "foreign", "of another kind", "past a checkpoint", "absent"])
def test_state_that_cannot_be_used_is_told_and_left(train, tmp_path, caplog, damage):
    caplog.set_level("INFO")
    train(name="whole")
    with pytest.raises(Stopped):
        train(batches=stop_at(7), made_from="other" if damage == "foreign" else "text")
    state, models = tmp_path / "run/state/state.pt", tmp_path / "run/models"
    match damage:
        case "truncated":
            state.write_bytes(state.read_bytes()[:-100])
        case "of another kind":
            state.write_text("no state")
        case "past a checkpoint":
            (models / "step0/config.json").unlink()
        case "absent":
            state.unlink()
    caplog.clear()
    train()
    why = {
        "truncated": "cannot be read",
        "foreign": "is of another training",
        "of another kind": "cannot be read",
        "past a checkpoint": "is past the missing step0",
        "absent": "starts with step 1",
    }
    assert [m for m in caplog.messages if "starts with step 1" in m and why[damage] in m]
    assert_same_bits(tmp_path / "whole", tmp_path / "run")


def test_sigterm_between_parts_of_a_batch_leaves_the_step_undone(train, tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining, "CPU_BUDGET", 0)
    train(name="whole")
    before, calls = signal.getsignal(signal.SIGTERM), []

    def loss(*arguments):
        calls.append(1)
        if len(calls) == 4 * 5 + 2:  # the second part of step 6
            signal.raise_signal(signal.SIGTERM)
        return summed_loss(*arguments)

    monkeypatch.setattr(pretraining, "summed_loss", loss)
    with pytest.raises(SystemExit) as stopped:
        train()
    assert stopped.value.code == 143 and len(calls) == 4 * 5 + 2
    assert signal.getsignal(signal.SIGTERM) is before
    train(batches=only_from(5))
    assert_same_bits(tmp_path / "whole", tmp_path / "run")


def test_trains_beside_the_main_thread(train, tmp_path):
    train(name="whole")
    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert_same_bits(tmp_path / "whole", tmp_path / "run")


# Errors


def with_token(token: int):
    def batches(step):
        batch = random_batches(step)
        batch[step % 4, step] = token if step == 5 else 0
        return batch

    return batches


@pytest.mark.parametrize("token", [VOCABULARY, 50_279, -1])
def test_token_that_the_model_has_not(train, tmp_path, token):
    with pytest.raises(InputError, match=rf"run/models, step 6: found token id {token} in .* ids must be 0 to 351"):
        train(batches=with_token(token))
    assert len(torch.load(tmp_path / "run/state/state.pt")["losses"]) == 4
    train(batches=with_token(VOCABULARY - 1))


def test_batch_of_another_shape(train):
    with pytest.raises(InputError, match=r"step 1: found a batch \(4, 23\); it must be \(4, 24\)"):
        train(batches=lambda step: random_batches(step)[:, 1:])


def test_tokenizer_that_is_too_large_or_absent(train, tmp_path):
    ladder = make_ladder().model_copy(update={"vocabulary": 200})
    with pytest.raises(InputError, match=r"tokenizer: found token id \d+, but vocabulary 200 in ladder tiny"):
        train(ladder)
    (tmp_path / "tokenizer/tokenizer.json").unlink()
    (tmp_path / "tokenizer/tokenizer_config.json").unlink()
    with pytest.raises(InputError, match="tokenizer: tokenizer.json missing"):
        train()


def test_loss_that_is_no_number_ends_the_run(train, tmp_path):
    with pytest.raises(InputError, match=r"run/models, step \d: found loss .*nan.*learning rate of the ladder"):
        train(make_ladder(learning_rate=1e18))
    check_folder(tmp_path / "run/models/step0")
    assert not (tmp_path / "run/models/step4").exists()


def test_gradient_that_is_no_number_ends_the_run(train, tmp_path, monkeypatch):
    class Broken(torch.autograd.Function):
        """The loss as it is, its gradient infinite."""

        forward = staticmethod(lambda context, loss: loss.clone())
        backward = staticmethod(lambda context, gradient: gradient * math.inf)

    monkeypatch.setattr(pretraining, "summed_loss", lambda *arguments: Broken.apply(summed_loss(*arguments)))
    with pytest.raises(InputError, match=r"step 1: found loss 5\.\d+ and gradient norm (nan|inf)"):
        train()


@pytest.mark.parametrize("full", ["checkpoint", "state"])
def test_full_disk_is_told_and_leaves_whole_checkpoints(train, tmp_path, full):
    """A limit on the size of files fails like a full disk: in the middle of writing."""
    with pytest.raises(Stopped):
        train(batches=stop_at(1), steps=(0, 3, 12))
    size = (tmp_path / "run/models/step0/model.safetensors").stat().st_size
    limits = {"checkpoint": size - 100, "state": size + 1000}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits[full], hard))
    try:
        with pytest.raises(InputError, match=r"(step3|state\.pt): cannot be written \(.*make room") as error:
            train(steps=(0, 3, 12))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ("state.pt: cannot" in str(error.value)) == (full == "state")
    check_folder(tmp_path / "run/models/step0")
    left = {p.name for p in (tmp_path / "run").rglob("*") if p.name.startswith(".")}
    assert not left
    train(name="whole", steps=(0, 3, 12))
    train(steps=(0, 3, 12))
    assert_same_bits(tmp_path / "whole", tmp_path / "run")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_that_is_not_there(train):
    with pytest.raises(InputError, match="key device: found cuda, but torch sees no GPU"):
        train(device="cuda")


@pytest.mark.gpu
def test_gpu_trains_as_the_cpu_does_within_bfloat16(train, tmp_path):
    ladder = make_ladder(steps=30, hidden_size=64, heads=4)
    for device in ("cpu", "cuda"):
        train(ladder, steps=(0, 30), name=device, device=device)
    names = ("cpu/models/step0", "cpu/models/step30", "cuda/models/step30")
    start, cpu, gpu = (weights(tmp_path / name) for name in names)
    losses = [
        pl.read_csv(tmp_path / device / "models/step30/loss.csv")["loss"].to_numpy() for device in ("cpu", "cuda")
    ]
    assert np.abs(losses[0] - losses[1]).max() < 0.02
    moved = {name: ((gpu[name] - cpu[name]).norm() / (cpu[name] - start[name]).norm()).item() for name in cpu}
    assert max(moved.values()) < 0.3, moved
    assert gpu["lm_head.weight"].dtype == torch.float32


# The published sizes


@pytest.mark.published
def test_parameters_of_datadecides_sizes_are_the_published_ones():
    table = pl.read_csv(PUBLISHED / "datadecide_sizes.csv")
    assert len(table) == 14
    for row in table.iter_rows(named=True):
        size = LadderSize(
            hidden_size=row["d_model"],
            layers=row["n_layers"],
            heads=row["n_heads"],
            batch_sequences=row["batch_sequences"],
            steps=row["train_steps"],
            learning_rate=row["lr_peak"],
        )
        assert size.parameters(50_304) == row["n_params_nonemb"]
