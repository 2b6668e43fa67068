"""The trainer of sparsify: settings, a data set of token ids and a model in; coders on disk out."""

import importlib.util
import logging
import os
from pathlib import Path
from typing import Any

from dictionary_learning import parallel
from dictionary_learning.activations._filters import TokenFilter
from dictionary_learning.compat.sparsify._translation import configs_of, hookpoints_of
from dictionary_learning.compat.sparsify.config import TrainConfig
from dictionary_learning.compat.sparsify.data import MemmapDataset
from dictionary_learning.compat.sparsify.sparse_coder import SparseCoder
from dictionary_learning.contexts import ContextStream
from dictionary_learning.dictionaries import load_dictionary
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.models import load_model
from dictionary_learning.sites import Site
from dictionary_learning.training import trainSAE

logger = logging.getLogger(__name__)

_HELD_OUT = 50
"""One of this many sequences decides which coders are best."""


class Trainer:
    """Trains a coder for each hookpoint, by `fit()`; the coders are in `saes` then.

    The run has two folders: `save_dir/run_name`, as sparsify writes it, and `save_dir/.run_name`
    with the log and the checkpoints that `resume` goes on from.

    Args:
        cfg: The settings.
        dataset: Token ids in rows of one length, as `chunk_and_tokenize` returns them.
        model: A Hugging Face model.
        resume: Whether to go on from the run's newest checkpoint.
    """

    def __init__(self, cfg: TrainConfig, dataset: Any, model: Any, *, resume: bool = False):
        self.cfg, self.dataset, self.model, self.is_resumed = cfg, dataset, load_model(model), resume
        self.sites = hookpoints_of(cfg, self.model)
        cfg.hookpoints = list(self.sites)
        self.widths = self._widths()
        self.configs = configs_of(cfg, self.widths, self.sites)
        self.saes: dict[str, SparseCoder] = {}

    def local_hookpoints(self) -> list[str]:
        """Returns the names of the hookpoints."""
        return list(self.sites)

    def fit(self) -> None:
        """Trains the coders, and writes them as `save_dir/run_name/<hookpoint>`."""
        cfg, world = self.cfg, parallel.start()
        n = len(self.dataset)
        held_out = max(n // _HELD_OUT, cfg.batch_size) if cfg.save_best else 0
        steps = (n - held_out) // cfg.batch_size // world.size
        if steps < cfg.grad_acc_steps:
            raise DataError(
                f"{n} sequences are {steps} batches of batch_size={cfg.batch_size} sequences on {world.size} "
                f"processes; a step needs {cfg.grad_acc_steps}. Give more data, or a smaller batch."
            )
        # periods there are of steps, here of batches
        every = cfg.save_every * cfg.grad_acc_steps
        is_logged = cfg.log_to_wandb and importlib.util.find_spec("wandb") is not None
        if cfg.log_to_wandb and not is_logged:
            logger.warning("log_to_wandb=True, and wandb is not installed: the log is in metrics.jsonl only.")
        folder = Path(cfg.folder)
        run = folder.with_name(f".{folder.name}")
        options: dict[str, Any] = {}
        if cfg.save_best:
            best = self._stream(self.dataset.select(range(n - held_out, n)), predict=cfg.loss_fn != "fvu")
            options = {"evaluate_every": min(every, steps), "evaluation_data": best, "save_best": cfg.loss_fn}
        trained = trainSAE(
            self._stream(self.dataset.select(range(n - held_out)) if held_out else self.dataset, cfg.loss_fn != "fvu"),
            list(self.configs.values()),
            steps,
            save_dir=run,
            overwrite=not self.is_resumed,
            resume="auto" if self.is_resumed else "never",
            checkpoint_steps=min(every, steps),
            keep_checkpoints=1,
            log_steps=cfg.wandb_log_frequency * cfg.grad_acc_steps,
            use_wandb=is_logged,
            wandb_project=os.environ.get("WANDB_PROJECT", "sparsify"),
            wandb_entity=os.environ.get("WANDB_ENTITY", ""),
            device=self.model.device,
            placement="dictionary" if cfg.distribute_modules and world.size > 1 else "data",
            run_cfg={"sparsify": _plain(cfg)},
            **options,
        )
        self.saes = {name: SparseCoder.of_dictionary(one) for name, one in zip(self.configs, trained, strict=True)}
        if world.is_first:
            self._write(folder, run)
        world.tell([0])  # no process goes on before the files are there

    def save(self) -> None:
        """Writes the coders, as `fit` does at its end."""
        if not self.saes:
            raise ConfigError("There are no trained coders yet. Call fit().")
        folder = Path(self.cfg.folder)
        self._write(folder, folder.with_name(f".{folder.name}"))

    def load_state(self, path: str) -> None:
        """Makes `fit` go on from the run's newest checkpoint."""
        if Path(path) != Path(self.cfg.folder):
            raise ConfigError(f"Got '{path}', and the run is '{self.cfg.folder}'. Set save_dir and run_name to resume.")
        self.is_resumed = True

    def _stream(self, dataset: Any, predict: bool) -> ContextStream:
        if isinstance(dataset, MemmapDataset):
            rows, length = dataset.rows, dataset.rows.shape[1]
        else:
            rows, length = dataset, len(dataset[0]["input_ids"])
        sides = "in_and_out" if self.cfg.sae.transcode else "out"
        sites = [str(site) for site in self._captured()]
        stream = ContextStream(
            rows, self.model, sites, io=sides, ctx_len=length, batch_size=self.cfg.batch_size, remove_bos=False,
            pack=False, predict=predict,
        )  # fmt: skip
        stream.filter = TokenFilter(exclude_ids=tuple(self.cfg.exclude_tokens))
        return stream

    def _captured(self) -> list[Site]:
        sides = ("in", "out") if self.cfg.sae.transcode else ("out",)
        return [Site(site.path, side) for site in self.sites.values() for side in sides]

    def _widths(self) -> dict[str, int]:
        found = self.model.widths(self._captured())
        widths = {name: found[Site(site.path, "out")] for name, site in self.sites.items()}
        for name, site in self.sites.items():
            if self.cfg.sae.transcode and (reads := found[Site(site.path, "in")]) != widths[name]:
                raise ConfigError(
                    f"'{name}' reads width {reads} and writes {widths[name]}; sparsify has transcoders of one width. "
                    "Train it by trainSAE with wiring='transcoder'."
                )
        return widths

    def _write(self, folder: Path, run: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for number, (name, sae) in enumerate(self.saes.items()):
            sae.save_to_disk(folder / name)
            best = run / f"trainer_{number}" / "best"
            if best.is_dir():
                SparseCoder.of_dictionary(load_dictionary(best)).save_to_disk(folder / "best" / name)


SaeTrainer = Trainer


def _plain(cfg: TrainConfig) -> dict[str, Any]:
    own = {name: value for name, value in vars(cfg).items() if isinstance(value, (str, int, float, list, type(None)))}
    return {**own, "sae": cfg.sae.to_dict()}
