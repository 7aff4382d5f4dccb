"""What every configuration model and every input check shares: strict models, safe names, one kind of error."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints


class InputError(ValueError):
    """Bad input of a user: one message that names the file, the key or row, what was found and what would be right."""


class Options(BaseModel):
    """A group of configuration keys. Unknown keys are errors, and a group never changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# A name that becomes part of a file name or of a Snakemake wildcard: no separators, no leading dot, no spaces.
SafeName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]
