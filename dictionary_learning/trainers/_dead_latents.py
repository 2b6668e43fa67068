"""Dead latents: which they are, and how losses and resampling revive them."""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dictionary_learning.dictionaries import Trainable
from dictionary_learning.dictionaries._initialization import geometric_median
from dictionary_learning.latents import firing_counts
from dictionary_learning.trainers._batch import Batch, Loss, StepPart
from dictionary_learning.trainers._components import Component
from dictionary_learning.trainers._losses import auxk_loss, ghost_loss, norms, pre_activation_loss
from dictionary_learning.trainers._optimizer_rows import take_rows
from dictionary_learning.trainers._sae_config import TrainerConfig

_LOOK_EVERY = 100
"""Steps between two copies of the dead latents from an accelerator to the host."""
_ENCODER_SHARE = 0.2
"""Norm of a new encoder row, as a share of the living rows' mean norm (Bricken et al. 2023)."""


class Revival(Component):
    """Tracks which latents are dead, and revives them by losses and by resampling."""

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
        self._n_dead = 0
        self._none = torch.zeros(0, dtype=torch.long, device=dictionary.device)

    @property
    def n_dead(self) -> int:
        """Dead latents that the host knows of, on all ranks."""
        if self.latent_ranks.size > 1:
            return self._n_dead
        return 0 if self.dead.indices is None else len(self.dead.indices)

    def added(self, loss: Loss, batch: Batch, *, loss_scale: Tensor, auxk_scale: Tensor | float) -> Loss:
        """Returns the loss with the terms that revive dead latents added, if any latent is dead.

        Args:
            loss: The method's loss of the batch.
            batch: The batch.
            loss_scale: Factor of errors in the method's loss.
            auxk_scale: Value of the whole error in the method's loss, of which AuxK is a share.
        """
        if not self.n_dead:
            return loss
        dead = self.dead.indices if self.dead.indices is not None else self._none
        settings, dictionary, x = self.settings, self.dictionary, batch.x
        total, terms = loss.total, dict(loss.terms)
        if settings.auxk_alpha:
            residual, every = (batch.y.float() - loss.reconstruction.outputs).detach(), settings.auxk_every
            some = (x, residual) if every == 1 else (x[::every], residual[::every])  # tokens of the batch
            terms["auxk_loss"] = auxk_loss(dictionary, *some, dead, settings.k_aux, self.mean_error, self.n_dead)
            total = total + settings.auxk_alpha * terms["auxk_loss"] * auxk_scale
        if settings.use_ghost_grads:
            residual = (batch.y.float() - loss.reconstruction.outputs).detach()
            terms["ghost_loss"] = ghost_loss(dictionary, x, residual, dead, loss.error, self.ranks)
            total = total + loss_scale * terms["ghost_loss"]
        if settings.pre_act_loss_coefficient:
            terms["pre_act_loss"] = pre_activation_loss(dictionary, x, dead)
            total = total + settings.pre_act_loss_coefficient * terms["pre_act_loss"]
        return loss._replace(total=total, terms=terms)

    def keeping(self) -> contextlib.AbstractContextManager[None]:
        """Returns a context in which the method's selection computes what AuxK's reads."""
        dead, settings = self.dead.indices, self.settings
        if dead is None or not settings.auxk_alpha or settings.auxk_every > 1:
            return contextlib.nullcontext()
        return self.dictionary.keeping(dead)

    def after_step(self, parts: Sequence[StepPart], step: int) -> None:
        firings = _total([firing_counts(part.loss.reconstruction.latents) for part in parts])
        self.dead.observe(self.ranks.sum(firings), self.ranks.total(sum(len(part.batch.x) for part in parts)))
        self._count()
        # of the whole step, for AuxK of the next one
        error = self.ranks.sum(_total([part.loss.error.detach() * part.share for part in parts]))
        # in place: a recorded step reads it where it is
        self.mean_error.copy_(torch.where(error < torch.inf, error.to(self.mean_error.dtype), self.mean_error))
        every = self.settings.resample_steps
        if every is not None and (step + 1) % every == 0 and self.dead.indices is not None:
            batch, loss, _ = parts[-1]  # tokens are drawn from the last part only
            errors = (loss.reconstruction.outputs - batch.y.float()).pow(2).sum(-1)  # (batch,)
            # all ranks draw the same tokens of all of them
            x, errors = self.ranks.gather(batch.x), self.ranks.gather(errors)
            batch = Batch(x, x if batch.y is batch.x else self.ranks.gather(batch.y))
            revived = resample_(self.dictionary, self._optimizer, batch, errors, self.dead.indices, self._generator)
            self.dead.revive(revived)
            self._count()

    def read_by_loss(self) -> list[Any]:
        return [self.mean_error, self.dead.indices, self.n_dead]

    def figures(self) -> dict[str, Tensor]:
        return {"dead_features": self.latent_ranks.sum(self.dead.mask.sum())}

    def state_dict(self) -> dict[str, Any]:
        return {"dead": self.dead.state_dict(), "mean_error": self.mean_error}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.dead.load_state_dict(state["dead"])
        self.mean_error.copy_(state["mean_error"])
        self._count()

    def _count(self) -> None:
        own = self.dead.indices
        n_own = 0 if own is None else len(own)
        # no rank asks the others before a latent can be dead
        self._n_dead = self.latent_ranks.total(n_own) if self.dead.may_have_some else 0


def _total(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(list(parts)).sum(0)


class DeadLatents:
    """Counts for each latent the tokens since it last fired, that is, since it was positive.

    On a CPU, dead latents are known after each step. The host does not wait for an accelerator:
    every 100 steps it starts an asynchronous copy, and uses it 100 steps later, when it has
    arrived.

    Args:
        after_tokens: Tokens without firing after which a latent is dead.
        min_frequency: Share of the tokens of the last complete window below which a latent is dead.
        window: Tokens of a window.
    """

    def __init__(
        self,
        dict_size: int,
        after_tokens: int,
        device: torch.device,
        *,
        min_frequency: float | None = None,
        window: int = 2_000_000,
    ):
        self.after_tokens = after_tokens
        self.min_frequency, self.window = min_frequency, window
        self._counts = torch.zeros(dict_size, dtype=torch.long, device=device)
        self._rare = torch.zeros(dict_size, dtype=torch.bool, device=device)
        self._window_tokens, self._n_windows = 0, 0
        self.tokens_since_fired = torch.zeros(dict_size, dtype=torch.long, device=device)
        self.n_tokens = 0
        """Tokens so far, on the host: nothing is computed while no latent can be dead."""
        self._step = 0
        self._is_seen_at_once = device.type == "cpu"
        self._copied: Tensor | None = None
        self._arrived: torch.cuda.Event | None = None
        self._indices: Tensor | None = None

    def observe(self, firings: Int[Tensor, "dict_size"], n_tokens: int) -> None:
        """Adds a step, given the number of its tokens on which each latent fired."""
        self.n_tokens += n_tokens
        # the order matters: a latent that fires in this step is 0 tokens old
        self.tokens_since_fired.add_(n_tokens).masked_fill_(firings > 0, 0)
        if self.min_frequency is not None:
            self._counts += firings
            self._window_tokens += n_tokens
            if self._window_tokens >= self.window:
                self._rare = self._counts < self.min_frequency * self._window_tokens
                self._counts.zero_()
                self._window_tokens, self._n_windows = 0, self._n_windows + 1
        if self.may_have_some:
            if self._is_seen_at_once:
                self._indices = self.mask.nonzero().squeeze(1)
            elif self._step % _LOOK_EVERY == 0:
                self._look()
        self._step += 1

    @property
    def may_have_some(self) -> bool:
        """Whether there were enough tokens for a latent to be dead."""
        return self.n_tokens > self.after_tokens or bool(self._n_windows)

    def revive(self, latents: Int[Tensor, "n"]) -> None:
        """Marks latents as alive, such as those that were resampled."""
        self.tokens_since_fired[latents] = 0  # they get as long as a new latent
        self._rare[latents] = False
        self._indices = self.mask.nonzero().squeeze(1)

    @property
    def mask(self) -> Bool[Tensor, "dict_size"]:
        """Which latents are dead now."""
        return (self.tokens_since_fired > self.after_tokens) | self._rare

    @property
    def indices(self) -> Int[Tensor, "n_dead"] | None:
        """Indices of dead latents that the host knows of, without a wait; None for none."""
        return self._indices if self._indices is not None and len(self._indices) else None

    def state_dict(self) -> dict[str, Any]:
        """Returns the counts, and the copy that is under way."""
        if self._arrived is not None:
            self._arrived.synchronize()
        state = {"tokens_since_fired": self.tokens_since_fired, "n_tokens": self.n_tokens, "step": self._step}
        windows = {"counts": self._counts, "rare": self._rare, "window": [self._window_tokens, self._n_windows]}
        return {**state, **windows, "copied": self._copied, "indices": self._indices}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes from saved counts."""
        self.tokens_since_fired.copy_(state["tokens_since_fired"])
        self.n_tokens, self._step, self._copied = state["n_tokens"], state["step"], state["copied"]
        self._counts.copy_(state["counts"])
        self._rare = state["rare"].to(self._counts.device)
        self._window_tokens, self._n_windows = state["window"]
        indices = state["indices"]
        if isinstance(indices, str):  # of a state in shares, whose latents have other numbers
            indices = self.mask.nonzero().squeeze(1)
        self._indices = None if indices is None else indices.to(self.tokens_since_fired.device)

    def _look(self) -> None:
        """Uses the last copy of the mask, and starts a new one."""
        device = self.tokens_since_fired.device
        if self._arrived is not None:
            self._arrived.synchronize()  # a hundred steps old: waits only if the host is that far ahead
        if self._copied is not None:
            found = self._copied.nonzero().squeeze(1)
            self._indices = (found.pin_memory() if device.type == "cuda" else found).to(device, non_blocking=True)
        place = torch.empty(len(self.tokens_since_fired), dtype=torch.bool, pin_memory=device.type == "cuda")
        self._copied = place.copy_(self.mask, non_blocking=device.type == "cuda")
        if device.type == "cuda":
            self._arrived = torch.cuda.Event()
            self._arrived.record()


@torch.no_grad()
def resample_(
    dictionary: Trainable,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    errors: Float[Tensor, "batch"],
    dead: Int[Tensor, "n_dead"],
    generator: torch.Generator,
) -> Int[Tensor, "n_revived"]:
    """Points dead latents at tokens that are reconstructed badly, in place.

    Tokens are drawn without repetition, with a probability proportional to |y - y_hat|^4. The
    decoder row becomes the direction of the token's target minus b_dec, with the mean norm of the
    living rows. The encoder row becomes the direction of its input minus b_dec, with a fifth of
    their mean norm. Biases become 0, and thresholds their initial value. Where an encoder does not
    subtract b_dec, the geometric median of the inputs stands for it, and the biases subtract it:
    otherwise the latents would fire on what all tokens have in common. The optimizer forgets its
    means of the new rows.
    Bricken et al. 2023, "Towards Monosemanticity", Neuron Resampling.

    Args:
        errors: |y - y_hat|^2 of each token.

    Returns:
        Indices of the resampled latents: at most as many as there are tokens with an error.
    """
    # in float64, and relative to the largest: squares of large errors would overflow
    weights = (errors.double() / errors.double().amax().clamp_min(torch.finfo(torch.float64).tiny)).square().cpu()
    n = min(len(dead), int((weights > 0).sum()))
    if n == 0:
        return dead[:0]
    dead = dead[torch.randperm(len(dead), generator=generator)[:n].to(dead.device)]
    tokens = torch.multinomial(weights, n, generator=generator).to(batch.x.device)
    for part in dictionary.coders():
        own = part.own(dead)
        mine = tokens[(dead >= part.latents.start) & (dead < part.latents.stop)]  # (own,)
        if not len(own):
            continue
        coder = part.coder
        inputs, outputs = batch.x[mine, part.reads].float(), batch.y[mine, part.writes].float()
        b_dec, shared = coder.b_dec, getattr(dictionary, "b_dec", None)
        if b_dec is None and isinstance(shared, Tensor):
            b_dec = shared[part.writes]
        if b_dec is not None:  # the latent adds to b_dec
            outputs = outputs - b_dec
        is_centered = coder.apply_b_dec_to_input or coder.is_tied
        center = coder.b_dec if is_centered else geometric_median(batch.x[:, part.reads].float())
        inputs = inputs if center is None else inputs - center
        alive = torch.ones(coder.dict_size, dtype=torch.bool, device=own.device).index_fill_(0, own, False)
        usual = norms(coder.W_dec)[alive].mean() if bool(alive.any()) else 1.0
        rows = {id(coder.W_dec): torch.nn.functional.normalize(outputs, dim=1) * usual}
        if not coder.is_tied:
            length = norms(coder.W_enc[alive].float()).mean() if bool(alive.any()) else 1.0
            W_enc = torch.nn.functional.normalize(inputs, dim=1) * (_ENCODER_SHARE * length)
            rows[id(coder.W_enc)] = W_enc
            if not is_centered:
                assert center is not None
                rows |= {id(bias): -(W_enc @ center) for bias in coder.encoder_biases()}
        threshold = float(getattr(coder.nonlinearity, "initial_threshold", 0.0))
        for name, p in coder.named_parameters():
            # a width may equal dict_size: only the name tells tensors without rows for latents
            if p.shape[:1] != (coder.dict_size,) or name in ("b_dec", "W_skip"):
                continue
            filled = torch.full_like(p[own], threshold if name.endswith("threshold") else 0.0, dtype=torch.float32)
            p[own] = rows.get(id(p), filled).to(p.dtype)
            take_rows(optimizer, p, own)
    return dead
