"""vLLM and folders that declare Olmo2RetrofitForCausalLM: refused by vLLM itself, run by the engine.

What runs such a model runs in a process of its own: afterwards vLLM's patches keep `transformers` from building one.
"""

import polars as pl
import pytest
from olmo3_models import olmo3_folder, retrofit_folder
from proxycast.config.extraction import ExtractionOptions
from proxycast.extraction.engines.factory import choose_engine
from test_vllm import assert_agrees_for_all, run_apart

pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("vllm_imported")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two plain checkpoints, and the same with the config.json of former times."""
    base = tmp_path_factory.mktemp("olmo3")
    plain = [olmo3_folder(base / f"plain{seed}", seed) for seed in (0, 1)]
    return plain, [retrofit_folder(folder, base / f"retrofit{n}") for n, folder in enumerate(plain)]


def test_vllm_itself_refuses(folders):
    from proxycast.extraction.engines.vllm_support import prepare_environment

    prepare_environment()
    from vllm import LLM

    with pytest.raises(ValueError, match="olmo2-retrofit"):
        LLM(str(folders[1][0]), skip_tokenizer_init=True)


def test_retrofit_checkpoints_run_as_the_released_architecture(folders, tmp_path):
    plain, retrofit = folders
    table, generated = run_apart(tmp_path, retrofit)  # the second one into the running engine
    assert_agrees_for_all(plain, table.with_columns(pl.col("folder").str.replace("retrofit", "plain")), generated)


def test_a_name_that_nobody_knows_needs_the_option(folders, tmp_path):
    plain = folders[0][0]
    own = retrofit_folder(plain, tmp_path / "own", "OurForCausalLM")
    table, generated = run_apart(tmp_path, [own], options={"architecture": "Olmo3ForCausalLM"})
    assert_agrees_for_all([plain], table.with_columns(folder=pl.lit(str(plain))), generated)


class AnyHead:
    @staticmethod
    def supports_head_size(size: int) -> bool:
        return True


def test_auto_knows_that_vllm_supports_it(folders, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("proxycast.extraction.engines.vllm_support._attention_backend", lambda: AnyHead)
    assert choose_engine(ExtractionOptions(engine="auto", dtype="bfloat16"), folders[1][0]).engine == "vllm"
