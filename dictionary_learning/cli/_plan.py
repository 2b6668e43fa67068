"""`dictionary-learning plan`: what training on several devices would need, before it is started."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from dictionary_learning.cli._arguments import CommandArguments
from dictionary_learning.cli._options import CaptureArguments
from dictionary_learning.cli._output import write_result
from dictionary_learning.errors import ConfigError

_UNITS = {"": 1, "k": 2**10, "m": 2**20}
_MEMORY = 140 * 10**9
"""Bytes of an H200."""
_ROW_BYTES = 2
"""Bytes of a value of the activations: language models run in bfloat16 on GPUs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanArguments(CommandArguments):
    """Shows memory, traffic and time of a training step for each placement on several GPUs.

    The numbers are of a model: sizes, and the speeds of an H200 with NVLink. They leave out the
    language model. What auto would take is named first, and what does not fit last.
    """

    positional: ClassVar = ("model",)
    model: str
    """The language model: a name on the Hugging Face hub, a local folder, or a GGUF file."""
    sites: tuple[str, ...] = ()
    """Sites or patterns; by default the residual stream after each layer."""
    layers: tuple[int, ...] = ()
    """Numbers of layers, from 0, instead of sites."""
    layer_stride: int = 1
    """Every n-th layer, instead of sites."""
    dict_size: tuple[str, ...] = ("16k",)
    """Latents of a dictionary, as 65536, 64k or 1m; several train a dictionary of each size on each
    site."""
    k: int = 32
    """Latents that a token keeps."""
    batch_size: int = 32_768
    """Tokens in a training step, of all GPUs together."""
    gpus: tuple[int, ...] = (8,)
    """Numbers of GPUs."""
    tracing_ranks: int | None = None
    """How many of them only run the language model, for the others."""
    n_ctxs: int = 1024
    """Contexts in a shuffle buffer, with --tracing-ranks."""
    ctx_len: int = 128
    """Tokens in a context, with --tracing-ranks."""
    revision: str | None = None
    """The model's branch, tag or commit on the hub."""

    def run(self) -> None:
        from dictionary_learning._plain import as_bytes, counted  # which imports torch
        from dictionary_learning.models import load_model
        from dictionary_learning.parallel import Sizes, check_division, costs

        counts = [_count(text) for text in self.dict_size]
        if min(self.gpus, default=0) < 1:
            raise ConfigError(f"Got --gpus {' '.join(map(str, self.gpus))}; give numbers of at least 1.")
        for n in self.gpus if self.tracing_ranks is not None else ():
            check_division(n, self.tracing_ranks or 0)
        model = load_model(self.model, device="cpu", revision=self.revision)
        asked = CaptureArguments(sites=self.sites, layers=self.layers, layer_stride=self.layer_stride)
        widths = list(model.widths(asked.sites_of(model)).values())
        dictionaries = [Sizes(width, width, size, self.k) for size in counts for width in widths]
        row_bytes = sum(widths) * _ROW_BYTES
        parameters = sum(p.numel() for p in model.module.parameters())
        n_tracing = self.tracing_ranks or 0
        rows = [
            {
                "gpus": n,
                "placement": "none" if n - n_tracing == 1 else cost.placement,
                "memory_bytes": cost.memory,
                "sent_bytes": cost.sent,
                "step_seconds": cost.seconds,
                "tokens_per_second": cost.tokens_per_second(self.batch_size),
                "fits": cost.memory <= _MEMORY,
                **(self._of_tracing(n, n_tracing, parameters, row_bytes) if n_tracing else {}),
            }
            for n in self.gpus
            for cost in costs(dictionaries, self.batch_size, n - n_tracing, row_bytes, _MEMORY)[
                : 1 if n - n_tracing == 1 else None
            ]
        ]
        about = f"{counted(len(dictionaries), 'dictionary', 'dictionaries')} at {counted(len(widths), 'site')}, "
        about += f"steps of {self.batch_size:,} tokens"
        head = f"{'GPUs':>4}  {'placement':<10}  {'memory':>10}  {'sent':>10}  {'step':>9}  {'tokens/s':>10}"
        apart = {
            row[
                "gpus"
            ]: f"of {row['gpus']} GPUs, {n_tracing} trace: each holds {as_bytes(row['tracing_bytes'])} of model "
            f"and rows; the others, up to {as_bytes(row['host_bytes'])} of rows in main memory"
            for row in rows
            if n_tracing
        }
        write_result(rows, [about, head, *map(_line, rows), *apart.values()])

    def _of_tracing(self, n: int, n_tracing: int, parameters: int, row_bytes: int) -> dict[str, int]:
        """Returns what a rank that traces holds, and what another holds of rows sent ahead."""
        from dictionary_learning.parallel import n_shares

        shares, buffer = n_shares(n, n_tracing), self.n_ctxs * self.ctx_len * row_bytes
        model = parameters * _ROW_BYTES
        # half of each buffer is sent ahead
        return {
            "tracing_bytes": model + shares // n_tracing * buffer,
            "host_bytes": shares // (n - n_tracing) * buffer // 2,
        }


def _line(row: Mapping[str, Any]) -> str:
    from dictionary_learning._plain import as_bytes

    memory, sent = as_bytes(row["memory_bytes"]), as_bytes(row["sent_bytes"])
    return (
        f"{row['gpus']:>4}  {row['placement']:<10}  {memory:>10}  {sent:>10}  "
        f"{row['step_seconds'] * 1e3:>6.1f} ms  {row['tokens_per_second']:>10,.0f}"
        + ("" if row["fits"] else "  does not fit")
    )


def _count(text: str) -> int:
    """Returns a number of latents.

    Raises:
        ConfigError: It is none.
    """
    found = re.fullmatch(r"(\d+)([km]?)", text.strip().lower())
    if found is None or not int(found[1]):
        raise ConfigError(f"Got --dict-size {text}; give a number of latents, as 65536, 64k or 1m.")
    return int(found[1]) * _UNITS[found[2]]
