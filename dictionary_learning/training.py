"""The one training loop."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dictionary_learning.activations.stream import ActivationStream
from dictionary_learning.config import BaseConfig, coerce
from dictionary_learning.dictionaries import Dictionary, save_dictionary
from dictionary_learning.errors import ConfigError
from dictionary_learning.hardware import default_device, keep_freed_memory
from dictionary_learning.loggers import (
    AnomalyLogger,
    ConsoleLogger,
    JSONLLogger,
    LoggerGroup,
    MetricLogger,
    WandbLogger,
)
from dictionary_learning.ops.joint import shared_product
from dictionary_learning.sites import Site
from dictionary_learning.trainees import Trainee, listed, trainees_of

logger = logging.getLogger(__name__)

_ADVANCE_EVERY = 10


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
    trainees = trainees_of(trainer_configs, stream, steps, device, normalize_activations, wiring)
    sinks = [AnomalyLogger(), *loggers]
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
                _save(trainees, data, run_cfg, save_dir, f"checkpoints/step_{step}")
            if save_dir is not None and backup_steps and step % backup_steps == 0:
                _save(trainees, data, run_cfg, save_dir, "checkpoints/latest")
    if save_dir is not None:
        _save(trainees, data, run_cfg, save_dir)
    return [trainee.export() for trainee in trainees]


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
                model_loss_fn = _downstream(trainee, batch)
                lengths = _lengths(trainee, batch)
                with torch.autocast(device.type, autocast_dtype, enabled=autocast_dtype != torch.float32):
                    trainee.trainer.update(trainee.trainer.step, x, y, model_loss_fn, lengths)
    return len(next(iter(normalized.values())))


def _downstream(trainee: Trainee, batch: Mapping[Site, Tensor]) -> Callable[[Tensor], Mapping[str, Tensor]] | None:
    """Returns what tells the model's loss from reconstructions in the trainer's units, where the batch can tell."""
    tell = getattr(batch, "model_loss_fn", None)
    if tell is None:
        return None
    sites = trainee.sites.writes

    def model_loss_fn(outputs: Tensor) -> Mapping[str, Tensor]:
        parts = outputs.split([batch[site].shape[1] for site in sites], dim=1)
        raw = {
            site: trainee.normalizers[site].undo(part, batch[site].to(part.device, torch.float32))
            for site, part in zip(sites, parts, strict=True)
        }
        return tell(raw)

    return model_loss_fn


def _lengths(trainee: Trainee, batch: Mapping[Site, Tensor]) -> Tensor | None:
    """Returns how many rows of a batch each context has, where the batch is contexts."""
    lengths = getattr(batch, "lengths", None)
    if lengths is None and trainee.trainer.dictionary.reads_contexts:
        raise ConfigError(
            f"'{trainee.name}' reads contexts, and these data are tokens in no order. Train on a ContextStream: "
            "trainSAE(ContextStream(text, model, site, predict=False), ...)."
        )
    return lengths


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
        "site": listed(trainee.sites.reads),
        "trainer": trainee.trainer.config,
        "normalization": {str(site): normalizer.describe() for site, normalizer in trainee.normalizers.items()},
    }
    if not trainee.sites.is_autoencoder:
        sections["target_site"] = listed(trainee.sites.writes)
    if run_cfg:
        sections["run"] = dict(run_cfg)
    if hasattr(data, "config"):
        sections["buffer"] = data.config.to_dict() if isinstance(data.config, BaseConfig) else data.config
    return sections


def _save(
    trainees: Sequence[Trainee],
    data: Any,
    run_cfg: Mapping[str, Any] | None,
    save_dir: str | os.PathLike,
    part: str = "",
) -> None:
    for number, trainee in enumerate(trainees):
        trained = {"step": trainee.trainer.step, "steps": trainee.trainer.steps}
        save_dictionary(
            trainee.export(),
            Path(save_dir) / f"trainer_{number}" / part,
            {**_sections(trainee, data, run_cfg), "trained": trained},
        )


class _LogRecords:
    """Writes all figures through `logging`."""

    def log(self, figures: Mapping[str, Mapping[str, float]], step: int, tokens: int) -> None:
        for name, values in figures.items():
            logger.info("step %d, %s: %s", step, name, ", ".join(f"{k} {v:.4g}" for k, v in values.items()))

    def close(self) -> None:
        pass
