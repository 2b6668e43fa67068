"""Trained dictionaries on disk: with all that is known about them, and elsewhere if need be."""

import contextlib
import dataclasses
import logging
import secrets
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from dictionary_learning._checkpoint import replace_folder
from dictionary_learning._disk import UNFINISHED, flush_to_disk, write_json
from dictionary_learning._run_setup import TrainingJob
from dictionary_learning.config import BaseConfig
from dictionary_learning.dictionaries import DICTIONARIES, Dictionary, DictionaryInfo, save_dictionary
from dictionary_learning.dictionaries._info import as_config
from dictionary_learning.dictionaries._serialization import nonfinite_names
from dictionary_learning.errors import CheckpointError, DivergenceError
from dictionary_learning.interop._base import writable_format

logger = logging.getLogger(__name__)


def exported(jobs: Sequence[TrainingJob], data: Any, run_cfg: Mapping[str, Any] | None) -> list[Dictionary]:
    """Returns dictionaries that know their sites, model and settings."""
    dictionaries = [job.export() for job in jobs]
    describe(dictionaries, jobs, data, run_cfg)
    return dictionaries


def describe(
    dictionaries: Sequence[Dictionary], jobs: Sequence[TrainingJob], data: Any, run_cfg: Mapping[str, Any] | None
) -> None:
    """Tells exported dictionaries their sites, model and settings."""
    for job, dictionary in zip(jobs, dictionaries, strict=True):
        dictionary.info = DictionaryInfo.from_config(_sections(job, data, run_cfg))


def save_all(
    dictionaries: Sequence[Dictionary],
    folder: Path,
    part: str = "",
    format: str = "own",
    left_out: Collection[int] = (),
) -> list[int]:
    """Saves dictionaries as `trainer_<number>/<part>`. A failure costs a warning, and not the run.

    Left out are those that are not finite, and those whose numbers are among `left_out`.

    What another format cannot express is saved in this package's, with a warning. Finished ones,
    which have no part, are otherwise saved beside the folder, or else in the system's temporary
    folder: their `info.source` is then that place.

    Returns:
        The numbers of those that are not in the folder.
    """
    failed: list[int] = []
    for number, dictionary in enumerate(dictionaries):
        place = folder / f"trainer_{number}" / part
        try:
            # neither NaN nor what would pass for a result is ever written
            if number not in left_out and not nonfinite_names(dictionary):
                _save(dictionary, folder / f"trainer_{number}", part, format)
        except Exception as error:  # noqa: BLE001  (what was trained must not be lost with a disk)
            logger.warning("'%s' could not be written (%s: %s).", place, type(error).__name__, error)
            failed.append(number)
    if failed and not part:
        _save_elsewhere({f"trainer_{number}": dictionaries[number] for number in failed}, folder)
    return failed


def _save(
    dictionary: Dictionary, folder: Path, part: str, format: str, further: Mapping[str, Any] | None = None
) -> None:
    """Saves in a format, or in this package's what it cannot express; `further` as `save_whole`."""
    if format == "own" and not any(type(dictionary) is cls for _, cls in DICTIONARIES.items()):
        format = "dictionary_learning"  # a class of a plug-in, which only its own module can build
    if format != "own":
        try:
            config, known = dictionary.info.to_config(), writable_format(format)
            if part.startswith("checkpoints/step_"):
                known.write_step(dictionary, folder, int(part.rpartition("_")[2]), config)
            else:
                (folder / part).mkdir(parents=True, exist_ok=True)
                known.write(dictionary, folder / part, config)
                for section, facts in (further or {}).items():
                    write_json(folder / part / f"{section}.json", facts)
            return
        except CheckpointError as error:
            logger.warning("%s It is saved in this package's format.", error)
    save_dictionary(dictionary, folder / part, further)


def save_whole(dictionary: Dictionary, place: Path, further: Mapping[str, Any], format: str = "own") -> None:
    """Saves a dictionary as a folder that is complete, or as it was before, at any moment.

    Args:
        dictionary: The dictionary.
        place: The folder; one that is there is replaced.
        further: Sections of its config; `<section>.json` in formats whose config has no place for
            them.
        format: The format, unless it cannot express the dictionary.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    for left in place.parent.glob(f".{place.name}.*{UNFINISHED}"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    folder = place.with_name(f".{place.name}.{secrets.token_hex(8)}{UNFINISHED}")
    try:
        _save(dictionary, folder, "", format, further)
        flush_to_disk(folder)
        replace_folder(folder, place)
        flush_to_disk(place.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def untrained(jobs: Sequence[TrainingJob]) -> list[TrainingJob]:
    """Returns the jobs whose dictionaries are as they were initialized: every step was skipped."""
    return [job for job in jobs if 0 < job.trainer.step <= float(job.trainer.optimizer.n_skipped)]


def check_trained(jobs: Sequence[TrainingJob], dictionaries: Mapping[str, Dictionary]) -> None:
    """Refuses dictionaries that are untrained.

    Args:
        jobs: What was trained here.
        dictionaries: What came out, by name.

    Raises:
        DivergenceError: There are some; it holds the other dictionaries.
    """
    if idle := untrained(jobs):
        names = [job.name for job in idle]
        raise DivergenceError(
            f"{', '.join(names)} made no step: in all {idle[0].trainer.step}, the loss or a gradient was not finite, "
            "and the weights are the initial ones, which are not saved. Look at the loss, if the method is your own, "
            "and at the activations; else lower the learning rate or the penalty. The other dictionaries are in this "
            "error's `dictionaries`.",
            [dictionary for name, dictionary in dictionaries.items() if name not in names],
        )


def check_finite(job_names: Sequence[str], dictionaries: Sequence[Dictionary]) -> None:
    """Refuses weights that are not finite.

    Raises:
        DivergenceError: there are some; it holds the other dictionaries.
    """
    bad = {name: names for name, d in zip(job_names, dictionaries, strict=True) if (names := nonfinite_names(d))}
    if bad:
        listed = "; ".join(f"{name}: {', '.join(names)}" for name, names in bad.items())
        raise DivergenceError(
            f"Training gave weights that are not finite ({listed}), which are not saved. Check the activations, and "
            "lower the learning rate. The other dictionaries are in this error's `dictionaries`.",
            [dictionary for dictionary in dictionaries if not nonfinite_names(dictionary)],
        )


def _save_elsewhere(dictionaries: Mapping[str, Dictionary], folder: Path) -> None:
    for root in (folder.resolve().parent, Path(tempfile.gettempdir())):
        with contextlib.suppress(OSError):
            other = Path(tempfile.mkdtemp(prefix=f"{folder.resolve().name}-", dir=root))
            try:
                for name, dictionary in dictionaries.items():
                    save_dictionary(dictionary, other / name)
            except Exception:  # noqa: BLE001  (the next place may do)
                shutil.rmtree(other, ignore_errors=True)
                continue
            for name, dictionary in dictionaries.items():
                dictionary.info = dataclasses.replace(dictionary.info, source=str(other / name))
            logger.warning("%s: saved in '%s' instead of '%s'.", ", ".join(dictionaries), other, folder)
            return
    logger.error("%s: saved nowhere, only returned.", ", ".join(dictionaries))


def _sections(job: TrainingJob, data: Any, run_cfg: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns what is saved beside the dictionary."""
    sections: dict[str, Any] = {
        "name": job.name,
        "site": as_config([str(site) for site in job.sites.reads]),
        "trainer": job.trainer.config,
        "normalization": {str(site): normalizer.describe() for site, normalizer in job.normalizers.items()},
        "trained": {"step": job.trainer.step, "steps": job.trainer.steps},
    }
    if not job.sites.is_autoencoder:
        sections["target_site"] = as_config([str(site) for site in job.sites.writes])
    if run_cfg:
        sections["run"] = dict(run_cfg)
    if hasattr(data, "config"):
        sections["buffer"] = data.config.to_dict() if isinstance(data.config, BaseConfig) else data.config
    return sections
