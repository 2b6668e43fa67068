"""From configs and data to dictionaries in training: sites, widths, normalization, names."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dictionary_learning.activations.normalization import NORMALIZATIONS, Normalizer, check_normalizers, export, fold_
from dictionary_learning.activations.normalizers import Scalar
from dictionary_learning.activations.stream import ActivationStream
from dictionary_learning.beginnings import config_of_each, taken_out
from dictionary_learning.dictionaries import WIRINGS, Dictionary
from dictionary_learning.errors import ConfigError
from dictionary_learning.sites import Site
from dictionary_learning.trainers import TRAINERS, SAETrainer, trainer_of
from dictionary_learning.trainers.assignment import Assignment, assignments

_SAMPLE = 32_768
"""Rows looked at for starting points."""
_SCALE_SAMPLE = 131_072
"""Rows looked at for the scale of the activations: heavy tails make the mean of fewer wander."""


class Trainee(NamedTuple):
    """A dictionary in training, and where it belongs."""

    name: str
    sites: Assignment
    trainer: SAETrainer
    normalizers: Mapping[Site, Normalizer]
    """What is done to the activations of each site before the trainer sees them."""

    def export(self) -> Dictionary:
        """Returns a copy of the dictionary that takes activations as the model gives them."""
        return export(self.trainer.export(), *self._both_sides()).requires_grad_(False).eval()

    def check(self) -> None:
        """Refuses what could not be finished, before any training.

        Raises:
            ConfigError: the normalization does not go with the dictionary.
        """
        check_normalizers(self.trainer.dictionary, *self._both_sides())

    def _both_sides(self) -> tuple[list[Normalizer], list[Normalizer] | None]:
        reads = [self.normalizers[site] for site in self.sites.reads]
        return reads, None if self.sites.is_autoencoder else [self.normalizers[site] for site in self.sites.writes]


def trainees_of(
    trainer_configs: Any,
    stream: ActivationStream,
    steps: int,
    device: torch.device,
    normalize: bool | str,
    default_wiring: str | None,
) -> list[Trainee]:
    """Returns a trainee for each config and each set of sites that it is for, with biases set and normalizers fitted.

    Args:
        trainer_configs: a config or several.
        stream: the data, of which nothing is taken.
        steps: length of the run.
        device: where to train.
        normalize: what is asked for where neither the config nor its method says.
        default_wiring: the wiring of configs that name none.

    Raises:
        ConfigError: a config cannot be used, or does not fit the data.
    """
    if isinstance(trainer_configs, (Mapping, SAETrainer.Config)):
        trainer_configs = [trainer_configs]
    if not trainer_configs:
        raise ConfigError("Got no trainer config. Give at least one, such as TrainerTopK.Config(k=32).")
    samples = _Samples(stream, device)
    trainees: list[Trainee] = []
    for trainer_class, options, origin in _configs(trainer_configs, stream, default_wiring):
        if options.get("wiring") == "heads" and options.get("n_heads") is None:
            options["n_heads"] = stream.n_heads or _n_heads(stream.data, options, stream.widths)
        inside = taken_out(options)
        own = inside.normalize if inside else options.get("normalize") or trainer_class.Config().normalize
        kind = own or _default_normalization(normalize, options.get("wiring"))
        for sites in assignments(options, stream.widths):
            filled = _filled(options, sites, stream, steps, device)
            trainer = trainer_class(trainer_class.Config(**{**filled, "normalize": kind}))
            if origin is not None:
                trainer.config_values = trainer.config_values.replace(finetune=origin)
            normalizers = {site: samples.normalizer(site, kind) for site in (*sites.reads, *sites.writes)}
            if inside is not None and inside.scales is not None:
                scaled = zip(sites.reads, inside.scales, strict=True)
                normalizers = {site: dataclasses.replace(normalizers[site], scale=scale) for site, scale in scaled}
            if options.get("finetune") is not None and inside is None:
                _take_scales_out(trainer.dictionary, sites, normalizers)
            x = samples.rows(sites.reads, normalizers)
            trainer.initialize(x, None if sites.is_autoencoder else samples.rows(sites.writes, normalizers))
            taken = {t.name for t in trainees}
            name = _unique(_name(trainer, sites, len(stream.widths) > 1), taken)
            trainees.append(Trainee(name, sites, trainer, normalizers))
            trainees[-1].check()
    return trainees


class _Samples:
    """Rows of the data to estimate from, and what was estimated from them."""

    def __init__(self, stream: ActivationStream, device: torch.device):
        self.stream, self.device = stream, device
        self._rows: dict[Site, Tensor] | None = None
        self._normalizers: dict[tuple[Site, str], Normalizer] = {}

    def normalizer(self, site: Site, kind: str) -> Normalizer:
        """Returns the normalizer of a site; one for all dictionaries."""
        kind = NORMALIZATIONS.canonical(kind)
        if (site, kind) not in self._normalizers:
            sample = self._sample(_SAMPLE if kind == "none" else _SCALE_SAMPLE)[site]
            self._normalizers[site, kind] = NORMALIZATIONS[kind].fit(sample.to(self.device, torch.float32))
        return self._normalizers[site, kind]

    def rows(self, sites: Sequence[Site], normalizers: Mapping[Site, Normalizer]) -> Tensor:
        """Returns normalized rows to begin with."""
        sample = self._sample(_SAMPLE)
        rows = [normalizers[site].apply(sample[site][:_SAMPLE].to(self.device, torch.float32)) for site in sites]
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)

    def _sample(self, n: int) -> dict[Site, Tensor]:
        if self._rows is None or (n > _SAMPLE >= len(next(iter(self._rows.values())))):
            self._rows = self.stream.sample(n)
        return self._rows


def _take_scales_out(dictionary: Dictionary, sites: Assignment, normalizers: Mapping[Site, Normalizer]) -> None:
    """Turns a trained dictionary, which takes activations as the model gives them, into one of normalized activations.

    Raises:
        ConfigError: the normalization is more than a factor for each site.
    """
    inverse: dict[Site, Normalizer] = {}
    for site in (*sites.reads, *sites.writes):
        normalizer = normalizers[site]
        if not isinstance(normalizer, Scalar):
            raise ConfigError(
                f"A dictionary cannot be trained further with the normalization {normalizer.describe()['name']}: its weights are of "
                "activations as they are. Set normalize='none', or unit_mean_square."
            )
        inverse[site] = dataclasses.replace(normalizer, scale=1 / normalizer.scale)
    writes = None if sites.is_autoencoder else [inverse[site] for site in sites.writes]
    fold_(dictionary, [inverse[site] for site in sites.reads], writes)


def _default_normalization(normalize: bool | str, wiring: str | None) -> str:
    if isinstance(normalize, str):
        return normalize
    meets = WIRINGS[wiring or "autoencoder"]
    # rates and ranks would mean different things at sites of different scale
    return "unit_mean_square" if normalize or meets.reads_several or meets.writes_others else "none"


def _n_heads(data: Any, options: Mapping[str, Any], widths: Mapping[Site, int]) -> int:
    """Returns the number of attention heads at the sites that a config is for, which the data or its model knows."""
    model: Any = data if hasattr(data, "n_heads") else getattr(data, "model", None)
    if not hasattr(model, "n_heads"):
        raise ConfigError(
            "The number of attention heads is not known from the data. Set n_heads, or give (batch, heads, dim)."
        )
    sites = [site for assignment in assignments(options, widths) for site in assignment.reads]
    found = {site: model.n_heads(site) for site in sites}
    if len(set(found.values())) > 1:
        listed_heads = ", ".join(f"{site}: {n}" for site, n in found.items())
        raise ConfigError(
            f"The sites have different numbers of heads ({listed_heads}). Give a config for each, with its site."
        )
    return next(iter(found.values()))


def _configs(
    given: Sequence[Any], stream: ActivationStream, default_wiring: str | None
) -> Iterator[tuple[type[SAETrainer], dict[str, Any], str | None]]:
    """Yields the trainer of each dictionary, its settings, and the place that it was loaded from."""
    for one in given:
        trainer_class, options = _read_config(one)
        trained = options.get("finetune")
        origin = str(trained) if isinstance(trained, str | os.PathLike) else None
        if default_wiring is not None and options.get("wiring") is None:
            options["wiring"] = default_wiring
        known = {field.name for field in dataclasses.fields(trainer_class.Config)}
        for made in config_of_each(options, stream.widths):
            yield trainer_class, {name: value for name, value in made.items() if name in known}, origin


def _read_config(given: Any) -> tuple[type[SAETrainer], dict[str, Any]]:
    """Returns the trainer's class and its settings, from a typed config or a dictionary."""
    if isinstance(given, SAETrainer.Config):
        return trainer_of(given), {name: getattr(given, name) for name in given.to_dict()}
    options = dict(given)
    trainer = options.pop("trainer", None)
    if trainer is None:
        raise ConfigError(
            "A trainer config needs the key 'trainer', with a trainer's class or name, such as TrainerTopK or 'top_k'."
        )
    trainer_class = TRAINERS[trainer] if isinstance(trainer, str) else trainer
    renamed = {trainer_class.aliases.get(name, name): value for name, value in options.items()}
    checked = trainer_class.Config.from_dict(renamed)
    return trainer_class, {name: getattr(checked, name) for name in renamed}


def _filled(
    options: dict[str, Any], sites: Assignment, stream: ActivationStream, steps: int, device: torch.device
) -> dict[str, Any]:
    """Returns the settings with what the data and the run decide, checked against what was given."""
    inputs = tuple(stream.widths[site] for site in sites.reads)
    width, given = sum(inputs), options.get("activation_dim")
    if given not in (None, width):
        raise ConfigError(
            f"A config has activation_dim={given}; the activations at {', '.join(map(str, sites.reads))} have width {width}. "
            "Leave it out: it is found."
        )
    model = getattr(stream.data, "model", None)
    defaults = {
        "lm_name": getattr(model, "name", None),
        "submodule_name": sites.reads[0].path if model is not None else None,
        "steps": steps,
        "device": str(device),
        "activation_dim": width,
        "site": listed(sites.reads),
    }
    if len(inputs) > 1:
        defaults["site_dims"] = inputs
    if not sites.is_autoencoder:
        defaults |= {
            "target_site": listed(sites.writes),
            "output_dims": tuple(stream.widths[site] for site in sites.writes),
        }
    return {**options, **{name: value for name, value in defaults.items() if options.get(name) is None}}


def listed(sites: Sequence[Site]) -> str | tuple[str, ...]:
    """Returns sites as they stand in configs: one alone, or several."""
    return str(sites[0]) if len(sites) == 1 else tuple(map(str, sites))


def _name(trainer: SAETrainer, sites: Assignment, several_sites: bool) -> str:
    """Returns a short name: the method and k, and the site without the base model's prefix where there are several."""
    config = trainer.config_values
    methods = {trainer_class: name for name, trainer_class in TRAINERS.items()}
    method = methods.get(type(trainer), type(trainer).__name__)
    wiring = getattr(config, "wiring", None) or "autoencoder"
    k = getattr(config, "k", None)
    own = config.wandb_name or "-".join(
        [method, *([str(k)] if k is not None else []), *([wiring] if wiring != "autoencoder" else [])]
    )
    if not several_sites:
        return own
    site = sites.reads[0]
    place = site.path.partition(".")[2] or site.path
    if len(sites.reads) > 1:
        last = sites.reads[-1].path
        return f"{own} @ {place} to {last.partition('.')[2] or last}"
    return f"{own} @ {place}{':in' if site.side == 'in' and sites.is_autoencoder else ''}"


def _unique(name: str, taken: set[str]) -> str:
    candidates = (name if n == 1 else f"{name} #{n}" for n in range(1, len(taken) + 2))
    return next(candidate for candidate in candidates if candidate not in taken)
