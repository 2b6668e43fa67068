"""What a sweep found: means over seeds, what nothing beats, and which settings matter."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

SEED = "seed"
"""The setting over which figures are averaged."""


class Row(NamedTuple):
    """The figures of one dictionary."""

    name: str
    method: str
    factors: Mapping[str, Any]
    """The settings that the sweep varies for its method."""
    site: str
    folder: Path
    figures: Mapping[str, float]
    """Held-out figures by name; empty where it diverged, or could not be scored."""
    errors: Mapping[str, float]
    """Standard errors of figures, where the evaluation gives them."""
    missing: str = "diverged"
    """Why there are no figures, if there are none: "diverged" or "not scored"."""
    fixed: Mapping[str, Any] = MappingProxyType({})
    """Further settings of its method, which other methods of the sweep vary."""


class SweepResult(NamedTuple):
    """What `run_sweep` returns."""

    folder: Path
    rows: list[Row]

    @property
    def report(self) -> Path:
        """The report's page."""
        return self.folder / "sweep.html"


class Summary(NamedTuple):
    """A combination at a site, over its seeds."""

    method: str
    factors: Mapping[str, Any]
    """Without the seed."""
    site: str
    n: int
    """Seeds that have figures."""
    means: Mapping[str, float]
    errors: Mapping[str, float]
    """Standard errors: of the mean over seeds, or of the evaluation where there is one seed."""
    missing: str = "diverged"
    """Why there are no figures, if n is 0."""
    fixed: Mapping[str, Any] = MappingProxyType({})
    """Further settings of the method, which other methods of the sweep vary."""

    @property
    def name(self) -> str:
        """The method, and what is varied."""
        return " ".join([self.method, *(f"{key}={value}" for key, value in self.factors.items())])


class Share(NamedTuple):
    """How much of a figure's variance one setting explains."""

    scope: str
    """The method within which it is compared; empty for all of them."""
    factor: str
    n_levels: int
    share: float
    """sum over levels of n (mean of level - mean)^2 / sum (value - mean)^2, from 0 to 1."""
    is_balanced: bool
    """Whether all combinations of the scope have equally many dictionaries: shares add up then."""


def summaries(rows: Sequence[Row]) -> list[Summary]:
    """Returns the mean of each figure over seeds, and its standard error.

    The standard error of a mean over n seeds is the standard deviation (n - 1) over sqrt(n).
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        factors = {key: value for key, value in row.factors.items() if key != SEED}
        groups.setdefault(repr((row.method, sorted(factors.items(), key=str), row.site)), []).append(row)
    found: list[Summary] = []
    for group in groups.values():
        first, measured = group[0], [row for row in group if row.figures]
        means, errors = dict[str, float](), dict[str, float]()
        for key in dict.fromkeys(key for row in measured for key in row.figures):
            values = [row.figures[key] for row in measured if math.isfinite(row.figures.get(key, math.nan))]
            if not values:
                continue
            means[key] = sum(values) / len(values)
            if len(values) > 1:
                variance = sum((value - means[key]) ** 2 for value in values) / (len(values) - 1)
                # of the same value each time, rounding of the mean is no error
                errors[key] = math.sqrt(variance / len(values)) if len(set(values)) > 1 else 0.0
            elif len(measured) == 1 and key in measured[0].errors:
                errors[key] = measured[0].errors[key]
        factors = {key: value for key, value in first.factors.items() if key != SEED}
        found.append(
            Summary(first.method, factors, first.site, len(measured), means, errors, first.missing, first.fixed)
        )
    return found


def pareto(found: Sequence[Summary], metric: str, is_lower_better: bool = True) -> set[int]:
    """Returns which combinations no other one of their site beats in both L0 and a metric."""
    sign = 1 if is_lower_better else -1
    points = {
        i: (one.means["l0"], sign * one.means[metric])
        for i, one in enumerate(found)
        if "l0" in one.means and metric in one.means
    }

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a != b and a[0] <= b[0] and a[1] <= b[1]

    return {
        i
        for i, point in points.items()
        if not any(beats(other, point) for j, other in points.items() if found[j].site == found[i].site)
    }


def importance(rows: Sequence[Row], metric: str) -> list[Share]:
    """Returns the share of a figure's variance that each setting explains by itself, sorted.

    Settings are compared within each method, and methods and sites over all. What is left are
    interactions. A share says what mattered in this grid: wider steps make it larger.
    """
    known = [row for row in rows if math.isfinite(row.figures.get(metric, math.nan))]
    scopes: list[tuple[str, list[Row], list[str]]] = [("", known, ["method", "site"])]
    for method in dict.fromkeys(row.method for row in known):
        own = [row for row in known if row.method == method]
        scopes.append((method, own, [*dict.fromkeys(key for row in own for key in row.factors), "site"]))
    found: list[Share] = []
    for scope, members, factors in scopes:
        values = [row.figures[metric] for row in members]
        levels = {factor: [_level(row, factor) for row in members] for factor in factors}
        varied = {factor: each for factor, each in levels.items() if len(set(each)) > 1}
        combinations = list(zip(*varied.values(), strict=True))
        counts = {combinations.count(one) for one in combinations}
        n_possible = math.prod(len(set(each)) for each in varied.values())
        # one setting alone overlaps with nothing
        is_balanced = len(varied) < 2 or (len(counts) == 1 and len(set(combinations)) == n_possible)
        shares = [
            Share(scope, factor, len(set(each)), _share(values, each), is_balanced) for factor, each in varied.items()
        ]
        found += sorted((s for s in shares if math.isfinite(s.share)), key=lambda share: -share.share)
    return found


def _share(values: Sequence[float], levels: Sequence[str]) -> float:
    mean = sum(values) / len(values)
    total = sum((value - mean) ** 2 for value in values)
    between = 0.0
    for level in set(levels):
        own = [value for value, at in zip(values, levels, strict=True) if at == level]
        between += len(own) * (sum(own) / len(own) - mean) ** 2
    return between / total if total > 0 else math.nan


def _level(row: Row, factor: str) -> str:
    return {"method": row.method, "site": row.site}.get(factor) or repr(row.factors.get(factor))
