"""What jobs ask for: against sums by hand, and against the sbatch lines that Slurm's plugin makes of it."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import forked_python
import pytest
import yaml
from conftest import copy_project
from hypothesis import assume, given
from hypothesis import strategies as st
from proxycast.cluster.cost_model import assumed_model, gpu_memory_bytes, gpus_for
from proxycast.cluster.gpu_locks import ALLOCATION, _lock_file, asked_gpus, own_gpus, visible_gpus, with_gpus
from proxycast.cluster.model_jobs import ModelJobs, grown
from proxycast.cluster.site import Site, read_site, require_site_kept, site_of_profile
from proxycast.config.corpora import Corpus
from proxycast.config.extraction import ExtractionOptions, ModelOptions
from proxycast.config.models import ReleasedModel
from proxycast.config.study import Study
from proxycast.jobs.benchmarks import read_benchmark
from proxycast.options import InputError
from proxycast.study.checkpoint_plan import plan_checkpoints
from proxycast.study.study_plan import Plan
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import set_gres_string

PROFILE = Path(__file__).parents[2] / "slurm/config.yaml"
H100 = Site(gpu_request="gres", gpu_memory_gb=80, gpu_teraflops=1000)
SEVENTY = {"parameters": 70_000_000_000, "dtype": "bfloat16", "engine": "vllm", "max_model_len": 4096}


@pytest.fixture(autouse=True)
def in_empty_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in ALLOCATION:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def model_jobs(site=None, parameters=1_000_000_000, steps=(1,), corpora="a", tail=1000, correct=True, **extraction):
    """Jobs of one model of the hub each, and of one text: the generic one."""
    checkpoint = {"hub": "me/model", "size": "x", "tokens_per_step": 1, "parameters": parameters}
    entries = [{**checkpoint, "revision": f"{{step}}{name}", "step": list(steps)} for name in corpora]
    plan = Plan(
        study=Study(
            study="mine", target={}, generic_text=Path("generic.jsonl"), extraction={"tail_tokens": tail, **extraction}
        ),
        corpora=[Corpus(name=name, checkpoints=[entry]) for name, entry in zip(corpora, entries)],
        tasks=[],
        corpus_files={name: Path(f"{name}.yaml") for name in corpora},
        ladder=None,
        where="study.yaml",
    )
    return ModelJobs(plan, plan_checkpoints(plan), site, correct)


def asked(jobs: ModelJobs, attempt: int = 1, rule: str = "score") -> dict:
    """The resources of the first job, as Snakemake computes them."""
    wildcards = [next(iter(jobs.jobs))]
    values = {}
    for name, value in jobs.resources(rule).items():
        arguments = {"attempt": attempt} if callable(value) and "attempt" in value.__code__.co_varnames else {}
        values[name] = value(wildcards, **arguments) if callable(value) else value
    return values


def test_a_tiny_model_on_a_cpu():
    """N = 12 L d^2 with L = d/128: d = 128 for a model of one block."""
    jobs = model_jobs(parameters=12 * 128**2)
    weights = 4 * (12 * 128**2 + 160_000 * 128)
    batch = 34 * 2 * 128 * 2048
    assert asked(jobs) == {"mem_mb": -(-(2_000_000_000 + weights + batch) // 1_000_000), "runtime": 30}
    assert jobs.needs("score", "a-x-seed0").threads == 1
    # The text is not there: 1000 of 1000 tokens, 2 N FLOPs each, at 1e10 a second; 20 s to start; weights read twice.
    seconds = 20 + 2 * 12 * 128**2 * 1_000_000 / 1e10 + 2 * weights / 0.3e9
    assert jobs.needs("score", "a-x-seed0").seconds == pytest.approx(seconds)


def test_a_billion_parameters_in_vllm_take_one_gpu():
    jobs = model_jobs(H100, 12 * 2048**3 // 128, steps=(1, 2, 3), dtype="bfloat16", engine="vllm", max_model_len=4096)
    n = 12 * 2048**3 // 128
    weights = 2 * (n + 160_000 * 2048)
    cache = 2 * 2 * 16 * 2048 / 4 * 4096
    batch = 34 * 2048 * 16384 + 2 * 4 * 160_000 * 16384
    needs = jobs.needs("score", "a-x-seed0")
    assert (needs.gpus, needs.threads) == (1, 4)
    assert needs.gpu_memory_gb == pytest.approx((1e9 + weights + cache + batch) / 1e9)
    assert asked(jobs)["mem_mb"] == -(-(8_000_000_000 + weights) // 1_000_000)
    seconds = 180 + 3 * (2 * n * 1e6 / (1e15 * 0.3) + 2 * weights / 0.3e9)
    assert needs.seconds == pytest.approx(seconds)
    assert asked(jobs)["gres"] == "gpu:1"


def test_seventy_billion_parameters_take_four_gpus_of_80_gb_two_of_140_and_none_of_20():
    """d = 9073: 143 GB of weights; whole on each GPU 1 GB, 5 GB of activations and 21 GB of logits."""
    n, d = 70_000_000_000, 9073
    whole = 1e9 + 34 * d * 16384 + 8 * 160_000 * 16384
    shared = 2 * (n + 160_000 * d) + 2 * 2 * 71 * d / 4 * 4096
    for memory, gpus in ((80, 4), (140, 2), (2 * 200, 1)):
        room = 0.9 * memory * 1e9
        assert shared / gpus + whole <= room
        assert gpus == 1 or 2 * shared / gpus + whole > room
        site = H100.model_copy(update={"gpu_memory_gb": memory})
        needs = model_jobs(site, **SEVENTY).needs("score", "a-x-seed0")
        assert (needs.gpus, needs.memory_mb) == (gpus, pytest.approx(8000 + 4000 * (gpus - 1) + 142_903, abs=1))
    with pytest.raises(
        InputError, match=r"study.yaml: a-x-seed0-step1: .* more than 8 GPUs of 20 GB .*tensor_parallel"
    ):
        model_jobs(H100.model_copy(update={"gpu_memory_gb": 20}), **SEVENTY).check()


def test_a_mixture_of_experts_takes_the_memory_of_all_and_the_time_of_its_active_parameters():
    dense, mixture = (model_jobs(parameters=12 * 128**2 * n) for n in (1, 4))
    mixture.jobs["a-x-seed0"] = [replace(c, active_parameters=12 * 128**2) for c in mixture.jobs["a-x-seed0"]]
    one, other = (jobs.needs("score", "a-x-seed0") for jobs in (dense, mixture))
    more = 4 * 3 * 12 * 128**2  # bytes
    assert other.memory_mb - one.memory_mb == pytest.approx(more / 1e6)
    assert other.seconds - one.seconds == pytest.approx(2 * more / 0.3e9)  # to read the weights


def test_vllm_runs_no_float32_on_a_gpu():
    """Which is found when the study is planned; auto takes transformers, which needs one GPU."""
    with pytest.raises(InputError, match="study.yaml: a-x-seed0-step1: dtype float32 by vLLM is not exact on a GPU"):
        model_jobs(H100, engine="vllm").check()
    model_jobs(engine="vllm").check()  # without a GPU
    large = model_jobs(H100, **SEVENTY | {"engine": "auto", "dtype": "float32"})
    assert large.needs("score", "a-x-seed0").gpus == 1
    assert model_jobs(H100, **SEVENTY | {"engine": "auto"}).needs("score", "a-x-seed0").gpus == 4


def test_the_studys_own_number_of_gpus_counts():
    assert model_jobs(H100, tensor_parallel_size=3, **SEVENTY).needs("score", "a-x-seed0").gpus == 3
    assert model_jobs(H100, tensor_parallel_size=1, **SEVENTY).needs("score", "a-x-seed0").gpus == 1
    assert model_jobs(H100, pipeline_parallel_size=2, **SEVENTY).needs("score", "a-x-seed0").gpus == 4
    assert model_jobs(H100, **SEVENTY | {"engine": "transformers"}).needs("score", "a-x-seed0").gpus == 1


def test_copies_of_the_engine_have_gpus_and_memory_of_their_own_and_share_the_time():
    one, two = (model_jobs(H100, data_parallel_size=copies, **SEVENTY).needs("score", "a-x-seed0") for copies in (1, 2))
    assert (one.gpus, two.gpus) == (4, 8)
    assert two.gpu_memory_gb == one.gpu_memory_gb and two.memory_mb == pytest.approx(2 * one.memory_mb)
    assert two.seconds < one.seconds
    small = model_jobs(H100, **SEVENTY | {"engine": "transformers", "data_parallel_size": 3})
    assert small.needs("score", "a-x-seed0").gpus == 3
    with pytest.raises(InputError, match="data_parallel_size: found 3; .* each on 4 GPUs, .* the 8 GPUs .* give 2 at"):
        model_jobs(H100, data_parallel_size=3, **SEVENTY).needs("score", "a-x-seed0")


@pytest.mark.parametrize("site", [None, Site()])
def test_without_gpus_none_is_asked_for(site):
    assert set(asked(model_jobs(site))) == {"mem_mb", "runtime"}


def test_on_a_cpu_none_is_asked_for():
    assert set(asked(model_jobs(H100, device="cpu"))) == {"mem_mb", "runtime"}


def test_a_replay_runs_no_model():
    jobs = model_jobs(H100, **SEVENTY)
    jobs.plan.study = jobs.plan.study.model_copy(update={"replay": Path("recorded.parquet")})
    assert asked(jobs) == {"mem_mb": 2000, "runtime": 30}


def test_one_machine_gives_its_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert asked(model_jobs())["gpu"] == 1
    assert asked(model_jobs(engine="vllm", dtype="bfloat16", tensor_parallel_size=4))["gpu"] == 2  # there are no more


def test_solutions_that_are_there_are_counted():
    folder = Path("results/mine/solutions")
    folder.mkdir(parents=True)
    (folder / "generic_text.jsonl").write_text(("x" * 299 + "\n") * 7)
    jobs = model_jobs(tail=40)
    assert (jobs.tokens_read, jobs.texts["generic_text"].known) == (700, True)
    assert jobs.scored_tokens("a-x-seed0") == 7 * 40


class Job(SimpleNamespace):
    """As much of Snakemake's job as the Slurm plugin looks at."""

    def is_group(self):
        return False


class Resources(dict):
    __getattr__ = dict.__getitem__


def sbatch(resources: dict, threads: int) -> str:
    job = Job(resources=Resources(resources), threads=threads)
    names = {"run_uuid": "id", "slurm_logfile": "log", "comment_str": "rule", "workdir": "."}
    params = names | {"account": "", "partition": f"-p {resources.get('slurm_partition')}"}
    return get_submit_command(job, params) + set_gres_string(job)


@pytest.mark.parametrize(
    "keys, found, other",
    [
        ({"gpu_request": "gres"}, " --gres=gpu:4", "--gpus"),
        ({"gpu_request": "gres", "gpu_model": "h100"}, " --gres=gpu:h100:4", "--gpus"),
        ({"gpu_request": "gpus"}, " --gpus=4", "--gres"),
        ({"gpu_request": "gpus", "gpu_model": "h100"}, " --gpus=h100:4", "--gres"),
    ],
)
def test_both_dialects_reach_sbatch(keys, found, other):
    site = read_site({"gpu_memory_gb": 80, "gpu_jobs": {"slurm_partition": "big", "qos": "long"}, **keys})
    jobs = model_jobs(site, **SEVENTY)
    resources = asked(jobs)
    line = sbatch(resources, jobs.threads("score")(["a-x-seed0"])) + " "
    assert f"{found} " in line and other not in line
    assert f"-t {resources['runtime']} " in line and f"--mem {resources['mem_mb']} " in line
    assert "-p big " in line and "--qos=long " in line and "--cpus-per-task=16 " in line
    assert asked_gpus(resources) == 4


def test_a_job_without_gpus_asks_sbatch_for_none():
    line = sbatch(asked(model_jobs(Site())), 1)
    assert "--gres" not in line and "--gpus" not in line and "--ntasks=1 --cpus-per-task=1" in line


def test_the_engine_uses_what_was_asked_for():
    options = ExtractionOptions(engine="vllm", pipeline_parallel_size=2)
    assert with_gpus(options, {"gpu": 8}).tensor_parallel_size == 4
    assert with_gpus(options, {"gres": "gpu:h100:8"}).tensor_parallel_size == 4
    assert with_gpus(options, {"mem_mb": 1000}) == options
    own = ExtractionOptions(engine="vllm").with_overrides(ModelOptions(tensor_parallel_size=1))
    assert with_gpus(own, {"gpu": 8}).tensor_parallel_size == 1
    copies = ExtractionOptions(engine="vllm", data_parallel_size=4)
    assert with_gpus(copies, {"gpu": 8}).tensor_parallel_size == 2
    assert with_gpus(copies, {"gpu": 4}).tensor_parallel_size == 1


def test_a_retry_gets_twice_as_much_up_to_what_there_is():
    site = H100.model_copy(update={"most_memory_gb": 500, "longest_hours": 1.5})
    jobs = model_jobs(site, **SEVENTY)
    first, second, third = (asked(jobs, attempt) for attempt in (1, 2, 3))
    assert (second["mem_mb"], third["mem_mb"]) == (pytest.approx(2 * first["mem_mb"], abs=1), 500_000)
    assert (second["runtime"], third["runtime"]) == (min(90, 2 * first["runtime"]), 90)
    assert first["gres"] == third["gres"]
    assert [grown(3000)(None, attempt) for attempt in (1, 2, 3)] == [3000, 6000, 12000]


sizes = st.integers(10_000, 200_000_000_000)
engines = st.sampled_from(["transformers", "vllm", "auto"])


@given(sizes, sizes, engines, st.sampled_from(["float32", "bfloat16"]), st.sampled_from([None, H100]))
def test_larger_models_and_later_attempts_never_get_less(one, other, engine, dtype, site):
    small, large = sorted((one, other))
    assume((engine, dtype, site) != ("vllm", "float32", H100))  # refused
    found = []
    for parameters in (small, large):
        site = site and site.model_copy(update={"gpus_per_node": 1024, "longest_hours": 1e9})
        jobs = model_jobs(site, parameters, engine=engine, dtype=dtype, correct=False)
        found += [jobs.needs("score", "a-x-seed0").gpus, asked(jobs, 1), asked(jobs, 2)]
    few, one, two, many, *larger = found
    assert few <= many
    for key in ("mem_mb", "runtime"):
        assert one[key] <= two[key] and one[key] <= larger[0][key] <= larger[1][key]


@given(sizes, st.integers(2, 1 << 17))
def test_gpus_are_the_fewest_powers_of_two(parameters, context):
    site = H100.model_copy(update={"gpus_per_node": 1 << 20})
    options = ExtractionOptions(engine="vllm", dtype="bfloat16", max_model_len=context)
    gpus = gpus_for(assumed_model(parameters), options, site, "")
    room = 80e9 * options.gpu_memory_fraction
    assert gpus & (gpus - 1) == 0
    assert gpu_memory_bytes(assumed_model(parameters), options, gpus) <= room
    assert gpus == 1 or gpu_memory_bytes(assumed_model(parameters), options, gpus // 2) > room


def benchmark(name: str, seconds: object, memory: object) -> None:
    folder = Path("results/mine/benchmarks/score")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.tsv").write_text(f"s\th:m:s\tmax_rss\tmax_vms\n{seconds}\t0:00:01\t{memory}\t-\n")


def test_earlier_jobs_correct_memory_and_time():
    corpora, size = "abcde", 10_000_000
    plain = model_jobs(None, size, corpora=corpora)
    needs, minutes = plain.needs("score", "a-x-seed0"), plain.minutes("score", "a-x-seed0")
    for name, factor in zip("abc", (2, 3, 40)):
        benchmark(f"{name}-x-seed0", factor / 2 * needs.seconds, factor * needs.memory_mb)
    benchmark("d-x-seed0", "-", "-")  # too short to be measured
    benchmark("gone-x-seed0", 1e9, 1e9)
    jobs = model_jobs(None, size, corpora=corpora)
    assert jobs.factors("score") == pytest.approx((1.5 * 3, 1.5))
    assert jobs.memory_mb("score", "e-x-seed0") == pytest.approx(4.5 * needs.memory_mb, abs=1)
    assert jobs.minutes("score", "e-x-seed0") == pytest.approx(1.5 * minutes, abs=2)
    assert jobs.hours("score", "e-x-seed0") == pytest.approx(1.5 * needs.seconds / 3600)
    assert model_jobs(None, size, corpora=corpora, correct=False).factors("score") == (1, 1)


def test_two_earlier_jobs_are_too_few():
    for name in "ab":
        benchmark(f"{name}-x-seed0", 1e6, 1e6)
    assert model_jobs(corpora="abc").factors("score") == (1, 1)


def test_no_correction_goes_below_what_an_engine_takes_itself():
    for name in "abc":
        benchmark(f"{name}-x-seed0", 1, 1)
    assert asked(model_jobs(corpora="abc")) == {"mem_mb": 2000, "runtime": 30}
    gpu = model_jobs(H100, corpora="abc", engine="vllm", dtype="bfloat16")
    assert (gpu.memory_mb("score", "a-x-seed0"), gpu.minutes("score", "a-x-seed0")) == (8000, 30)


def test_memory_that_a_models_file_gives_is_not_corrected():
    jobs = model_jobs(corpora="abc")
    models = [ReleasedModel(name=name, family="f", hub="me/model", parameters=5, memory_gb=7) for name in "abc"]
    for name in "abc":
        benchmark(f"{name}-x-seed0", 100, 60_000)
    jobs.plan.models.extend(models)
    assert asked(jobs)["mem_mb"] == 7000 and asked(jobs, 2)["mem_mb"] == 14_000


@pytest.mark.parametrize(
    "text",
    ["", "s\tmax_rss\n", "s\tmax_rss\n1\tNA\n", "s\tmax_vms\n1\t2\n", "s\tmax_rss\n0\t5\n", "s\tmax_rss\n1e308\t5\n"],
)
def test_a_benchmark_that_tells_nothing_is_passed_over(text):
    Path("x.tsv").write_text(text)
    assert read_benchmark(Path("x.tsv")) is None


@pytest.mark.parametrize(
    "values, message",
    [
        ({"gpu_request": "slots", "gpu_memory_gb": 8}, "config.site.gpu_request: .*'gres' or 'gpus', found 'slots'"),
        ({"gpu_request": "gres"}, "config.site: gpu_memory_gb: missing"),
        ({"gpu_memory": 80}, "config.site.gpu_memory: unknown key; did you mean 'gpu_memory_gb'"),
        ({"gpu_model": "a b; rm"}, "config.site.gpu_model: .* found 'a b; rm'"),
        ("gres", "config.site: .* found 'gres'"),
        ({"gpu_jobs": {"slurm_acount": "lab"}}, "config.site: gpu_jobs.slurm_acount: .* mean 'slurm_account'"),
    ],
)
def test_a_bad_site_block_is_told_by_file_and_key(values, message):
    with pytest.raises(InputError, match=f"^slurm/config.yaml: {message}"):
        read_site(values)


def test_the_profile_that_is_shipped_is_a_site():
    profile = yaml.safe_load(PROFILE.read_text())
    site = read_site(profile["config"]["site"])
    assert (site.gpu_request, site.gpu_jobs) == ("gres", {"slurm_partition": "gpu"})
    assert read_site(None) is None


def test_numbers_of_a_profile_reach_the_site_as_text():
    site = read_site({"gpu_jobs": {"mem_mb": "64000", "nodes": "1", "qos": "high", "lsf_queue": "gpu"}})
    assert site.gpu_jobs == {"mem_mb": 64000, "nodes": 1, "qos": "high", "lsf_queue": "gpu"}


def test_a_gpu_that_pytorch_cannot_use_is_an_error(tmp_path, monkeypatch):
    driver = tmp_path / "driver"
    monkeypatch.setattr("proxycast.cluster.gpu_locks.GPU_DRIVERS", (str(driver),))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with own_gpus(1):  # there is no GPU: a cluster for tests may say otherwise
        pass
    driver.touch()
    with own_gpus(0):
        pass
    with pytest.raises(InputError, match="this job was given 1 GPUs, and PyTorch .* cannot use them"), own_gpus(1):
        pass
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with own_gpus(1):
        pass


def test_jobs_of_one_machine_take_different_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,GPU-7")
    with own_gpus(2):
        assert visible_gpus() == ("0", "1")
        os.environ["CUDA_VISIBLE_DEVICES"] = "0,1,GPU-7"  # as another process would see it
        with own_gpus(1):
            assert visible_gpus() == ("GPU-7",)
    assert visible_gpus() == ("0", "1", "GPU-7")


def test_a_job_waits_until_a_gpu_is_free(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    order = []

    def second():
        with own_gpus(2):
            order.append("second")

    with own_gpus(2):
        os.environ["CUDA_VISIBLE_DEVICES"] = "0,1,2"
        other = threading.Thread(target=second, daemon=True)
        other.start()
        other.join(0.3)
        with _lock_file("2").open() as third:
            fcntl.flock(third, fcntl.LOCK_EX | fcntl.LOCK_NB)  # who waits holds nothing
        order.append("first")
    other.join(10)
    assert order == ["first", "second"]


HOLDER = """
import logging, sys, time
from pathlib import Path
from proxycast.cluster import gpu_locks
logging.basicConfig(level=logging.INFO)
gpu_locks.TELL_SECONDS = 0.5
count, name = int(sys.argv[1]), sys.argv[2]
with gpu_locks.own_gpus(count):
    Path(f"{name}.has").write_text(",".join(gpu_locks.visible_gpus()))
    while not Path(f"{name}.end").exists():
        time.sleep(0.02)
"""


@pytest.fixture
def holder(tmp_path):
    """A function that starts a process which takes GPUs, keeps them until `<name>.end` is there, and tells of waits."""
    started = []

    def start(name, count, visible="0,1", **environment):
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": visible, "TMPDIR": str(tmp_path)} | environment
        with Path(f"{name}.log").open("w") as log:
            command = [sys.executable, "-c", HOLDER, str(count), name]
            started.append(subprocess.Popen(command, env=environment, stderr=log))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def has(name: str, seconds: float = 60) -> str | None:
    """The GPUs that a process took within so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if (text := Path(f"{name}.has")).exists() and text.read_text():
            return text.read_text()
        time.sleep(0.02)
    return None


def waits(name: str, times: int) -> str:
    """What a process said of its wait, as soon as it said so `times` times."""
    until = time.monotonic() + 60
    while (said := Path(f"{name}.log").read_text()).count("waiting for") < times:
        assert time.monotonic() < until, said
        time.sleep(0.02)
    return said


@pytest.mark.parametrize("first, second", [(2, 2), (2, 1), (1, 2)])
def test_jobs_of_two_studies_take_turns_also_where_one_wants_all_gpus(holder, first, second):
    one = holder("first", first)
    assert has("first") == ("0,1" if first == 2 else "0")
    holder("second", second)
    said = waits("second", 2)  # again and again
    busy = [gpu for gpu in "01"[:first]]
    held = ", ".join(f"{gpu} ({_lock_file(gpu)})" for gpu in busy)
    assert f"waiting for {second} of 2 GPUs; other jobs hold (lock file): {held}" in said
    assert not Path("second.has").exists()
    one.kill()  # as a kill for memory: nothing is tidied up
    assert has("second") == ("0,1" if second == 2 else "0")


def test_a_job_that_wants_all_gpus_holds_none_while_it_waits(holder):
    holder("first", 1)
    has("first")
    holder("all", 2)
    waits("all", 1)
    holder("third", 1)
    assert has("third") == "1"
    for name in ("first", "third"):
        Path(f"{name}.end").touch()
    assert has("all") == "0,1"


@pytest.mark.parametrize(
    "first, second",
    [
        ({"SLURM_JOB_ID": "1"}, {"SLURM_JOB_ID": "2"}),
        ({"SLURM_JOB_ID": "1", "SLURM_STEP_GPUS": "2"}, {"SLURM_JOB_ID": "1", "SLURM_STEP_GPUS": "3"}),
        ({"PBS_JOBID": "1.host"}, {"PBS_JOBID": "2.host"}),
    ],
)
def test_allocations_of_a_scheduler_that_call_their_gpus_alike_do_not_wait(holder, first, second):
    holder("first", 1, "0", **first)
    assert has("first") == "0"
    holder("second", 1, "0", **second)
    assert has("second") == "0" and "waiting" not in Path("second.log").read_text()


def test_jobs_of_one_allocation_take_turns(holder):
    slurm = {"SLURM_JOB_ID": "1", "SLURM_STEP_GPUS": "0,1"}
    assert [holder("first", 1, **slurm) and has("first"), holder("second", 1, **slurm) and has("second")] == ["0", "1"]
    holder("third", 2, **slurm)
    assert "1-SLURM_STEP_GPUS-0,1-gpu-0.lock" in waits("third", 1)


def test_a_job_gets_what_there_is_under_the_names_that_are_there(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-7,MIG-1")
    for count in (2, 3):  # 3: a cluster for tests says that there are more
        with own_gpus(count):
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-7,MIG-1"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: [folder / "nvidia5", folder / "nvidia3"])
    assert visible_gpus() == ("0", "1")  # as CUDA counts them in a container
    with own_gpus(1):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    with own_gpus(2):
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_a_file_system_without_locks_stops_no_job(monkeypatch, caplog):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with own_gpus(2):
        assert caplog.text.count("not locked, as its file system knows no locks") == 2


@pytest.mark.parametrize("option", ["--config", "-C"])
def test_a_site_that_the_command_line_displaces_is_an_error(tmp_path, monkeypatch, option):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slurm").mkdir()
    profile = tmp_path / "slurm/config.yaml"
    profile.write_text("config: {site: {gpus_per_node: 4}}")
    require_site_kept(["--profile", "slurm", "--configfile", "study.yaml"])
    require_site_kept([option, "published=here", "--cores", "2"])
    with pytest.raises(InputError, match="slurm/config.yaml: config.site: --config .* takes its place"):
        require_site_kept(["--profile", "slurm", option, "published=here", "--cores", "2"])
    profile.write_text("jobs: 3")
    require_site_kept(["--profile", "slurm", option, "published=here"])


# What a shell would obey


HOSTILE = [
    "$(touch pwned)",
    "`touch pwned`",
    "a;touch pwned",
    "a|touch",
    "a\ntouch pwned",
    "a&touch",
    "a>b",
    "a b",
    '"',
    "'",
]
HOSTILE += ["{a,b}", "~root", "!!", "#", "a\\", "\x00", "*", "?", "--wrap=x", "а"]


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("name", ["slurm_partition", "slurm_account", "qos", "mem_mb", "gres", "reservation", "of_lsf"])
def test_no_resource_of_a_site_has_what_a_shell_obeys(name, value):
    with pytest.raises(InputError, match=f"^slurm/config.yaml: config.site: gpu_jobs.{name}: found "):
        read_site({"gpu_jobs": {name: value}})


@pytest.mark.parametrize(
    "value", [value for value in HOSTILE if value not in ("a b", "--wrap=x", "a|touch", "a&touch", "*")]
)
@pytest.mark.parametrize("name", ["constraint", "slurm_extra"])
def test_neither_have_those_that_may_have_more(name, value):
    with pytest.raises(InputError, match=f"gpu_jobs.{name}: found "):
        read_site({"gpu_jobs": {name: f"--reservation=a {value}" if name == "slurm_extra" else value}})


def test_what_clusters_want_is_no_danger():
    jobs = {"constraint": "[rack1*2&(a100|h100)]", "slurm_extra": "--reservation=x@y --licenses=a:2,b%3", "qos": ""}
    assert read_site({"gpu_jobs": jobs}).gpu_jobs == jobs


@pytest.mark.parametrize("given", [{}, {"site": {"gpus_per_node": 4}}])
def test_a_site_of_a_study_is_refused(given):
    assert site_of_profile({"study": "x", **given}, given, "s.yaml") == given.get("site")
    for own in ({"gpu_jobs": {"slurm_extra": "x"}}, [], "gres"):
        merged = given.get("site", {}) | own if isinstance(own, dict) else own
        config = {"study": "x", "site": merged}
        with pytest.raises(InputError, match=r"^s.yaml: site: found in a study; .* \(slurm/config.yaml: config.site\)"):
            site_of_profile(config, given, "s.yaml")


def test_snakemake_does_not_plan_a_study_with_a_site(tmp_path):
    """Not even one with harmless values: what it asks for is the cluster's, and the user's, to say."""
    copy_project(tmp_path)
    site = "\nsite: {gpu_jobs: {slurm_extra: '--reservation=x'}}\n"
    study = tmp_path / "config/smoke.yaml"
    before = study.read_text()
    command = ["snakemake", "-n", "--quiet", "--configfile", "config/smoke.yaml", "--cores", "1"]
    for text, profile, status in (
        (before + site, [], 1),
        (before + site, ["--profile", "slurm"], 1),
        (before, ["--profile", "slurm"], 0),
    ):
        study.write_text(text)
        done = forked_python.run(*command, *profile, cwd=tmp_path)
        said = done.stdout + done.stderr
        assert done.returncode == status and ("site: found in a study" in said) == bool(status), said


def test_the_lock_of_a_gpu_is_for_its_user_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with own_gpus(1):
        (lock,) = tmp_path.iterdir()
        assert lock.stat().st_mode & 0o777 == 0o600
    victim = tmp_path / "victim"
    victim.write_text("mine")
    lock.unlink()
    lock.symlink_to(victim)
    with pytest.raises(InputError, match="found a link"), own_gpus(1):
        pytest.fail("it has a GPU")
    assert victim.read_text() == "mine"
