"""proxycast ranks corpora and models, and forecasts training runs, from next-token distributions over expert solutions.

The names in `__all__` are the library. `import proxycast` loads none of it: each name is loaded when it is first used.

Twelve wings, each of which imports only wings below it and the modules of this folder:

- `command`: the command `proxycast`
- `cluster`: what surrounds a study's jobs: the site, GPUs, Slurm, what a job asks for, how far a study is
- `study`: a study opened: its plan, its checkpoints, the checks before the first job
- `library`: models scored from Python, without a study
- `report`: figures, tables and the page that binds them
- `experiments`: data selection, model selection, forecasting, and judges that carry what they learned
- `truth`: downstream results, measured here or by others, and statistics of others
- `training`: models that a study trains itself
- `extraction`: engines that run models, and the token statistics of expert solutions
- `solutions`: expert solutions: read, rendered, tokenised
- `weights`: model folders, tokenizers, conversion and the hub
- `config`: every option, as strict models
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for type checkers and editors: the same as HOMES
    from proxycast.experiments.judges.judge_application import apply_judge
    from proxycast.experiments.judges.judge_file import read_judge
    from proxycast.library.candidate_ranking import rank
    from proxycast.library.proxy_values import log_values, proxies
    from proxycast.library.scoring import ModelScoring, score
    from proxycast.library.solution_files import load_solutions
    from proxycast.options import InputError

__all__ = [
    "InputError",
    "ModelScoring",
    "apply_judge",
    "load_solutions",
    "log_values",
    "proxies",
    "rank",
    "read_judge",
    "score",
]

# Name -> the module that holds it.
HOMES = {
    "InputError": "proxycast.options",
    "ModelScoring": "proxycast.library.scoring",
    "apply_judge": "proxycast.experiments.judges.judge_application",
    "load_solutions": "proxycast.library.solution_files",
    "log_values": "proxycast.library.proxy_values",
    "proxies": "proxycast.library.proxy_values",
    "read_judge": "proxycast.experiments.judges.judge_file",
    "rank": "proxycast.library.candidate_ranking",
    "score": "proxycast.library.scoring",
}


def __getattr__(name: str) -> object:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
