"""Which dictionaries a sweep trains, and which of them together: as many as the memory holds."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from dictionary_learning._assignment import SiteAssignment
from dictionary_learning._disk import write_json
from dictionary_learning._estimate import estimate_run
from dictionary_learning._plain import as_bytes, differences, to_plain
from dictionary_learning._random_state import kept_random_state
from dictionary_learning._resumed import MAY_DIFFER
from dictionary_learning._run_output import plan_of
from dictionary_learning._run_setup import training_jobs
from dictionary_learning.activations._stream import ActivationStream
from dictionary_learning.dictionaries._info import as_config
from dictionary_learning.errors import ConfigError
from dictionary_learning.sites import Site
from dictionary_learning.sweeps._config import Point
from dictionary_learning.trainers import OptimizationConfig

SWEEP = "sweep.json"
"""The file that says what a sweep is, in its folder."""
_VERSION = 1
_ROWS = 64
"""Random rows from which dictionaries are built whose size alone is asked for."""
_DENSE = 2 * 4
"""Bytes of a latent of one row in a step: the value and its gradient."""
_SHOWN = 6
"""Differences in a message."""


@runtime_checkable
class Planned(Protocol):
    """A dictionary that is to be trained."""

    @property
    def name(self) -> str: ...

    @property
    def config(self) -> OptimizationConfig: ...


P = TypeVar("P", bound=Planned)


class Entry(NamedTuple):
    """A dictionary of a sweep: a combination at a site."""

    name: str
    point: Point
    sites: SiteAssignment
    config: OptimizationConfig
    """With the site."""
    n_bytes: int
    """Weights, gradients, and what the trainer keeps."""
    step_bytes: int
    """What a step computes, at most."""

    @property
    def site(self) -> str:
        """The site that it writes, or several."""
        return ", ".join(map(str, self.sites.writes))


class Shape:
    """The sites, widths and model of data, of which nothing is read; rows are random."""

    def __init__(self, widths: Mapping[Site, int], data: Any):
        self.widths, self.sites = dict(widths), list(widths)
        self.model = getattr(data, "model", None)

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def sample(self, n: int) -> dict[Site, Tensor]:
        """Returns a few random rows, whatever their number is to be."""
        generator = torch.Generator().manual_seed(0)
        return {site: torch.randn(min(n, _ROWS), width, generator=generator) for site, width in self.widths.items()}


def entries_of(
    points: Sequence[Point], shape: Shape, steps: int, normalize: bool | str, batch_size: int
) -> list[Entry]:
    """Returns the dictionaries that the combinations train; each is built once to see its size.

    Raises:
        ConfigError: A combination cannot be trained on such data.
    """
    found: list[Entry] = []
    sizes: dict[str, list[tuple[SiteAssignment, int, int]]] = {}
    stream, plan = ActivationStream(shape), plan_of(steps, None, None, None, None)
    for point in points:
        # seeds and rates change no size
        settings = {k: v for k, v in point.config.to_dict().items() if k not in ("seed", "lr", "wandb_name")}
        key = json.dumps([point.method, settings], default=str)
        if key not in sizes:
            with kept_random_state():
                try:
                    jobs = training_jobs(point.config, stream, steps, torch.device("cpu"), normalize, None)
                except ConfigError as error:
                    raise ConfigError(f"The combination '{point.name}' cannot be trained: {error}") from error
            sizes[key] = []
            for job in jobs:
                need = estimate_run(plan, [job], None, 0)
                step = _DENSE * batch_size * job.trainer.dictionary.dict_size
                sizes[key].append((job.sites, need.weights + need.gradients + need.optimizer, step))
        several = len(sizes[key]) > 1
        for sites, n_bytes, step_bytes in sizes[key]:
            placed: dict[str, Any] = {"site": as_config([str(site) for site in sites.reads])}
            if not sites.is_autoencoder:
                placed["target_site"] = as_config([str(site) for site in sites.writes])
            name = f"{point.name} @ {', '.join(map(str, sites.writes))}" if several else point.name
            config = point.config.replace(**placed)
            found.append(Entry(name, point, sites, config, n_bytes, step_bytes))
    return found


def grouped(entries: Sequence[Entry], budget: int | None) -> list[list[Entry]]:
    """Returns the dictionaries that are trained together, in order; None is no limit.

    Raises:
        ConfigError: One alone does not fit.
    """
    groups: list[list[Entry]] = []
    for entry in entries:
        if budget is not None and _bytes([entry]) > budget:
            raise ConfigError(
                f"'{entry.name}' needs {as_bytes(_bytes([entry]))}, and the sweep has {as_bytes(budget)}. Raise "
                "memory_gb, or leave that size out."
            )
        if not groups or (budget is not None and _bytes([*groups[-1], entry]) > budget):
            groups.append([])
        groups[-1].append(entry)
    return groups


def begin_or_resume(folder: Path, groups: list[list[P]], facts: Mapping[str, Any], is_resumed: bool) -> list[list[P]]:
    """Writes what the sweep is, or compares with what is there; returns the groups.

    A sweep that is resumed has the groups that it began with, whatever memory there is now.

    Raises:
        ConfigError: The folder holds a sweep that is not resumed, or another one.
    """
    path = folder / SWEEP
    entries = [entry for group in groups for entry in group]
    names = [[entry.name for entry in group] for group in groups]
    now = to_plain({**facts, "dictionaries": [entry.name for entry in entries]}, "the sweep")
    if not path.exists():
        write_json(path, {"format_version": _VERSION, "sweep": now, "groups": names})
        return groups
    if not is_resumed:
        raise ConfigError(
            f"'{folder}' holds a sweep. Go on with it by resume='auto' (--resume), or give another folder."
        )
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        then, names = before["sweep"], before["groups"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"'{path}' is of no sweep ({error}). Give another folder.") from error
    changes = [
        f"{place}: {old!r:.60}, now {new!r:.60}"
        for place, old, new in differences(then, now)
        if not {*MAY_DIFFER} & {*place.replace("[", ".").replace("]", "").split(".")}
    ]
    if changes:
        raise ConfigError(
            f"'{folder}' holds another sweep ({'; '.join(changes[:_SHOWN])}). Use the settings that it began with, or "
            "give another folder."
        )
    by_name = {entry.name: entry for entry in entries}
    return [[by_name[name] for name in group] for group in names]


def _bytes(group: Sequence[Entry]) -> int:
    return sum(entry.n_bytes for entry in group) + max(entry.step_bytes for entry in group)
