"""The type of arrays of numbers, and columns of tables as arrays."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from proxycast.options import InputError

Array = NDArray[np.float64]
DECIMALS = 12  # to which scores are compared


def dense(table: pl.DataFrame, value: str, name: str, axes: Sequence[pl.DataFrame]) -> Array:
    """Column `value` as an array with one axis for each frame of labels.

    Every combination of labels must be there, once, and finite: `InputError`, where `name` says what the value is.
    """
    position = table.select(value)
    for n, labels in enumerate(axes):
        index = table.select(labels.columns).join(
            labels.with_row_index(f"axis {n}"), on=labels.columns, how="left", nulls_equal=True, maintain_order="left"
        )
        position = position.with_columns(index[f"axis {n}"])
    shape = tuple(len(labels) for labels in axes)
    flat = np.ravel_multi_index([position[f"axis {n}"].to_numpy() for n in range(len(axes))], shape)
    counts = np.bincount(flat, minlength=np.prod(shape))
    dense = np.full(counts.size, np.nan)
    dense[flat] = position[value].to_numpy()
    for wrong, what in (
        (counts == 0, "is missing"),
        (counts > 1, "occurs more than once"),
        (~np.isfinite(dense), "is not finite"),
    ):
        if wrong.any():
            where = np.unravel_index(wrong.argmax(), shape)
            labels = pl.concat([axis.slice(int(i), 1) for axis, i in zip(axes, where, strict=True)], how="horizontal")
            place = ", ".join(f"{key} {label}" for key, label in labels.row(0, named=True).items())
            raise InputError(f"{name} of {place} {what}")
    return dense.reshape(shape)
