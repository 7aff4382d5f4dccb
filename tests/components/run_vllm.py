"""Token statistics of model folders by the vLLM engine, in a process of its own: run_vllm.py options.json out.parquet

The options' `runner: v2` takes the runner that GPUs use. It needs Triton, whose kernels run here in Triton's
interpreter; vLLM's CPU build looks for a Triton with a CPU backend, and gets the name of one.
"""

import json
import logging
import os
import sys
from pathlib import Path

import polars as pl


def main() -> None:
    settings, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    os.environ |= settings["environment"]
    logging.basicConfig(level=logging.INFO)
    if settings["runner"] == "v2":
        os.environ |= {"VLLM_USE_V2_MODEL_RUNNER": "1", "TRITON_INTERPRET": "1"}
        pretend_cpu_backend()

    from proxycast.config.extraction import ExtractionOptions
    from proxycast.extraction.engines.factory import make_engine
    from proxycast.solutions.tokenisation import tokenize

    engine = make_engine(ExtractionOptions(engine="vllm", **settings["options"]))
    tables = []
    for folder in settings["folders"]:
        engine.load(Path(folder))
        sequences = tokenize(settings["texts"], engine.tokenizer, engine.context)
        tables.append(engine.token_stats(sequences).with_columns(folder=pl.lit(folder)))
    generated = engine.generate([prompt for _, prompt, _ in settings["texts"]], 4)
    engine.close()
    pl.concat(tables).write_parquet(out)
    out.with_suffix(".json").write_text(json.dumps(generated))


def pretend_cpu_backend() -> None:
    import triton.backends

    class Driver:
        @classmethod
        def is_active(cls) -> bool:
            return True

    triton.backends.backends["cpu"] = type("Backend", (), {"driver": Driver, "compiler": None})()


if __name__ == "__main__":
    main()
