"""Sparse coders with the interface of EleutherAI's sparsify: kept latents by value and index."""

import json
import os
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn

from dictionary_learning.compat.sparsify.config import SparseCoderConfig
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import CheckpointError, ConfigError
from dictionary_learning.interop._files import Files
from dictionary_learning.interop._loading import find_files, load_dictionary
from dictionary_learning.interop._places import sites_in
from dictionary_learning.interop._safe import read_json, read_safetensors
from dictionary_learning.interop._sparsify import Sparsify
from dictionary_learning.sites import natural_key

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
_WIDE = 4


class EncoderOutput(NamedTuple):
    """The latents that are kept, and all before the selection."""

    top_acts: Float[Tensor, "*batch k"]
    top_indices: Int[Tensor, "*batch k"]
    pre_acts: Float[Tensor, "*batch dict_size"]
    """After ReLU."""


class ForwardOutput(NamedTuple):
    """A reconstruction and its losses."""

    sae_out: Float[Tensor, "*batch dim"]
    latent_acts: Float[Tensor, "*batch k"]
    latent_indices: Int[Tensor, "*batch k"]
    fvu: Float[Tensor, ""]
    """The squared error over the variance of the targets."""
    auxk_loss: Float[Tensor, ""]
    multi_topk_fvu: Float[Tensor, ""]


class SparseCoder(nn.Module):
    """An encoder, the k largest latents, and a decoder.

    With `decoder=False` there is no W_dec: latents only, in half the memory.
    """

    def __init__(
        self,
        d_in: int,
        cfg: SparseCoderConfig,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        *,
        decoder: bool = True,
    ):
        super().__init__()
        self.cfg, self.d_in, self.num_latents = cfg, d_in, cfg.size(d_in)
        if cfg.activation == "groupmax" and self.num_latents % cfg.k:
            raise ConfigError(f"groupmax needs groups of one size; k={cfg.k} does not divide {self.num_latents}.")
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.encoder = nn.Linear(d_in, self.num_latents, **place)
        nn.init.zeros_(self.encoder.bias)
        self.W_dec: nn.Parameter | None = None
        if decoder:
            rows = self.encoder.weight.detach().clone()
            self.W_dec = nn.Parameter(torch.zeros_like(rows) if cfg.transcode else rows)
            if cfg.normalize_decoder and not cfg.transcode:
                self.set_decoder_norm_to_unit_norm()
        self.b_dec = nn.Parameter(torch.zeros(d_in, **place))
        self.W_skip = nn.Parameter(torch.zeros(d_in, d_in, **place)) if cfg.skip_connection else None

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.encoder.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters."""
        return self.encoder.weight.dtype

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> EncoderOutput:
        """Returns the latents that are kept, in no order."""
        x = x.to(self.dtype)
        pre = self.encoder(x if self.cfg.transcode else x - self.b_dec).relu()
        if self.cfg.activation == "topk":
            values, indices = pre.topk(min(self.cfg.k, self.num_latents), dim=-1, sorted=False)
        else:
            size = self.num_latents // self.cfg.k
            values, inside = pre.unflatten(-1, (self.cfg.k, size)).max(dim=-1)
            indices = inside + size * torch.arange(self.cfg.k, device=inside.device)
        return EncoderOutput(values, indices, pre)

    def decode(
        self, top_acts: Float[Tensor, "*batch k"], top_indices: Int[Tensor, "*batch k"]
    ) -> Float[Tensor, "*batch d_in"]:
        """Returns the reconstruction, without W_skip x."""
        return self._written(top_acts, top_indices) + self.b_dec

    def forward(
        self,
        x: Float[Tensor, "*batch d_in"],
        y: Float[Tensor, "*batch d_in"] | None = None,
        *,
        dead_mask: Tensor | None = None,
        total_variance: Tensor | None = None,
    ) -> ForwardOutput:
        """Returns the reconstruction of x, or of y from x, and its losses."""
        acts, indices, pre = self.encode(x)
        y = (x if y is None else y).to(self.dtype)
        out = self.decode(acts, indices)
        if self.W_skip is not None:
            out = out + x.to(self.dtype) @ self.W_skip.T
        error, nothing = y - out, out.new_zeros(())
        variance = (y - y.flatten(0, -2).mean(0)).pow(2).sum() if total_variance is None else total_variance
        auxk = nothing
        if dead_mask is not None and bool(dead_mask.any()):
            n_dead, usual = int(dead_mask.sum()), self.d_in // 2
            dead, at = pre.masked_fill(~dead_mask, -torch.inf).topk(min(n_dead, usual), dim=-1, sorted=False)
            missed = self._written(dead, at) - error.detach()
            auxk = min(n_dead / usual, 1.0) * missed.pow(2).sum() / variance
        if not self.cfg.multi_topk:
            return ForwardOutput(out, acts, indices, error.pow(2).sum() / variance, auxk, nothing)
        # as there: what is returned is the wider reconstruction
        wide = pre.topk(min(_WIDE * self.cfg.k, self.num_latents), dim=-1, sorted=False)
        wide_out = self.decode(wide.values, wide.indices)
        wide_fvu = (wide_out - y).pow(2).sum() / variance
        return ForwardOutput(wide_out, wide.values, wide.indices, error.pow(2).sum() / variance, auxk, wide_fvu)

    @torch.no_grad()
    def set_decoder_norm_to_unit_norm(self) -> None:
        """Gives decoder rows unit norm."""
        rows = self._rows()
        rows.div_(rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny))

    @torch.no_grad()
    def remove_gradient_parallel_to_decoder_directions(self) -> None:
        """Projects the decoder's gradient orthogonal to its rows, which have unit norm."""
        rows = self._rows()
        if rows.grad is not None:
            rows.grad -= (rows.grad * rows).sum(1, keepdim=True) * rows

    def save_to_disk(self, path: str | os.PathLike[str]) -> None:
        """Writes `cfg.json` and `sae.safetensors`."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps({**self.cfg.to_dict(), "d_in": self.d_in}))

    def to_dictionary(self) -> Dictionary:
        """Returns a dictionary of this package, which evaluation and interventions take."""
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            self.save_to_disk(folder)
            return load_dictionary(folder, self.device, format="sparsify")

    @classmethod
    def of_dictionary(cls, dictionary: Dictionary) -> "SparseCoder":
        """Returns the coder that computes what a dictionary computes.

        Raises:
            CheckpointError: sparsify has no such dictionary.
        """
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            Sparsify().check(dictionary)
            Sparsify().write(dictionary, Path(folder), dictionary.info.to_config())
            return cls.load_from_disk(folder, dictionary.device)

    @staticmethod
    def load_from_disk(
        path: str | os.PathLike[str], device: str | torch.device = "cpu", *, decoder: bool = True
    ) -> "SparseCoder":
        """Loads a coder from its folder."""
        return _loaded(find_files(path), device, decoder)

    @staticmethod
    def load_from_hub(
        name: str, hookpoint: str | None = None, device: str | torch.device = "cpu", *, decoder: bool = True
    ) -> "SparseCoder":
        """Loads the coder of a hookpoint from the hub, or from a local run."""
        return _loaded(find_files(name, site=hookpoint), device, decoder)

    @staticmethod
    def load_many(
        name: str,
        local: bool = False,
        layers: list[str] | None = None,
        device: str | torch.device = "cpu",
        *,
        decoder: bool = True,
        pattern: str | None = None,
    ) -> dict[str, "SparseCoder"]:
        """Loads the coders of a run by hookpoint, in natural order.

        Args:
            name: The repository, or the folder of the run.
            local: Whether it is a folder only.
            layers: The hookpoints that are loaded; all by default.
            device: Where to.
            decoder: Whether with their decoders.
            pattern: The hookpoints that are loaded, as "layers.*".
        """
        if local and not os.path.isdir(name):
            raise CheckpointError(f"There is no folder '{name}'. Give the folder of a run, or local=False.")
        files = find_files(name, many=True)
        found = sites_in(files)
        chosen = sorted(found if layers is None else layers, key=natural_key)
        missing = [one for one in chosen if one not in found]
        if missing:
            raise CheckpointError(f"'{name}' has no {', '.join(missing)}; it has {', '.join(found)}.")
        chosen = [one for one in chosen if pattern is None or fnmatchcase(one, pattern)]
        return {one: _loaded(files.at(found[one]), device, decoder) for one in chosen}

    def _rows(self) -> nn.Parameter:
        if self.W_dec is None:
            raise ConfigError("This coder was loaded with decoder=False, and has no W_dec. Load it with its decoder.")
        return self.W_dec

    def _written(self, acts: Tensor, indices: Tensor) -> Tensor:
        dense = acts.new_zeros(*acts.shape[:-1], self.num_latents).scatter(-1, indices, acts)
        return dense.to(self.dtype) @ self._rows()


Sae = SparseCoder


def _loaded(files: Files, device: str | torch.device, decoder: bool) -> SparseCoder:
    if not files.has(CONFIG) or not files.has(WEIGHTS):
        raise CheckpointError(
            f"'{files}' has no {CONFIG} and {WEIGHTS}.{files.listing()} Give the folder of a coder, or its "
            "hookpoint; dictionaries of other formats are read by dictionary_learning.load_dictionary."
        )
    config = read_json(files.path(CONFIG))
    if config.get("signed"):
        raise CheckpointError(f"'{files}' keeps latents by absolute value, as sparsify did in summer 2024. Use "
                              "dictionary_learning.load_dictionary.")  # fmt: skip
    tensors = read_safetensors(files.path(WEIGHTS))
    dtype = next(iter(tensors.values())).dtype
    cfg = SparseCoderConfig.from_dict(config, drop_extra_fields=True)
    made = SparseCoder(int(config["d_in"]), cfg, "meta", dtype, decoder=decoder)
    own = {name: tensor for name, tensor in tensors.items() if decoder or name != "W_dec"}
    try:
        made.load_state_dict(own, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"The tensors of '{files}' do not fit its {CONFIG}: {error}") from error
    return made.to(device)
