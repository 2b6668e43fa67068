"""Revival of dead latents: auxiliary losses, and resampling."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dictionary_learning.dictionaries import Trainable
from dictionary_learning.latents import firing_counts
from dictionary_learning.trainers._batch import Batch, Loss, StepPart
from dictionary_learning.trainers._components import Component
from dictionary_learning.trainers._config import TrainerConfig
from dictionary_learning.trainers._dead_latents import DeadLatents
from dictionary_learning.trainers._losses import auxk_loss, ghost_loss, pre_activation_loss
from dictionary_learning.trainers._resampling import resample_


class Revival(Component):
    """Tracks which latents are dead, and computes the losses that revive them.

    Args:
        settings: Resolved settings, of which those about dead latents count.
        dictionary: The dictionary in training.
        optimizer: Forgets the moments of resampled rows.
        generator: Draws the tokens that resampled latents point at.
    """

    def __init__(
        self,
        settings: TrainerConfig,
        dictionary: Trainable,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
    ):
        self.settings, self.dictionary = settings, dictionary
        self._optimizer, self._generator = optimizer, generator
        self.dead = DeadLatents(
            dictionary.dict_size,
            settings.dead_after_tokens,
            dictionary.device,
            min_frequency=settings.min_frequency,
            window=settings.feature_sampling_window,
        )
        self.mean_error = torch.ones((), device=dictionary.device)
        """E|y - y_hat|^2 of the last step, the same for all parts of a batch."""

    def added(self, loss: Loss, batch: Batch, *, loss_scale: Tensor, auxk_scale: Tensor | float) -> Loss:
        """Returns the loss with the terms that revive dead latents added, if any latent is dead.

        Args:
            loss: The method's loss of the batch.
            batch: The batch.
            loss_scale: Factor of errors in the method's loss.
            auxk_scale: Value of the whole error in the method's loss, of which AuxK is a share.
        """
        dead = self.dead.indices
        if dead is None:
            return loss
        settings, dictionary, x = self.settings, self.dictionary, batch.x
        total, terms = loss.total, dict(loss.terms)
        if settings.auxk_alpha:
            some = slice(None, None, settings.auxk_every)
            residual = (batch.y[some].float() - loss.reconstruction.outputs[some]).detach()
            terms["auxk_loss"] = auxk_loss(dictionary, x[some], residual, dead, settings.k_aux, self.mean_error)
            total = total + settings.auxk_alpha * terms["auxk_loss"] * auxk_scale
        if settings.use_ghost_grads:
            residual = (batch.y.float() - loss.reconstruction.outputs).detach()
            terms["ghost_loss"] = ghost_loss(dictionary, x, residual, dead, loss.error)
            total = total + loss_scale * terms["ghost_loss"]
        if settings.pre_act_loss_coefficient:
            terms["pre_act_loss"] = pre_activation_loss(dictionary, x, dead)
            total = total + settings.pre_act_loss_coefficient * terms["pre_act_loss"]
        return loss._replace(total=total, terms=terms)

    def after_step(self, parts: Sequence[StepPart], step: int) -> None:
        firings = torch.stack([firing_counts(part.loss.reconstruction.latents) for part in parts]).sum(0)
        self.dead.observe(firings, sum(len(part.batch.x) for part in parts))
        error = torch.stack([part.loss.error.detach() * part.share for part in parts]).sum()
        self.mean_error = torch.where(error.isfinite(), error.to(self.mean_error.dtype), self.mean_error)
        every = self.settings.resample_steps
        if every is not None and (step + 1) % every == 0 and self.dead.indices is not None:
            batch, loss, _ = parts[-1]
            errors = (loss.reconstruction.outputs - batch.y.float()).pow(2).sum(-1)  # (batch,)
            revived = resample_(self.dictionary, self._optimizer, batch, errors, self.dead.indices, self._generator)
            self.dead.revive(revived)

    def figures(self) -> dict[str, Tensor]:
        return {"dead_features": self.dead.mask.sum()}

    def state_dict(self) -> dict[str, Any]:
        return {"dead": self.dead.state_dict(), "mean_error": self.mean_error}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.dead.load_state_dict(state["dead"])
        self.mean_error = state["mean_error"].to(self.mean_error.device)
