"""Directions of latents: what each reads, and what it writes, a few latents at a time."""

import itertools
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.dictionaries import Dictionary, Trainable
from dictionary_learning.dictionaries._wrapper import innermost
from dictionary_learning.errors import ConfigError

Matrix = Literal["decoder", "encoder"]


class Directions:
    """Rows of a dictionary's encoder or decoder, in float32.

    Args:
        dictionary: The dictionary.
        by: Which of the two.
        write: The number of one of the sites that the decoder writes; None for all, concatenated.

    Raises:
        ConfigError: The dictionary has no such directions, or writes fewer sites.
    """

    def __init__(self, dictionary: Dictionary, by: Matrix = "decoder", write: int | None = None):
        # factors of a token are the same for all its latents; refinement leaves directions alone
        dictionary = innermost(dictionary)
        if by not in ("decoder", "encoder"):
            raise ConfigError(f"Got by={by!r}; give 'decoder' or 'encoder'.")
        if not isinstance(dictionary, Trainable):
            raise ConfigError(f"A {type(dictionary).__name__} has no directions of latents. Give another dictionary.")
        self.dictionary, self.by, self.n = dictionary, by, dictionary.dict_size
        widths = dictionary.site_widths[1 if by == "decoder" else 0]
        self.columns = slice(0, sum(widths))
        if write is not None:
            if not -len(widths) <= write < len(widths):
                raise ConfigError(f"Got write={write}; the {type(dictionary).__name__} writes {len(widths)} sites.")
            ends = list(itertools.accumulate(widths))
            self.columns = slice(ends[write] - widths[write], ends[write])
        self.width = self.columns.stop - self.columns.start

    @torch.no_grad()
    def rows(self, start: int, stop: int) -> Float[Tensor, "latents dim"]:
        """Returns the directions of some latents."""
        out = torch.zeros(stop - start, self.width, device=self.dictionary.device)
        for part in self.dictionary.coders():
            first, last = max(start, part.latents.start), min(stop, part.latents.stop)
            own = part.writes if self.by == "decoder" else part.reads
            left, right = max(own.start, self.columns.start), min(own.stop, self.columns.stop)
            if first >= last or left >= right:
                continue
            weight = part.coder.W_dec if self.by == "decoder" else part.coder.W_enc
            block = weight[first - part.latents.start : last - part.latents.start, left - own.start : right - own.start]
            columns = slice(left - self.columns.start, right - self.columns.start)
            out[first - start : last - start, columns] = block.float()
        return out

    def unit_rows(self, start: int, stop: int) -> Float[Tensor, "latents dim"]:
        """Returns the same with unit norm; zeros stay."""
        return torch.nn.functional.normalize(self.rows(start, stop), dim=1)

    def all_unit_rows(self) -> Float[Tensor, "dict_size dim"]:
        """Returns those of all latents."""
        return self.unit_rows(0, self.n)
