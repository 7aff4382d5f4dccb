"""Which text a corpus is made of: files, filters and weights. Light to import: the workflow plans with it."""

import math

from pydantic import Field, field_validator, model_validator

from proxycast.files import Files
from proxycast.options import Options


class Source(Files):
    """Files of text that share a weight: .jsonl or .txt (each also .gz or .zst) and .parquet."""

    weight: float = Field(1.0, gt=0, description="share of this source in the training tokens, whatever its size")
    column: str = Field("text", min_length=1, description="column or JSON key that holds a document; .txt has `text`")
    where: str | None = Field(
        None, description="SQL condition on a row's columns, as in \"score >= 3 and language = 'en'\"; without it all"
    )

    @field_validator("where")
    @classmethod
    def _one_condition(cls, where: str | None) -> str | None:
        from proxycast.tables import sql_condition

        if where is None:
            return None
        condition = sql_condition(where)
        if condition.meta.has_multiple_outputs():
            raise ValueError(f"{where!r} gives several columns; it must be one condition")
        return where


class Text(Options):
    """The text that a corpus is made of."""

    mixture: tuple[Source, ...] = Field(min_length=1, description="sources of text; their weights sum to 1")
    max_epochs: float = Field(
        4.0, gt=0, description="how often a source with fewer tokens than its share may be repeated; more is an error"
    )

    @model_validator(mode="after")
    def _weights_sum_to_one(self) -> "Text":
        total = math.fsum(source.weight for source in self.mixture)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the weights of the mixture sum to {total:g}; they must sum to 1")
        return self
