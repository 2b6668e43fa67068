"""Which latents are dead."""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

_LOOK_EVERY = 100
"""Steps between two copies of the dead latents from an accelerator to the host."""


class DeadLatents:
    """Counts for each latent the tokens since it last fired, that is, since it was positive.

    On a CPU, dead latents are known after each step. The host does not wait for an accelerator:
    every 100 steps it starts an asynchronous copy, and uses it 100 steps later, when it has
    arrived.

    Args:
        dict_size: Number of latents.
        after_tokens: Tokens without firing after which a latent is dead.
        device: Device of the latents.
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
        self._window_tokens = 0
        self._n_windows = 0
        self.tokens_since_fired = torch.zeros(dict_size, dtype=torch.long, device=device)
        self.n_tokens = 0
        """Tokens so far, on the host: nothing is computed while no latent can be dead."""
        self._step = 0
        self._copied: Tensor | None = None
        self._arrived: torch.cuda.Event | None = None
        self._indices: Tensor | None = None

    def observe(self, firings: Int[Tensor, "dict_size"], n_tokens: int) -> None:
        """Adds a step, given the number of its tokens on which each latent fired."""
        self.n_tokens += n_tokens
        self.tokens_since_fired.add_(n_tokens).masked_fill_(firings > 0, 0)
        if self.min_frequency is not None:
            self._counts += firings
            self._window_tokens += n_tokens
            if self._window_tokens >= self.window:
                self._rare = self._counts < self.min_frequency * self._window_tokens
                self._counts.zero_()
                self._window_tokens, self._n_windows = 0, self._n_windows + 1
        if self.n_tokens > self.after_tokens or self._n_windows:
            if firings.device.type == "cpu":
                self._indices = self.mask.nonzero().squeeze(1)
            elif self._step % _LOOK_EVERY == 0:
                self._look()
        self._step += 1

    def revive(self, latents: Int[Tensor, "n"]) -> None:
        """Marks latents as alive, such as those that were resampled."""
        self.tokens_since_fired[latents] = 0
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
        self._indices = None if state["indices"] is None else state["indices"].to(self.tokens_since_fired.device)

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
