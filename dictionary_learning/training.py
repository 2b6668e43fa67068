"""The one training loop."""

import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dictionary_learning.activations.normalization import NORMALIZATIONS, Normalizer, check_normalizers, finished
from dictionary_learning.activations.scaling import ActivationStream
from dictionary_learning.config import BaseConfig, coerce
from dictionary_learning.dictionaries import WIRINGS, Dictionary, save_dictionary
from dictionary_learning.errors import ConfigError
from dictionary_learning.hardware import default_device, keep_freed_memory
from dictionary_learning.loggers import Alarm, ConsoleLogger, JSONLLogger, LoggerGroup, MetricLogger, WandbLogger
from dictionary_learning.ops.joint import shared_product
from dictionary_learning.sites import Site
from dictionary_learning.trainers import TRAINERS, SAETrainer, trainer_of
from dictionary_learning.trainers.assignment import Assignment, assignments

logger = logging.getLogger(__name__)

_SAMPLE = 32_768
"""Rows looked at for starting points."""
_SCALE_SAMPLE = 131_072
"""Rows looked at for the scale of the activations: heavy tails make the mean of fewer wander."""
_ADVANCE_EVERY = 10


class Trainee(NamedTuple):
    """A dictionary in training, and where it belongs."""

    name: str
    sites: Assignment
    trainer: SAETrainer
    normalizers: Mapping[Site, Normalizer]
    """What is done to the activations of each site before the trainer sees them."""

    def finished(self) -> Dictionary:
        """Returns a copy of the dictionary that takes activations as the model gives them."""
        return finished(self.trainer.finished(), *self._both_sides()).requires_grad_(False).eval()

    def check(self) -> None:
        """Refuses what could not be finished, before any training.

        Raises:
            ConfigError: the normalization does not go with the dictionary.
        """
        check_normalizers(self.trainer.dictionary, *self._both_sides())

    def _both_sides(self) -> tuple[list[Normalizer], list[Normalizer] | None]:
        reads = [self.normalizers[site] for site in self.sites.reads]
        return reads, None if self.sites.is_autoencoder else [self.normalizers[site] for site in self.sites.writes]


def trainSAE(
    data: Any,
    trainer_configs: Any,
    steps: int,
    use_wandb: bool = False,
    wandb_entity: str = "",
    wandb_project: str = "",
    save_steps: Iterable[int] | None = None,
    save_dir: str | os.PathLike | None = None,
    log_steps: int | None = None,
    activations_split_by_head: bool = False,
    transcoder: bool = False,
    run_cfg: Mapping[str, Any] | None = None,
    normalize_activations: bool | str = False,
    verbose: bool = False,
    device: torch.device | str | None = None,
    autocast_dtype: torch.dtype = torch.float32,
    backup_steps: int | None = None,
    *,
    loggers: Sequence[MetricLogger] = (),
    progress: bool = True,
) -> list[Dictionary]:
    """Trains several dictionaries on one stream of activations.

    A config is a typed one (`TrainerTopK.Config(k=32)`) or a dictionary (`{"trainer": TrainerTopK, "k": 32}`, where the
    trainer may also be named: "top_k"). Width, steps and device are filled in where they are missing. With
    several sites in the data, a config that names no site is trained on each of them; with a wiring that predicts one site from
    another on each module whose input and output are there, and with one that reads several sites on all together.

    Args:
        data: an `ActivationBuffer`, or any iterable of tensors (batch, activation_dim) or of mappings from sites to such.
        trainer_configs: a config or several; they are not changed.
        steps: batches to train on. Data that ends earlier ends the run, with a warning.
        use_wandb: whether figures go to Weights & Biases, a run for each dictionary.
        wandb_entity: the user or team there.
        wandb_project: the project there.
        save_steps: steps after which the dictionaries are saved too, under `checkpoints/step_N`.
        save_dir: where dictionaries are saved, as `trainer_0`, `trainer_1`, ..., with the figures in `metrics.jsonl`.
        log_steps: how often figures are logged; by default 100 times in the run. Logging changes no result.
        activations_split_by_head: whether each attention head gets latents of its own (wiring heads): of data (batch, heads,
            dim), or of a site whose width is that of all heads together, as the input of the attention's output projection.
        transcoder: whether configs that name no wiring are transcoders, from inputs to outputs.
        run_cfg: anything that should stand in the saved configs, under "run".
        normalize_activations: how activations are normalized for configs that do not say: a name of `NORMALIZATIONS`, or True
            for unit mean square. False leaves autoencoders as they are, and normalizes where sites of different scale meet. The
            dictionaries returned and saved take activations as they come from the model.
        verbose: whether figures are also written through `logging`.
        device: where to train; the accelerator if there is one.
        autocast_dtype: type of products under autocast; float32 for none.
        backup_steps: how often `checkpoints/latest` is written.
        loggers: further loggers.
        progress: whether the console shows the run.

    Returns:
        The trained dictionaries, in the order of the configs and, for each of them, of the sites.

    Raises:
        ConfigError: a config cannot be used, or its width or site is not that of the data.
        DataError: the data holds no activations.
    """
    steps = coerce(steps, int)
    device = torch.device(device) if device is not None else default_device()
    if device.type == "cpu":
        keep_freed_memory()
    stream = ActivationStream(data, split_by_head=activations_split_by_head)
    wiring = "heads" if activations_split_by_head else "transcoder" if transcoder else None
    trainees = _trainees(trainer_configs, stream, steps, device, normalize_activations, wiring)
    configs = {t.name: _sections(t, data, run_cfg) for t in trainees}
    sinks = [Alarm(), *loggers]
    if save_dir is not None:
        sinks.append(JSONLLogger(Path(save_dir) / "metrics.jsonl"))
    if use_wandb:
        sinks.append(WandbLogger({t.name: t.trainer.config for t in trainees}, wandb_project, wandb_entity))
    if verbose:
        sinks.append(_LogRecords())
    console = ConsoleLogger(steps, [t.name for t in trainees]) if progress else None
    if console is not None:
        sinks.append(console)
    save_at = frozenset(save_steps or ())
    log_every = log_steps or max(1, steps // 100)
    n_tokens = 0
    with contextlib.closing(LoggerGroup(sinks)) as sink:
        for step in range(1, steps + 1):
            batch = next(stream, None)
            if batch is None:
                logger.warning(
                    "The data ended after %d of %d steps; the learning rate had not come down yet.", step - 1, steps
                )
                break
            n_tokens += _train_step(trainees, batch, device, autocast_dtype)
            if step % log_every == 0 or step == steps:
                sink.log({t.name: _figures(t) for t in trainees}, step, n_tokens)
            if console is not None and (step % _ADVANCE_EVERY == 0 or step == steps):
                console.advance(step, n_tokens)
            if save_dir is not None and step in save_at:
                _save(trainees, configs, save_dir, f"checkpoints/step_{step}")
            if save_dir is not None and backup_steps and step % backup_steps == 0:
                _save(trainees, configs, save_dir, "checkpoints/latest")
    if save_dir is not None:
        _save(trainees, configs, save_dir)
    return [trainee.finished() for trainee in trainees]


def _train_step(
    trainees: Sequence[Trainee], batch: Mapping[Site, Tensor], device: torch.device, autocast_dtype: torch.dtype
) -> int:
    """Makes one step of every dictionary; returns the number of tokens."""
    normalized: dict[tuple[Site, int], Tensor] = {}
    stacked: dict[tuple[tuple[Site, int], ...], Tensor] = {}

    def activations(trainee: Trainee, sites: tuple[Site, ...]) -> Tensor:
        """Returns the sites' normalized activations, one after another; made once for all dictionaries."""
        keys = tuple((site, id(trainee.normalizers[site])) for site in sites)
        for site, key in zip(sites, keys, strict=True):
            if key not in normalized:
                if site not in batch:
                    raise ConfigError(f"A batch has no site '{site}', only {', '.join(map(str, batch))}.")
                normalized[key] = trainee.normalizers[site].apply(batch[site].to(device, torch.float32))
        if keys not in stacked:
            parts = [normalized[key] for key in keys]
            stacked[keys] = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return stacked[keys]

    groups: dict[int, list[Trainee]] = {}
    for trainee in trainees:
        groups.setdefault(id(activations(trainee, trainee.sites.reads)), []).append(trainee)
    for group in groups.values():
        x = activations(group[0], group[0].sites.reads)
        with shared_product(x, [encoder for trainee in group for encoder in trainee.trainer.encoders()]):
            for trainee in group:
                y = None if trainee.sites.is_autoencoder else activations(trainee, trainee.sites.writes)
                downstream = _downstream(trainee, batch)
                with torch.autocast(device.type, autocast_dtype, enabled=autocast_dtype != torch.float32):
                    trainee.trainer.update(trainee.trainer.step, x, y, downstream)
    return len(next(iter(normalized.values())))


def _downstream(trainee: Trainee, batch: Mapping[Site, Tensor]) -> Callable[[Tensor], Mapping[str, Tensor]] | None:
    """Returns what tells the model's loss from reconstructions in the trainer's units, where the batch can tell."""
    tell = getattr(batch, "downstream", None)
    if tell is None:
        return None
    sites = trainee.sites.writes

    def downstream(outputs: Tensor) -> Mapping[str, Tensor]:
        parts = outputs.split([batch[site].shape[1] for site in sites], dim=1)
        raw = {
            site: trainee.normalizers[site].undo(part, batch[site].to(part.device, torch.float32))
            for site, part in zip(sites, parts, strict=True)
        }
        return tell(raw)

    return downstream


def _trainees(
    trainer_configs: Any,
    stream: ActivationStream,
    steps: int,
    device: torch.device,
    normalize: bool | str,
    default_wiring: str | None,
) -> list[Trainee]:
    if isinstance(trainer_configs, (Mapping, SAETrainer.Config)):
        trainer_configs = [trainer_configs]
    if not trainer_configs:
        raise ConfigError("Got no trainer config. Give at least one, such as TrainerTopK.Config(k=32).")
    samples = _Samples(stream, device)
    trainees: list[Trainee] = []
    for given in trainer_configs:
        trainer_class, options = _read_config(given)
        if default_wiring is not None and options.get("wiring") in (None, "autoencoder"):
            options["wiring"] = default_wiring
        if options.get("wiring") == "heads" and options.get("n_heads") is None:
            options["n_heads"] = stream.n_heads or _n_heads(stream.data)
        own = options.get("normalize") or trainer_class.Config().normalize
        kind = own or _default_normalization(normalize, options.get("wiring"))
        for sites in assignments(options, stream.widths):
            filled = _filled(options, sites, stream, steps, device)
            trainer = trainer_class(trainer_class.Config(**{**filled, "normalize": kind}))
            normalizers = {site: samples.normalizer(site, kind) for site in (*sites.reads, *sites.writes)}
            if options.get("finetune") is not None:
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
        ConfigError: the normalization is not one factor for what is read and one for what is written.
    """
    factors: list[float] = []
    for side in (sites.reads, sites.writes):
        scales = {float(getattr(normalizers[site], "scale", float("nan"))) for site in side}
        if len(scales) > 1 or any(math.isnan(scale) for scale in scales):
            kinds = ", ".join(sorted({str(normalizers[site].describe()["name"]) for site in side}))
            raise ConfigError(
                f"A dictionary cannot be trained further with the normalization {kinds} of {len(side)} sites: its weights are of "
                "activations as they are. Set normalize='none'."
            )
        factors.append(1 / scales.pop())
    dictionary.scale_(*factors)


def _default_normalization(normalize: bool | str, wiring: str | None) -> str:
    if isinstance(normalize, str):
        return normalize
    meets = WIRINGS[wiring or "autoencoder"]
    # rates and ranks would mean different things at sites of different scale
    return "unit_mean_square" if normalize or meets.reads_several or meets.writes_others else "none"


def _n_heads(data: Any) -> int | None:
    config = getattr(getattr(getattr(data, "model", None), "module", None), "config", None)
    config = getattr(config, "text_config", None) or config
    found = getattr(config, "num_attention_heads", None)
    if found is None:
        raise ConfigError(
            "The number of attention heads is not known from the data. Set n_heads, or give (batch, heads, dim)."
        )
    return int(found)


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
        "site": _plain(sites.reads),
    }
    if len(inputs) > 1:
        defaults["site_dims"] = inputs
    if not sites.is_autoencoder:
        defaults |= {
            "target_site": _plain(sites.writes),
            "output_dims": tuple(stream.widths[site] for site in sites.writes),
        }
    return {**options, **{name: value for name, value in defaults.items() if options.get(name) is None}}


def _plain(sites: Sequence[Site]) -> str | tuple[str, ...]:
    return str(sites[0]) if len(sites) == 1 else tuple(map(str, sites))


def _name(trainer: SAETrainer, sites: Assignment, several_sites: bool) -> str:
    """Returns a short name: the method and k, and the site without the base model's prefix where there are several."""
    config = trainer.config_values
    methods = {trainer_class: name for name, trainer_class in TRAINERS.items()}
    method = methods.get(type(trainer), type(trainer).__name__)
    wiring = getattr(config, "wiring", "autoencoder")
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


def _figures(trainee: Trainee) -> dict[str, float]:
    figures = trainee.trainer.metrics()
    if not figures:
        return {}
    # one wait for the device for all figures of a dictionary
    values = torch.stack([value.detach().float().to(trainee.trainer.device) for value in figures.values()]).tolist()
    return dict(zip(figures, values, strict=True))


def _sections(trainee: Trainee, data: Any, run_cfg: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns what is saved beside the dictionary."""
    sections: dict[str, Any] = {
        "name": trainee.name,
        "site": _plain(trainee.sites.reads),
        "trainer": trainee.trainer.config,
        "normalization": {str(site): normalizer.describe() for site, normalizer in trainee.normalizers.items()},
    }
    if not trainee.sites.is_autoencoder:
        sections["target_site"] = _plain(trainee.sites.writes)
    if run_cfg:
        sections["run"] = dict(run_cfg)
    if hasattr(data, "config"):
        sections["buffer"] = data.config.to_dict() if isinstance(data.config, BaseConfig) else data.config
    return sections


def _save(
    trainees: Sequence[Trainee], configs: Mapping[str, Mapping[str, Any]], save_dir: str | os.PathLike, part: str = ""
) -> None:
    for number, trainee in enumerate(trainees):
        trained = {"step": trainee.trainer.step, "steps": trainee.trainer.steps}
        save_dictionary(
            trainee.finished(),
            Path(save_dir) / f"trainer_{number}" / part,
            {**configs[trainee.name], "trained": trained},
        )


class _LogRecords:
    """Writes all figures through `logging`."""

    def log(self, figures: Mapping[str, Mapping[str, float]], step: int, tokens: int) -> None:
        for name, values in figures.items():
            logger.info("step %d, %s: %s", step, name, ", ".join(f"{k} {v:.4g}" for k, v in values.items()))

    def close(self) -> None:
        pass
