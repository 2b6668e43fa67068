"""From configs and data to dictionaries in training: widths, samples, normalization, names."""

import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from dictionary_learning._assignment import SiteAssignment, assign_sites, in_config, joined, with_heads, with_places
from dictionary_learning._finetune import expand_finetune, unwrap_normalized
from dictionary_learning._hardware import free_memory
from dictionary_learning._run_folder import DRAWN_SEEDS
from dictionary_learning._types import ConfigLike
from dictionary_learning.activations._normalization import check_normalizers, export, fold_
from dictionary_learning.activations._normalizers import NORMALIZATIONS, Normalizer, Scalar
from dictionary_learning.activations._spread import Stream
from dictionary_learning.dictionaries import WIRINGS, Dictionary
from dictionary_learning.dictionaries._initialization import building_slices
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.parallel import ALONE, SINGLE, Placement, PlacementName, Ranks, Sizes, place
from dictionary_learning.sites import Site
from dictionary_learning.trainers import TRAINERS, OptimizationConfig, RunInfo, Trainer

logger = logging.getLogger(__name__)

_NAMED_SITES = 3
"""Sites that the name of a dictionary says one by one."""
_SAMPLE = 32_768
"""Rows for initialization, as the geometric median (Gao et al. 2024, A.1)."""
_USUAL_BATCH, _USUAL_K, _ROW_BYTES = 2048, 32, 2
"""For the choice of a placement: tokens of a rank's step, latents of a token, bytes of a value."""
_SCALE_SAMPLE = 131_072
"""Rows for the scale of the activations. Heavy tails make the mean of fewer rows unstable."""


class TrainingJob(NamedTuple):
    """A dictionary in training, with its sites and the normalization of each."""

    name: str
    sites: SiteAssignment
    trainer: Trainer
    normalizers: Mapping[Site, Normalizer]
    number: int = 0
    """Its place among all dictionaries of the run, of which a rank may have a part."""

    def places(self, sites: tuple[Site, ...]) -> tuple[tuple[Site, Normalizer], ...]:
        """Returns sites with their normalizers."""
        return tuple((site, self.normalizers[site]) for site in sites)

    def export(self) -> Dictionary:
        """Returns a copy of the dictionary that takes activations as the model returns them."""
        sides = self.sites.both_sides(self.normalizers)
        return export(self.trainer.export(), *sides).requires_grad_(False).eval()


def seeds_to_draw() -> list[int | None]:
    """Returns the seeds of dictionaries that are given none, where a run is repeated."""
    return [int(seed) if seed else None for seed in os.environ.get(DRAWN_SEEDS, "").split(",")]


def training_jobs(
    trainer_configs: ConfigLike | Iterable[ConfigLike],
    stream: Stream,
    steps: int,
    device: torch.device,
    normalize: bool | str,
    default_wiring: str | None,
    fitted: Mapping[tuple[Site, str], Normalizer] | None = None,
    seed: int | None = None,
    placement: Placement = SINGLE,
    drawn: Sequence[int | None] = (),
) -> list[TrainingJob]:
    """Returns a job for each config and set of its sites, initialized from a sample of the data.

    Args:
        trainer_configs: A config or several, typed or as dictionaries.
        stream: The data, of which nothing is consumed.
        steps: Batches of the run.
        device: Where to train.
        normalize: Normalization where neither the config nor its method has one.
        default_wiring: Wiring of configs that name none.
        fitted: Normalizers by site and name, of a run that is resumed: nothing is fitted or
            initialized then, and no data are read.
        seed: Seed of configs that have the default one, or none.
        placement: Which dictionaries this rank has; only their jobs are returned.
        drawn: Seeds of the dictionaries of a run that is resumed or repeated, for those that are
            given none.

    Raises:
        ConfigError: A config cannot be used, or does not fit the data.
    """
    samples = Samples(stream.sample, device, fitted or {})
    jobs: list[TrainingJob] = []
    names: set[str] = set()
    # all before the first sample is read: a site that is not there should not be told of later
    dictionaries = list(_dictionaries(trainer_configs, stream, default_wiring, seed))
    for number, (facts, config, inside, sites) in enumerate(dictionaries):
        kind = inside.normalize if inside else config.normalize or _default_normalization(normalize, config)
        if isinstance(normalize, str) and kind != normalize and inside is None:
            logger.warning(
                "normalize_activations='%s' is for configs that choose no normalization; the config of %s has '%s', "
                "which stays. Give it normalize='%s', if that was meant.",
                *(normalize, config.trainer_class.__name__, kind, normalize),
            )
        divides = placement.latent.size > 1
        # from files, or by a class of the user's, it is whole at first: where memory is larger
        builds_slice = divides and config.finetune is None and getattr(config, "dict_class", None) is None
        run = _run_info(facts, sites, stream, steps, torch.device("cpu") if divides else device)
        placed: dict[str, Any] = {"site": in_config(sites.reads), "normalize": kind}
        if not sites.is_autoencoder:
            placed["target_site"] = in_config(sites.writes)
        if (
            config.seed is None and not config.trainer_class.is_plug_in
        ):  # drawn here, so that it is recorded, and the same on all ranks
            known = drawn[number] if number < len(drawn) else None
            placed["seed"] = placement.world.share(torch.Generator().seed() % 2**63) if known is None else known
        with building_slices(placement.latent if builds_slice else ALONE):
            trainer = config.replace(**placed).build(run)
        name = _name(trainer, sites, len(stream.widths) > 1)
        name = next(one for one in (name, *(f"{name} #{n}" for n in range(2, len(names) + 2))) if one not in names)
        names.add(name)
        if fitted is not None and not placement.owns(number):
            continue  # neither samples nor normalizers are asked for
        # shared by all dictionaries of a site, so that each batch is normalized once
        normalizers = {site: samples.normalizer(site, kind) for site in (*sites.reads, *sites.writes)}
        if inside is not None and inside.scales is not None:
            scaled = zip(sites.reads, inside.scales, strict=True)
            normalizers = {site: dataclasses.replace(normalizers[site], scale=scale) for site, scale in scaled}
        if config.finetune is not None and inside is None:
            _unfold_scales(trainer.dictionary, sites, normalizers)
        if fitted is None:
            # all ranks ask for the sample, of which each has a part
            x = samples.rows(sites.reads, normalizers)
            y = None if sites.is_autoencoder else samples.rows(sites.writes, normalizers)
            if not placement.owns(number):
                continue
            if builds_slice:
                trainer.hold_latents(placement.latent, device)
            trainer.initialize(x, y)
        if divides and trainer.latent_ranks.size == 1:
            trainer.hold_latents(placement.latent, device)
        if fitted is None:
            placement.data.take_first_(trainer.dictionary.state_dict().values())
        # fails now, and not at the export after the training
        check_normalizers(trainer.dictionary, *sites.both_sides(normalizers))
        trainer.join(placement.data)
        jobs.append(TrainingJob(name, sites, trainer, normalizers, number))
    return jobs


def placement_of(
    name: PlacementName,
    world: Ranks,
    trainer_configs: Any,
    stream: Stream,
    default_wiring: str | None,
    device: torch.device,
    latent_ranks: int | None = None,
) -> Placement:
    """Returns what is spread over the ranks of a run.

    Raises:
        ConfigError: The placement cannot be used.
    """
    if world.size == 1:
        return place(name, world, [], n_tokens=0, row_bytes=0, latent_ranks=latent_ranks)
    found = [(config, sites) for _, config, _, sites in _dictionaries(trainer_configs, stream, default_wiring, None)]
    sizes = [sizes_of(config, *([stream.widths[site] for site in side] for side in sites)) for config, sites in found]
    return place(
        name,
        world,
        sizes,
        n_tokens=getattr(stream, "n_shares", world.size) * getattr(stream.data, "out_batch_size", _USUAL_BATCH),
        row_bytes=sum(stream.widths.values()) * _ROW_BYTES,
        latent_ranks=latent_ranks,
        needs_contexts=any(config.needs_contexts for config, _ in found),
        undivided=next((reason for config, _ in found if (reason := _undivided(config))), ""),
        memory=world.share(free_memory(device)),
    )


def _undivided(config: OptimizationConfig) -> str:
    """Returns why a config's latents cannot be spread, and what to use; "" if they can."""
    trainer, name = config.trainer_class, config.trainer_class.__name__
    if not trainer.spreads_latents:
        return f"{name} needs all latents of a token in one place. Use placement='data', or top_k or batch_top_k."
    if config.optimizer == "muon":
        return "The optimizer 'muon' turns whole matrices. Use optimizer='adam', or placement='data'."
    if getattr(config, "resample_steps", None) is not None:
        return "Resampling draws among all latents. Use auxk_alpha for dead latents, or placement='data'."
    return ""


def sizes_of(config: OptimizationConfig, reads: Sequence[int], writes: Sequence[int]) -> Sizes:
    """Returns the sizes of a config's dictionary, without building it."""
    asked: Any = config  # fields that are filled in later are None
    size = asked.dict_size or asked.expansion_factor * sum(reads)
    return Sizes(sum(reads), sum(writes), size, getattr(asked, "k", None) or _USUAL_K)


def _dictionaries(
    trainer_configs: Any, stream: Stream, default_wiring: str | None, seed: int | None
) -> Iterator[tuple[dict[str, Any], OptimizationConfig, Any, SiteAssignment]]:
    """Yields for each dictionary the notes on it, its config, its inner scales, and its sites."""
    for asked, facts in read_configs(trainer_configs):
        # a method without wirings, as one of contexts, has no such field
        if default_wiring is not None and getattr(asked, "wiring", default_wiring) is None:
            asked = asked.replace(wiring=default_wiring)
        if seed is not None and asked.seed in (type(asked).seed, None):
            asked = asked.replace(seed=seed)
        for config in expand_finetune(with_places(asked, stream), stream.widths):
            config, inside = unwrap_normalized(with_heads(config, stream))
            for sites in assign_sites(config, stream.widths):
                yield facts, config, inside, sites


class Samples:
    """Rows of the data for estimates, and the normalizers estimated from them.

    Args:
        draw: Returns up to a number of rows by site.
        device: Where they are used.
        fitted: Normalizers that are known.
    """

    def __init__(
        self,
        draw: Callable[[int], Mapping[Site, Tensor]],
        device: torch.device,
        fitted: Mapping[tuple[Site, str], Normalizer],
    ):
        self.draw, self.device = draw, device
        self._rows: Mapping[Site, Tensor] = {}
        self._normalizers = dict(fitted)

    def normalizer(self, site: Site, kind: str) -> Normalizer:
        """Returns the normalizer of a site, which all dictionaries share."""
        kind = NORMALIZATIONS.canonical(kind)
        if (site, kind) not in self._normalizers:
            sample = self._sample(_SAMPLE if kind == "none" else _SCALE_SAMPLE)[site]
            self._normalizers[site, kind] = NORMALIZATIONS[kind].fit(sample.to(self.device, torch.float32))
        return self._normalizers[site, kind]

    def rows(self, sites: Sequence[Site], normalizers: Mapping[Site, Normalizer]) -> Tensor:
        """Returns normalized rows for initialization: (n, sum of widths)."""
        sample = self._sample(_SAMPLE)
        parts = [normalizers[site].apply(sample[site][:_SAMPLE].to(self.device, torch.float32)) for site in sites]
        rows = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        if not bool(rows.isfinite().all(1).any()):
            none = f"None of the first {len(rows)} activations at {joined(sites)} is finite"
            raise DataError(f"{none}. Check the site and the model's dtype.")
        return rows

    def _sample(self, n: int) -> Mapping[Site, Tensor]:
        # a second, larger sample may come after one for initialization alone
        if not self._rows or n > _SAMPLE >= len(next(iter(self._rows.values()))):
            self._rows = self.draw(n)
        return self._rows


def read_configs(given: Any) -> list[tuple[OptimizationConfig, dict[str, Any]]]:
    """Returns the typed config, and facts of the run, of each config."""
    single = isinstance(given, (Mapping, OptimizationConfig))
    if not single and (not isinstance(given, Iterable) or isinstance(given, str)):
        raise ConfigError(f"Got {given!r} for trainer_configs; give a config or a list of them.")
    configs = [_read_config(config) for config in cast(Iterable[Any], [given] if single else given)]
    if not configs:
        raise ConfigError("Got no trainer config. Give at least one, such as TrainerTopK.Config(k=32).")
    return configs


def _read_config(given: Any) -> tuple[OptimizationConfig, dict[str, Any]]:
    if isinstance(given, OptimizationConfig):
        return given, {}
    options: dict[str, Any] = dict(cast(Mapping[str, Any], given)) if isinstance(given, Mapping) else {}
    trainer = options.pop("trainer", None)
    if isinstance(trainer, str):
        trainer = TRAINERS[trainer]
    if not (isinstance(trainer, type) and issubclass(trainer, Trainer)):
        raise ConfigError(
            f"Got the trainer config {given!r}; give a typed one, such as TrainerTopK.Config(k=32), or a dictionary "
            "with the key 'trainer': a trainer's class or name, such as TrainerTopK or 'top_k'."
        )
    from dictionary_learning.compat._trainer_arguments import split_options

    settings, facts = split_options(trainer.Config, options)
    return trainer.Config.from_dict(settings), facts


def _default_normalization(normalize: bool | str, config: OptimizationConfig) -> str:
    if isinstance(normalize, str):
        return normalize
    wiring = WIRINGS[getattr(config, "wiring", None) or "autoencoder"]
    # at sites of different scale, learning rates and ranks would mean different things
    return "unit_mean_square" if normalize or wiring.reads_several or wiring.writes_others else "none"


def _run_info(
    facts: Mapping[str, Any], sites: SiteAssignment, stream: Stream, steps: int, device: torch.device
) -> RunInfo:
    """Returns the facts of the run; those in a dict config are notes, or must be what is found."""
    inputs = tuple(stream.widths[site] for site in sites.reads)
    outputs = tuple(stream.widths[site] for site in sites.writes)
    at, written = f"the activations at {joined(sites.reads)} have width", f"those at {joined(sites.writes)} have"
    known = {
        "activation_dim": (sum(inputs), f"{at} {sum(inputs)}"),
        "site_dims": (inputs, f"{at} {inputs}"),
        "output_dims": (outputs, f"{written} {outputs}"),
        "steps": (steps, f"the run has {steps}"),
    }
    for name, (value, what) in known.items():
        given = facts.get(name)
        if (tuple(given) if isinstance(given, list) else given) not in (None, value):
            raise ConfigError(f"A config has {name}={given}; {what}. Leave it out: it is found.")
    model = getattr(stream.data, "model", None)
    found: dict[str, Any] = {
        "device": device,
        "lm_name": getattr(model, "known_name", None),
        "submodule_name": sites.reads[0].path if model is not None else None,
    }
    found |= {name: value for name, value in facts.items() if value is not None and name not in known}
    return RunInfo(
        activation_dim=sum(inputs),
        steps=steps,
        site_dims=inputs if len(inputs) > 1 else None,
        output_dims=None if sites.is_autoencoder else outputs,
        **{**found, "device": str(found["device"])},
    )


def _unfold_scales(dictionary: Dictionary, sites: SiteAssignment, normalizers: Mapping[Site, Normalizer]) -> None:
    """Turns a trained dictionary of the model's activations into one of normalized activations."""
    inverse: dict[Site, Normalizer] = {}
    for site, normalizer in normalizers.items():
        if not isinstance(normalizer, Scalar):
            raise ConfigError(
                f"A dictionary cannot be trained further with the normalization {normalizer.describe()['name']}: its "
                "weights are for activations as they are. Set normalize='none', or unit_mean_square."
            )
        inverse[site] = dataclasses.replace(normalizer, scale=1 / normalizer.scale)
    fold_(dictionary, *sites.both_sides(inverse))


def _name(trainer: Trainer, sites: SiteAssignment, several_sites: bool) -> str:
    """Returns a short name: the method, its k and wiring, and the site where there are several."""
    settings = trainer.settings
    method = {cls: name for name, cls in TRAINERS.items()}.get(type(trainer), type(trainer).__name__)
    wiring, k = getattr(settings, "wiring", "autoencoder"), getattr(settings, "k", None)
    parts = [method, *([str(k)] if k is not None else []), *([wiring] if wiring != "autoencoder" else [])]
    own = settings.wandb_name or "-".join(parts)
    if not several_sites:
        return own
    # without the base model's prefix, as "model."
    places = [site.path.partition(".")[2] or site.path for site in sites.reads]
    if len(places) > _NAMED_SITES:
        return f"{own} @ {len(places)} sites, {places[0]} to {places[-1]}"
    if len(places) > 1:
        return f"{own} @ {', '.join(places[:-1])} and {places[-1]}"
    return f"{own} @ {places[0]}{':in' if sites.reads[0].side == 'in' and sites.is_autoencoder else ''}"
