"""The one training loop."""

import contextlib
import copy
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dictionary_learning.activations.scaling import ActivationStream, root_mean_square_norm
from dictionary_learning.config import coerce
from dictionary_learning.dictionaries import Dictionary, save_dictionary
from dictionary_learning.errors import ConfigError
from dictionary_learning.hardware import default_device, keep_freed_memory
from dictionary_learning.loggers import Alarm, ConsoleLogger, JSONLLogger, LoggerGroup, MetricLogger, WandbLogger
from dictionary_learning.ops.joint import shared_product
from dictionary_learning.sites import Site
from dictionary_learning.trainers import TRAINERS, SAETrainer

logger = logging.getLogger(__name__)

_SAMPLE = 32_768
"""Rows looked at for starting points."""
_SCALE_SAMPLE = 131_072
"""Rows looked at for the scale of the activations: heavy tails make the mean of fewer wander."""
_ADVANCE_EVERY = 10


class Trainee(NamedTuple):
    """A dictionary in training, and where it belongs."""

    name: str
    site: Site
    trainer: SAETrainer
    scale: float
    """What its activations are divided by."""

    def finished(self) -> Dictionary:
        """Returns a copy of the dictionary that takes activations as the model gives them."""
        dictionary = copy.deepcopy(self.trainer.dictionary)
        dictionary.scale_(self.scale)
        return dictionary.requires_grad_(False).eval()


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
    normalize_activations: bool = False,
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
    several sites in the data, a config that names no site is trained on each of them.

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
        activations_split_by_head: not supported.
        transcoder: not supported.
        run_cfg: anything that should stand in the saved configs, under "run".
        normalize_activations: whether each site is divided by its root mean squared norm while training. The dictionaries
            returned and saved take activations as they come from the model.
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
    if activations_split_by_head or transcoder:
        raise ConfigError(
            "activations_split_by_head and transcoder are not supported by this trainer. Leave them out: split heads in the data, "
            "and use a trainer that reads one site and reconstructs another."
        )
    steps = coerce(steps, int)
    device = torch.device(device) if device is not None else default_device()
    if device.type == "cpu":
        keep_freed_memory()
    stream = ActivationStream(data)
    trainees = _trainees(trainer_configs, stream, steps, device, normalize_activations)
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
    inputs: dict[tuple[Site, float], Tensor] = {}
    groups: dict[tuple[Site, float], list[Trainee]] = {}
    for trainee in trainees:
        key = (trainee.site, trainee.scale)
        if key not in inputs:
            if trainee.site not in batch:
                raise ConfigError(f"A batch has no site '{trainee.site}', only {', '.join(map(str, batch))}.")
            x = batch[trainee.site].to(device, torch.float32)
            inputs[key] = x if trainee.scale == 1.0 else x / trainee.scale
        groups.setdefault(key, []).append(trainee)
    for key, group in groups.items():
        with shared_product(inputs[key], [encoder for trainee in group for encoder in trainee.trainer.encoders()]):
            for trainee in group:
                with torch.autocast(device.type, autocast_dtype, enabled=autocast_dtype != torch.float32):
                    trainee.trainer.accumulate(inputs[key])
                trainee.trainer.apply()
    return len(next(iter(inputs.values())))


def _trainees(
    trainer_configs: Any, stream: ActivationStream, steps: int, device: torch.device, normalize: bool
) -> list[Trainee]:
    if isinstance(trainer_configs, (Mapping, SAETrainer.Config)):
        trainer_configs = [trainer_configs]
    if not trainer_configs:
        raise ConfigError("Got no trainer config. Give at least one, such as TrainerTopK.Config(k=32).")
    sample = stream.sample(_SCALE_SAMPLE if normalize else _SAMPLE)
    scales = {site: root_mean_square_norm(x) if normalize else 1.0 for site, x in sample.items()}
    trainees: list[Trainee] = []
    for given in trainer_configs:
        trainer_class, options = _read_config(given)
        named = options.get("site")
        sites = [Site.parse(named)] if named else list(stream.widths)
        for site in sites:
            filled = _filled(options, site, stream, steps, device)
            trainer = trainer_class(trainer_class.Config(**filled))
            trainer.initialize(sample[site][:_SAMPLE].to(device, torch.float32) / scales[site])
            taken = {t.name for t in trainees}
            trainees.append(
                Trainee(_unique(_name(trainer, site, len(stream.widths) > 1), taken), site, trainer, scales[site])
            )
    return trainees


def _read_config(given: Any) -> tuple[type[SAETrainer], dict[str, Any]]:
    """Returns the trainer's class and its settings, from a typed config or a dictionary."""
    if isinstance(given, SAETrainer.Config):
        for _, trainer_class in TRAINERS.items():
            if type(given) is trainer_class.Config:
                return trainer_class, {name: getattr(given, name) for name in given.to_dict()}
        raise ConfigError(
            f"No registered trainer has the config {type(given).__qualname__}. Register it with @TRAINERS.register(name)."
        )
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
    options: dict[str, Any], site: Site, stream: ActivationStream, steps: int, device: torch.device
) -> dict[str, Any]:
    """Returns the settings with what the data and the run decide, checked against what was given."""
    if site not in stream.widths:
        raise ConfigError(f"A config names the site '{site}'; the data has {', '.join(map(str, stream.widths))}.")
    width = stream.widths[site]
    given = options.get("activation_dim")
    if given not in (None, width):
        raise ConfigError(
            f"A config has activation_dim={given}; the activations at '{site}' have width {width}. Leave it out: it is found."
        )
    model = getattr(stream.data, "model", None)
    notes = {"lm_name": getattr(model, "name", None), "submodule_name": site.path if model is not None else None}
    defaults = {**notes, "steps": steps, "device": str(device), "activation_dim": width, "site": str(site)}
    return {**options, **{name: value for name, value in defaults.items() if options.get(name) is None}}


def _name(trainer: SAETrainer, site: Site, several_sites: bool) -> str:
    """Returns a short name: the method and k, and the site without the base model's prefix where there are several."""
    config = trainer.config_values
    methods = {trainer_class: name for name, trainer_class in TRAINERS.items()}
    method = methods.get(type(trainer), type(trainer).__name__)
    k = getattr(config, "k", None)
    own = config.wandb_name or (method if k is None else f"{method}-{k}")
    place = site.path.partition(".")[2] or site.path
    return f"{own} @ {place}{':in' if site.side == 'in' else ''}" if several_sites else own


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
        "site": str(trainee.site),
        "trainer": trainee.trainer.config,
        "scaling": {"factor": trainee.scale, "folded": True},
    }
    if run_cfg:
        sections["run"] = dict(run_cfg)
    if hasattr(data, "config"):
        sections["buffer"] = data.config
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
