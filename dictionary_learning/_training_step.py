"""One step of all dictionaries on one batch, normalized once for each site."""

import contextlib
import functools
from collections.abc import Callable, Generator, Mapping, Sequence

import torch
from torch import Tensor

from dictionary_learning._progress import add_note
from dictionary_learning._run_setup import TrainingJob
from dictionary_learning._side_by_side import is_worthwhile, side_by_side
from dictionary_learning._usual_state import usable
from dictionary_learning.activations._normalizers import Normalizer
from dictionary_learning.errors import ConfigError
from dictionary_learning.ops._joint import shared_product
from dictionary_learning.sites import Site
from dictionary_learning.trainers._base import Trainer
from dictionary_learning.trainers._batch import ModelLoss


def train_step(
    jobs: Sequence[TrainingJob], batch: Mapping[Site, Tensor], device: torch.device, autocast_dtype: torch.dtype
) -> None:
    """Makes one step of every dictionary."""

    @functools.cache  # once for all dictionaries
    def normalized(site: Site, normalizer: Normalizer) -> Tensor:
        if site not in batch:
            raise ConfigError(f"A batch has no site '{site}', only {', '.join(map(str, batch))}.")
        return normalizer.apply(usable(batch[site]).to(device, torch.float32))

    @functools.cache
    def activations(*places: tuple[Site, Normalizer]) -> Tensor:
        parts = [normalized(*place) for place in places]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)  # (batch, sum of widths)

    updates: dict[str, Callable[[], Tensor]] = {}
    groups: dict[tuple[tuple[Site, Normalizer], ...], list[TrainingJob]] = {}
    for job in jobs:
        places = job.places(job.sites.reads)
        groups.setdefault(places, []).append(job)
        y = None if job.sites.is_autoencoder else activations(*job.places(job.sites.writes))
        what = (activations(*places), y, _model_loss(job, batch), _lengths(job, batch))
        updates[job.name] = functools.partial(job.trainer.update, job.trainer.step, *what)
    autocast = functools.partial(torch.autocast, device.type, autocast_dtype, enabled=autocast_dtype != torch.float32)
    if _may_go_side_by_side(jobs, batch, device):
        with autocast():
            side_by_side([_named(job)(updates[job.name]) for job in jobs])
        return
    for places, group in groups.items():
        # dictionaries on the same activations share one product where that is faster;
        # a recording has its own
        apart = [job.trainer for job in group if not (job.trainer.replayed and job.trainer.replayed.is_on)]
        encoders = [encoder for trainer in apart for encoder in trainer.encoders()]
        with shared_product(activations(*places), encoders), autocast():
            for job in group:
                with _named(job):
                    updates[job.name]()


@contextlib.contextmanager
def _named(job: TrainingJob) -> Generator[None]:
    """Adds the dictionary and the step to an error."""
    try:
        yield
    except Exception as error:
        add_note(error, f"This was step {job.trainer.step + 1} of the dictionary '{job.name}'.")
        raise


def _may_go_side_by_side(jobs: Sequence[TrainingJob], batch: Mapping[Site, Tensor], device: torch.device) -> bool:
    """Returns whether dictionaries make their steps in several threads.

    Not where steps run the model, which is one, or wait for other processes in an order that must
    be the same in all; nor where a class makes its own steps, or may draw random numbers of the
    process, which may share anything.
    """
    runs_model = getattr(batch, "model_loss_fn", None) is not None
    return len(jobs) > 1 and is_worthwhile(device) and not runs_model and all(_is_apart(job.trainer) for job in jobs)


def _is_apart(trainer: Trainer) -> bool:
    return type(trainer).update is Trainer.update and trainer.ranks.size == 1 and not trainer.may_draw


def _model_loss(job: TrainingJob, batch: Mapping[Site, Tensor]) -> ModelLoss | None:
    """Returns the model's loss as a function of reconstructions in the trainer's units."""
    raw_loss = getattr(batch, "model_loss_fn", None)
    if raw_loss is None:
        return None

    runs_again = getattr(job.trainer.settings, "activation_checkpointing", False)
    options = {"activation_checkpointing": True} if runs_again else {}  # data of the user's may not know it

    def model_loss_fn(outputs: Tensor) -> Mapping[str, Tensor]:
        raw: dict[Site, Tensor] = {}
        parts = torch.split(outputs, [batch[site].shape[1] for site in job.sites.writes], dim=1)
        for site, part in zip(job.sites.writes, parts, strict=True):
            raw[site] = job.normalizers[site].undo(part, batch[site].to(part.device, torch.float32))
        return raw_loss(raw, **options)

    return model_loss_fn


def _lengths(job: TrainingJob, batch: Mapping[Site, Tensor]) -> Tensor | None:
    """Returns the number of rows of each context (contexts,), where the batch is contexts."""
    lengths = getattr(batch, "lengths", None)
    if lengths is None and job.trainer.dictionary.reads_contexts:
        raise ConfigError(
            f"'{job.name}' reads contexts, and these data are tokens in no order. Train on a ContextStream: "
            "trainSAE(ContextStream(text, model, site, predict=False), ...)."
        )
    return lengths
