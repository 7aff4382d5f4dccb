"""Released models that a study chooses among: one small file each in config/models/<suite>/."""

from typing import Self

from pydantic import Field, model_validator

from proxycast.corpora import CheckpointEntry, Corpus
from proxycast.engines import ModelOptions
from proxycast.files import HubId, Revision
from proxycast.options import InputPath, Options, SafeName


class ReleasedModel(Options):
    """A model as it was released: a folder, or a revision of a repository of the hub."""

    name: SafeName = Field(description="name of the model; it becomes part of file names")
    description: str = Field("", description="what the model is and why it is in the suite, in a sentence or two")
    family: SafeName = Field(description="base models that it was made from; a family is held out as a whole")
    recipe: SafeName | None = Field(None, description="kind of post-training")
    folder: InputPath | None = Field(None, description="folder with config.json, *.safetensors and a tokenizer")
    hub: HubId | None = Field(None, description="model repository of the hub, as in 'Qwen/Qwen3-0.6B'")
    revision: Revision = Field("main", description="hub: branch, tag or commit; what it was is recorded as a commit")
    parameters: int | None = Field(
        None,
        gt=0,
        description="all but the input embedding, which counts where it is the output head as well (tied); "
        "without it counted from the weights in `folder`",
    )
    active_parameters: int | None = Field(
        None,
        gt=0,
        description="of these the ones that a token meets, N of 6 N D; without it counted from the weights in "
        "`folder`, and for those of a hub all: give it for a mixture of experts",
    )
    tokens: int | None = Field(
        None, gt=0, description="tokens of pretraining (D), if they are published; those of post-training are few"
    )
    memory_gb: float = Field(16, gt=0, description="host memory of the job that runs it. Unit: GB")
    model: ModelOptions = Field(ModelOptions(), description="how it is run, where that differs from `extraction`")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.folder is None) == (self.hub is None):
            raise ValueError("a model lies in a folder or in a hub repository, exactly one of the two")
        if self.hub is not None and self.parameters is None:
            raise ValueError("parameters: missing; a study is planned before a model of the hub is there to be counted")
        return self

    def as_corpus(self) -> Corpus:
        """The model as the only checkpoint of a corpus of its name: what was trained on it is what it is."""
        billions = float(f"{(self.parameters or 0) / 1e9:.3g}")
        size = f"{billions:.10g}B" if billions else "released"  # never '1e+03B', which is no name
        keys = {"hub": self.hub, "folder": self.folder and str(self.folder), "revision": self.revision}
        keys |= {"size": size, "step": 0, "tokens": self.tokens or 0, "parameters": self.parameters}
        keys |= {"active_parameters": self.active_parameters}
        entry = CheckpointEntry(**keys, model=self.model)
        return Corpus(name=self.name, description=self.description, family=self.family, checkpoints=[entry])
