"""The settings that every trainer has."""

import dataclasses

from dictionary_learning.config import BaseConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainerConfig(BaseConfig):
    """Settings that every trainer has."""

    activation_dim: int | None = None
    """Width of the activations, of all sites that are read together; `trainSAE` finds it in the data."""
    dict_size: int | None = None
    """Number of latents; by default expansion_factor times activation_dim."""
    expansion_factor: int = 16
    """Latents for each dimension of the activations, where dict_size is not given."""
    steps: int | None = None
    """Length of the run, which schedules refer to; `trainSAE` fills it in."""
    seed: int | None = 0
    """Seed of the initial weights."""
    site: str | tuple[str, ...] | None = None
    """The site to train on, or several for a wiring that reads several; by default every site of the data gets a
    dictionary of its own, or all are read together."""
    target_site: str | tuple[str, ...] | None = None
    """What a transcoder predicts; by default the output of the module whose input it reads."""
    normalize: str | None = None
    """How activations are normalized: see `activations/normalization.py`. None leaves it to `trainSAE`."""
    micro_acc_steps: int = 1
    """Parts that a batch is split into, one after another, to save memory; the gradients are those of the whole batch."""
    grad_acc_steps: int = 1
    """Batches whose gradients make one step; schedules count steps."""
    device: str | None = None
    """Where to train; the accelerator if there is one."""
    layer: int | None = None
    """The layer, as a note in the saved config."""
    lm_name: str | None = None
    """The language model, as a note in the saved config."""
    submodule_name: str | None = None
    """The submodule, as a note in the saved config."""
    wandb_name: str | None = None
    """Name of the dictionary in logs and reports."""

    @property
    def needs_contexts(self) -> bool:
        """Whether it trains on whole contexts alone (`ContextStream`)."""
        return self.needs_predictions

    @property
    def needs_predictions(self) -> bool:
        """Whether its loss is of what the model predicts."""
        return False
