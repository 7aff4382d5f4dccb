"""The link from a score to the downstream metric, and what it predicts for a new candidate.

What is done, fixed before any result was looked at:

- Two forms. *linear*: the metric is a straight line in the score. *logistic*: its log-odds are, for metrics that are
  shares between 0 and 1; a straight line leaves that range, and DataDecide and the OLMo ladder find sigmoids. Both are
  least squares with two coefficients, as a judge has tens of candidates. Isotonic regression is not among the forms:
  it predicts the same value for whole groups of candidates, and has no interval in closed form.
- The form with the smaller squared error on candidates that are left out one by one, on the judge's own candidates,
  measured in the metric. If both are equal, linear.
- The interval is Student's prediction interval for a new observation (Seber and Lee, Linear Regression Analysis, 2nd
  edition 2003, section 5.3.1): exact if errors are normal with one variance. Of the logistic form it is that of the
  log-odds, transformed. It has no term for the choice of the form, nor for a candidate unlike those of the judge.

With z = (x - mean) / sd, divisor n, the leverage of a point is h = 1/n + z^2/n; the error on a left-out point is its
residual over 1 - h.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import ArrayLike
from scipy.special import expit, logit
from scipy.stats import t as student_t

from proxycast.experiments.arrays import DECIMALS, Array
from proxycast.experiments.judges.judge_file import Form, Link

FEWEST = 3  # candidates; with two, a line has no error
MOST_LEVERAGE = 1 - 1e-9


def fit_link(scores: ArrayLike, metric: ArrayLike, share: bool) -> Link | None:
    """The better of the two forms for `scores` (n,) and `metric` (n,); None for fewer than three or equal scores.

    `share`: whether the metric lies in 0 to 1 by definition; without, or with a 0 or 1 among its values, only linear.
    """
    y = np.asarray(metric, float)
    forms: list[Form] = ["linear", *(["logistic"] if share and ((y > 0) & (y < 1)).all() else [])]
    fits = [fit_form(scores, y, form) for form in forms]
    if fits[0] is None:
        return None
    errors = {fit.form: fit.left_out_error[fit.form] for fit in fits}
    best = min(fits, key=lambda fit: round(errors[fit.form], DECIMALS))
    return best.model_copy(update={"left_out_error": errors})


def fit_form(scores: ArrayLike, metric: ArrayLike, form: Form) -> Link | None:
    """Least squares of one form, as in `fit_link`."""
    x, y = np.asarray(scores, float), np.asarray(metric, float)
    if len(x) < FEWEST or np.ptp(x) <= 10.0**-DECIMALS * max(1.0, float(np.abs(x).max())):
        return None
    n, mean, sd = len(x), x.mean(), x.std()
    z, on_scale = (x - mean) / sd, logit(y) if form == "logistic" else y
    intercept, slope = on_scale.mean(), z @ on_scale / n
    residuals = on_scale - intercept - slope * z
    leverage = np.minimum(1 / n + z**2 / n, MOST_LEVERAGE)
    left_out = on_scale - residuals / (1 - leverage)
    error = np.sqrt(np.mean((y - (expit(left_out) if form == "logistic" else left_out)) ** 2))
    keys = {"mean": mean, "sd": sd, "intercept": intercept, "slope": slope, "lowest": x.min(), "highest": x.max()}
    keys["residual_variance"] = residuals @ residuals / (n - 2)
    numbers = {key: float(value) for key, value in keys.items()}
    return Link(**numbers, form=form, n=n, left_out_error={form: float(error)})


def predict(
    link: Link, scores: ArrayLike, confidence: float, bounds: Sequence[float] | None = None
) -> tuple[Array, Array, Array]:
    """The metric of new candidates with these scores (m,), and the ends of its prediction interval: (m,) each.

    Values of the linear form are limited to `bounds`, those that the metric can have.
    """
    z = (np.asarray(scores, float) - link.mean) / link.sd
    centre = link.intercept + link.slope * z
    spread = np.sqrt(link.residual_variance * (1 + 1 / link.n + z**2 / link.n))
    half = student_t.ppf((1 + confidence) / 2, link.n - 2) * spread
    values = centre, centre - half, centre + half
    if link.form == "logistic":
        return tuple(expit(value) for value in values)
    return tuple(values if bounds is None else (np.clip(value, *bounds) for value in values))


def within(link: Link, score: pl.Expr) -> pl.Expr:
    """Whether a score lies in the range that the link was fitted to, but for the rounding of a mean."""
    slack = 1e-9 * max(abs(link.lowest), abs(link.highest))
    return score.is_between(link.lowest - slack, link.highest + slack)
