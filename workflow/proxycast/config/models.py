"""Released models that a study chooses among: one file each in config/models/<suite>/."""

from typing import Self

from pydantic import Field, model_validator

from proxycast.config.corpora import CheckpointEntry, Corpus
from proxycast.config.extraction import ModelOptions
from proxycast.files import HubId, Revision
from proxycast.options import InputPath, Options, SafeName


class ReleasedModel(Options):
    """A released model: a folder, or a revision of a repository on the hub."""

    name: SafeName = Field(description="name of the model, used in file names")
    description: str = Field("", description="what the model is and why it is in the suite, in a sentence or two")
    family: SafeName | None = Field(
        None,
        description="family of its base model; a family is held out as a whole. Without it the model is one by itself",
    )
    recipe: SafeName | None = Field(
        None, description="kind of post-training, as in `rl`; `none` for a base model. One is held out as a whole"
    )
    folder: InputPath | None = Field(None, description="folder with config.json, *.safetensors and a tokenizer")
    hub: HubId | None = Field(None, description="model repository on the hub, as in 'Qwen/Qwen3-0.6B'")
    revision: Revision = Field("main", description="hub: branch, tag or commit; results record the commit")
    parameters: int | None = Field(
        None,
        gt=0,
        description="parameters without the input embedding; a tied embedding counts, as the output head. "
        "Without it counted from the weights in `folder`",
    )
    active_parameters: int | None = Field(
        None,
        gt=0,
        description="active parameters, those that process a token: N of 6 N D. Without it counted from the weights in "
        "`folder`; on the hub all parameters, so give it for a mixture of experts there",
    )
    tokens: int | None = Field(
        None, gt=0, description="tokens of pretraining (D), if published; the few of post-training are left out"
    )
    memory_gb: float = Field(16, gt=0, description="host memory of the job that runs it. Unit: GB")
    model: ModelOptions = Field(ModelOptions(), description="how it is run; keys set here override `extraction`")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.folder is None) == (self.hub is None):
            raise ValueError("a model lies in a folder or in a hub repository, exactly one of the two")
        if self.hub is not None and self.parameters is None:
            raise ValueError(
                "parameters: missing; give it for a model of the hub, which is not downloaded when a study is planned"
            )
        return self

    def as_corpus(self) -> Corpus:
        """The model as the only checkpoint of a corpus with its name."""
        billions = float(f"{(self.parameters or 0) / 1e9:.3g}")
        size = f"{billions:.10g}B" if billions else "released"  # never '1e+03B', which is no name
        keys = {"hub": self.hub, "folder": self.folder and str(self.folder), "revision": self.revision}
        keys |= {"size": size, "step": 0, "tokens": self.tokens or 0, "parameters": self.parameters}
        keys |= {"active_parameters": self.active_parameters}
        entry = CheckpointEntry(**keys, model=self.model)
        return Corpus(
            name=self.name,
            description=self.description,
            family=self.family or self.name,
            post_training=self.recipe,
            checkpoints=[entry],
        )
