"""How sure the numbers of a table are: bootstrap confidence intervals over seeds."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# The types that pyright infers for pandas, which has none of its own, are unions of everything.

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import bootstrap, gmean

STATISTICS: dict[str, Callable[..., Any]] = {"mean": np.mean, "median": np.median, "geometric mean": gmean}


def confidence(
    table: pd.DataFrame,
    by: Sequence[str],
    columns: Sequence[str],
    *,
    statistic: str = "median",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """A statistic over the seeds of each group, with the percentile bootstrap interval of `scipy.stats.bootstrap`.

    >>> table = pd.DataFrame({"solver": "pivot", "seed": [0, 1, 2, 3], "iterations": [1.0, 2.0, 2.0, 3.0]})
    >>> confidence(table, ["solver"], ["iterations"], statistic="mean")[["value", "low", "high"]].values.tolist()
    [[2.0, 1.25, 2.75]]

    Args:
        table: Tidy, with a column ``seed``; where a seed has several rows in a group, their mean is its observation.
        by: Columns that make the groups.
        columns: Numbers to summarise; missing ones are left out.
        statistic: "mean", "median" or "geometric mean".
        level: Of confidence.
        resamples: Number of resamples.
        seed: Of the resamples.

    Returns:
        ``by``, ``metric``, ``value``, ``low``, ``high`` and ``seeds``, the number of seeds, for each group and column.
        With less than two there is no interval (NaN).

    Raises:
        ValueError: If the statistic is unknown, or a column is missing.
    """
    if statistic not in STATISTICS:
        raise ValueError(f"statistic must be one of {', '.join(STATISTICS)}, but got {statistic!r}.")
    if missing := [name for name in (*by, *columns, "seed") if name not in table]:
        raise ValueError(f"table must have the columns {', '.join(missing)}, but has {', '.join(table.columns)}.")
    function = STATISTICS[statistic]
    long = table.melt(id_vars=[*by, "seed"], value_vars=list(columns), var_name="metric").dropna(subset=["value"])
    each = long.groupby([*by, "metric", "seed"], dropna=False, sort=False)["value"].mean()
    rows = []
    for key, values in each.groupby([*by, "metric"], dropna=False, sort=False):
        sample = values.to_numpy(float)
        low = high = np.nan
        if len(sample) > 1:
            interval = bootstrap(
                (sample,), function, n_resamples=resamples, confidence_level=level, method="percentile",
                rng=np.random.default_rng(seed),
            ).confidence_interval  # fmt: skip
            low, high = interval
        rows.append((*key, float(function(sample)), float(low), float(high), len(sample)))
    return pd.DataFrame(rows, columns=[*by, "metric", "value", "low", "high", "seeds"])
