"""Facts of a run, which settings depend on and which are never settings."""

import dataclasses
import math

import torch

from dictionary_learning._hardware import as_device
from dictionary_learning.config import BaseConfig, setting
from dictionary_learning.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunInfo(BaseConfig):
    """Facts of a run: what `trainSAE` finds in the data, and what is noted in the saved config."""

    activation_dim: int = setting(0, at_least=1)
    """Width of the activations, of all sites that are read together."""
    steps: int = setting(0, at_least=1)
    """Batches of the run."""
    site_dims: tuple[int, ...] | None = None
    """Width of each site that is read; None for one site."""
    output_dims: tuple[int, ...] | None = None
    """Width of each site that is written; None for the sites that are read."""
    device: str | None = None
    """Device of the dictionary; the accelerator if there is one."""
    layer: int | None = None
    """The layer, as a note."""
    lm_name: str | None = None
    """The language model, as a note."""
    submodule_name: str | None = None
    """The submodule, as a note."""

    def __post_init__(self) -> None:
        if not (self.activation_dim and self.steps):
            raise ConfigError(
                f"A trainer needs activation_dim and steps; got activation_dim={self.activation_dim} and "
                f"steps={self.steps}. Give them, or train with trainSAE, which knows them."
            )
        super().__post_init__()
        if sum(self.read_dims) != self.activation_dim:
            raise ConfigError(
                f"Got site_dims={self.site_dims}, which add up to {sum(self.read_dims)}, with activation_dim="
                f"{self.activation_dim}. Leave site_dims out for one site."
            )

    @property
    def torch_device(self) -> torch.device:
        """The device of the dictionary."""
        return as_device(self.device)

    def optimizer_steps(self, grad_acc_steps: int) -> int:
        """Returns the number of optimizer steps. The last one may accumulate fewer batches.

        Raises:
            ConfigError: The run is shorter than one step.
        """
        if grad_acc_steps > self.steps:
            raise ConfigError(
                f"Got grad_acc_steps={grad_acc_steps} in a run of {self.steps} batches, which would be less than one "
                "step. Lower grad_acc_steps, or train longer."
            )
        return math.ceil(self.steps / grad_acc_steps)

    @property
    def read_dims(self) -> tuple[int, ...]:
        """Width of each site that is read."""
        return self.site_dims or (self.activation_dim,)


FACTS = frozenset(field.name for field in dataclasses.fields(RunInfo))
