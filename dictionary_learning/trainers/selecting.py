"""What trainers share that keep a set number of latents: objective, threshold, recipe."""

import contextlib
import dataclasses
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.dictionaries import Reconstruction
from dictionary_learning.dictionaries.nonlinearities import BatchTopK, ThresholdedTopK
from dictionary_learning.dictionaries.trainable import CoderSlice, Trainable
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import SparseLatents, gather_per_latent, slice_latents
from dictionary_learning.ops.finite import replace_nonfinite
from dictionary_learning.ops.precision import upcast
from dictionary_learning.trainers.batch import Batch, Loss
from dictionary_learning.trainers.coder import CoderTrainer
from dictionary_learning.trainers.losses import squared_error
from dictionary_learning.trainers.schedules import Schedule, annealed_k

DEFAULT_K = 32
"""Latents that a token may use where nothing is said."""
_LR_WIDTH = 2**14
_LR = {"adam": 4.5e-3, "adam_8bit": 4.5e-3, "adam_schedule_free": 4.5e-3, "signum": 5e-3, "signum_schedule_free": 5e-3}
"""Learning rates at that width, by optimizer; those of signs are sparsify's, which the factors of the weights then multiply."""
_LR_MUON = 2e-3
"""Muon's, whatever the width (sparsify)."""
_END_TO_END = 0.2
"""What the rate is multiplied by where the loss is the model's: at the whole rate the divergence fell more slowly, and the
reconstruction left the activations (40 steps on SmolLM2-135M: 0.97 nats and FVU 2.7, against 0.75 and 1.0 or less at a third and a ninth)."""


class Attempt(NamedTuple):
    """A reconstruction that is part of the loss."""

    name: str
    weight: float
    outputs: Float[Tensor, "batch output_dim"]


class SelectingTrainer(CoderTrainer):
    """Trains a dictionary that keeps a set number of latents, of each token or of a batch.

    loss = |y - y_hat|^2 / E|y - mean|^2 + auxk_alpha * min(n_dead / k_aux, 1) * |e - e_hat|^2 / E|e|^2

    where e = y - y_hat, held constant, and e_hat is decoded from the k_aux largest dead latents of each token; E|e|^2 is that of
    the last step, so that parts of a batch add up to the whole. Decoder rows have unit norm after each step, and their gradients
    no part along them before it. b_dec begins as the geometric median.
    Gao et al. 2024, https://arxiv.org/abs/2406.04093: sections 2.1, 2.3, A.1, A.2.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(CoderTrainer.Config):
        """Settings of trainers that keep a set number of latents."""

        k: int | None = None
        """Latents that a token may use; by default 32, or as many as in the dictionary to begin with."""
        lr: float | None = None
        """Learning rate; by default 4.5e-3 / sqrt(dict_size / 2^14): the paper's law in the width, with a factor measured for
        these settings (docs/defaults.md)."""
        encoder_lr_factor: float = 0.5
        """What the learning rate is multiplied by for W_enc."""
        decoder_lr_factor: float = 2.0
        """What the learning rate is multiplied by for W_dec, whose rows turn without growing."""
        beta1: float = 0.8
        """Adam's decay of the mean gradient."""
        beta2: float = 0.95
        """Adam's decay of the mean squared gradient: a latent that fires again after long is not thrown far."""
        eps: float = 6.25e-10
        """Adam's floor; gradients of rare latents are small (Gao et al. 2024, A.1)."""
        decay_start: int | None = None
        """The step from which the learning rate falls to 0; by default after 20% of the run, or after the warm-up."""
        max_grad_norm: float | None = 1e-3
        """Gradients are scaled down to this common norm, where the loss is a share of the variance; so low that it makes them
        all equally long. None for no limit."""
        auxk_alpha: float = 1 / 32
        """Weight of the auxiliary loss of dead latents."""
        k_anneal_steps: int | None = None
        """Steps over which k falls to its value from `k_anneal_start`; None to begin with it."""
        k_anneal_start: int | None = None
        """Where k begins when it falls; by default the width of the activations."""
        threshold_beta: float = 0.999
        """Decay of the moving average that learns the threshold for inference."""
        threshold_start_step: int = 1000
        """The step from which that average is kept; before it, the threshold is the last batch's."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.k is not None and (self.k < 1 or (self.dict_size is not None and self.k > self.dict_size)):
                raise ConfigError(
                    f"A dictionary cannot keep k={self.k} of dict_size={self.dict_size} latents; lower k or raise dict_size."
                )

    aliases: ClassVar = {**CoderTrainer.aliases, "k_decay_steps": "k_anneal_steps"}
    positional: ClassVar = ("steps", "activation_dim", "dict_size", "k", "layer", "lm_name")

    @property
    def settings(self) -> Config:
        """The settings of this run."""
        assert isinstance(self.config_values, self.Config)
        return self.config_values

    def own_lr(self) -> float:
        optimizer = self.settings.optimizer
        if optimizer == "muon":
            return _LR_MUON
        if not isinstance(optimizer, str):
            return self.default_lr
        law = _LR.get(optimizer, _LR["adam"]) / (self.dict_size / _LR_WIDTH) ** 0.5
        return law if self.settings.loss_fn == "reconstruction" else law * _END_TO_END

    def build_schedule(self) -> Schedule:
        settings = self.settings
        if settings.decay_start is None and settings.schedule == "linear":
            warmup = min(1000, self.steps // 10) if settings.warmup_steps is None else settings.warmup_steps
            self.config_values = settings.replace(decay_start=max(self.steps // 5, min(warmup, self.steps)))
        return super().build_schedule()

    def fill_in(self, trained: Trainable | None) -> None:
        super().fill_in(trained)
        if self.settings.k is None:
            own = None if trained is None else getattr(next(trained.coders()).coder.nonlinearity, "k", None)
            self.config_values = self.settings.replace(k=own or DEFAULT_K)

    @property
    def last_k(self) -> int:
        """How many latents are kept once the number has come down, and afterwards."""
        assert self.settings.k is not None, "fill_in comes before"
        return self.settings.k

    @property
    def k(self) -> int:
        """How many latents are kept at the current step."""
        settings, last = self.settings, self.last_k
        start = settings.k_anneal_start or max(self.dictionary.activation_dim, last)
        return annealed_k(last, min(start, self.dict_size), self.step, settings.k_anneal_steps)

    @abstractmethod
    def attempts(self, batch: Batch) -> tuple[SparseLatents, list[Attempt]]:
        """Returns the latents, and the reconstructions that are part of the loss; the first is the dictionary's."""

    def plain(self, batch: Batch) -> tuple[SparseLatents, list[Attempt]]:
        """Returns the latents and one reconstruction from them."""
        latents, _ = self.dictionary.encode_latents(batch.x, self.k)
        assert isinstance(latents, SparseLatents)
        return latents, [Attempt("l2_loss", 1.0, self.dictionary.decode_latents(latents, batch.x))]

    def least(self, latents: SparseLatents) -> Float[Tensor, ""]:
        """Returns the least positive value kept in the batch; infinite if there is none."""
        values = latents.values.detach().flatten()
        nothing = values.new_full((1,), torch.inf)
        return torch.cat([nothing, torch.where(values > 0, values, torch.inf)]).amin()

    def combined(self, least: Float[Tensor, "parts"]) -> Float[Tensor, ""]:
        """Returns what `least` of the whole batch is, from that of its parts; infinite where there is none."""
        return least.amin()

    @contextlib.contextmanager
    def whole_batch(self, x: Float[Tensor, "batch activation_dim"]) -> Iterator[None]:
        """Finds for BatchTopK the least value that the whole batch keeps, where it is taken in in parts."""
        coders = [(p, p.coder.nonlinearity) for p in self.dictionary.coders()]
        chosen = [(p, nonlinearity) for p, nonlinearity in coders if isinstance(nonlinearity, BatchTopK)]
        parts = x.chunk(self.settings.micro_acc_steps)
        if not chosen or len(parts) == 1:
            yield
            return
        if not self._prepared:
            raise ConfigError(
                "A batch in parts needs biases to choose by: call initialize with a sample first, as trainSAE does."
            )
        for part, nonlinearity in chosen:
            nonlinearity.cut = self._cut(part, parts)
        try:
            yield
        finally:
            for _, nonlinearity in chosen:
                nonlinearity.cut = None

    @torch.no_grad()
    def _cut(self, part: CoderSlice, parts: Sequence[Tensor]) -> Float[Tensor, ""]:
        n_kept = self.k * sum(len(x) for x in parts)
        values = []
        for x in parts:
            x, _ = replace_nonfinite(x.to(self.device))
            most = min(-(-n_kept // max(len(x), 1)), part.coder.dict_size)  # all that is kept could be in one part
            latents, _ = part.coder.encode_latents(upcast(x[:, part.reads]), most)
            assert isinstance(latents, SparseLatents)
            values.append(self._ranked(latents, part).flatten())
        found = torch.cat(values)
        if not len(found):
            return torch.full((), torch.inf, device=self.device)
        return found.topk(min(n_kept, len(found))).values.amin()

    def prepare(self, x: Float[Tensor, "n activation_dim"], y: Float[Tensor, "n output_dim"]) -> None:
        variance = (y - y.mean(0)).pow(2).sum(-1).mean()
        self.loss_scale = torch.where(variance > 0, 1 / variance, 1.0)  # a constant input has nothing to explain
        super().prepare(x, y)

    def reconstruct(self, batch: Batch) -> Loss:
        y = upcast(batch.y)  # errors are squared and summed: in less than float32 they would overflow or vanish
        latents, attempts = self.attempts(Batch(upcast(batch.x), y))
        terms = {attempt.name: squared_error(attempt.outputs, y) for attempt in attempts}
        total = self.error_weight * self.loss_scale * sum(attempt.weight * terms[attempt.name] for attempt in attempts)
        return Loss(total, terms, Reconstruction(attempts[0].outputs, latents))

    def observe(self, gathered: list[tuple[Batch, Loss]]) -> None:
        super().observe(gathered)
        for part in self.dictionary.coders():
            if isinstance(part.coder.nonlinearity, ThresholdedTopK):
                whole = len(list(self.dictionary.coders())) == 1
                found = [self._least_of(loss, part, whole) for _, loss in gathered]
                self._learn_threshold(part.coder.nonlinearity, torch.stack(found))

    def metrics(self) -> dict[str, Float[Tensor, ""]]:
        figures = super().metrics()
        if figures:
            figures["effective_l0"] = torch.tensor(self.k)
        return figures

    def _least_of(self, loss: Loss, part: CoderSlice, whole: bool) -> Tensor:
        latents = loss.reconstruction.latents
        assert isinstance(latents, SparseLatents)
        own = latents if whole else slice_latents(latents, part.latents.start, part.latents.stop)
        return self.least(SparseLatents(self._ranked(own, part), own.support))

    def _ranked(self, latents: SparseLatents, part: CoderSlice) -> Tensor:
        """Returns what latents are ranked by, and compared with thresholds."""
        values = latents.values.detach()
        return values * gather_per_latent(part.coder.decoder_norms(), latents) if part.coder.rank_by_norm else values

    def _learn_threshold(self, nonlinearity: ThresholdedTopK, found: Float[Tensor, "parts"]) -> None:
        """Moves the threshold toward the least value kept."""
        threshold = nonlinearity.threshold
        since = self.step - self.settings.threshold_start_step
        lowest = self.combined(found)
        # the weight of an average over all steps since the start, until the decay sets in: no bias toward the first
        weight = max(1 - self.settings.threshold_beta, 1 / (since + 1)) if since >= 0 else 1.0
        moved = torch.lerp(threshold, lowest.to(threshold.dtype), weight)
        threshold.copy_(torch.where(lowest.isfinite(), moved, threshold))
