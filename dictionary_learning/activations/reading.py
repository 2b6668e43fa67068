"""From text, a model and the name of a site to rows: what a buffer and a cache are built on."""

from typing import Any, get_args

from dictionary_learning.activations.filters import TokenFilter
from dictionary_learning.activations.prefetch import Prefetcher
from dictionary_learning.activations.reader import RowReader, RowSource
from dictionary_learning.data import TokenStream, as_context_source
from dictionary_learning.errors import ConfigError
from dictionary_learning.models import load_model
from dictionary_learning.sites import Sides


def row_reader(
    data: Any,
    model: Any,
    submodule: Any,
    *,
    io: Sides = "out",
    ctx_len: int = 128,
    remove_bos: bool = True,
    add_special_tokens: bool = True,
    max_activation_norm_multiple: float | None = 10.0,
    pack: bool = True,
    seqpos_slice: tuple[int | None, ...] | None = None,
    text_column: str = "text",
    repeat: bool = False,
) -> RowReader:
    """Returns what reads rows of activations; the arguments are those of `ActivationBuffer`.

    Args:
        data: text, or a stream of contexts, which then decides on `ctx_len`, `pack` and special tokens.
        model: the model, or its name.
        submodule: where activations are taken.
        io: the side of submodules that name none: `in`, `out`, `in_and_out` for both, or `heads`.
        ctx_len: tokens in a context.
        remove_bos: leaves out BOS, separators, and the first token of each context.
        add_special_tokens: whether BOS or separators are put between documents.
        max_activation_norm_multiple: leaves out tokens with a larger norm, in medians.
        pack: full contexts of joined documents.
        seqpos_slice: the positions of a context that count.
        text_column: the column that holds the text.
        repeat: whether the text begins again when it has ended.

    Raises:
        ConfigError: an argument cannot be used.
        SiteError: a submodule is not in the model.
    """
    if io not in get_args(Sides):
        raise ConfigError(f"Got io={io!r}; it is one of: {', '.join(get_args(Sides))}.")
    traced = load_model(model)
    stream = as_context_source(
        data,
        traced.tokenizer,
        ctx_len=ctx_len,
        model=traced,
        text_column=text_column,
        end_of_data="repeat" if repeat else "stop",
        pack=pack,
        add_special_tokens=add_special_tokens,
    )
    rule = TokenFilter(
        exclude_ids=stream.special_ids if remove_bos else (),
        exclude_first=remove_bos and isinstance(stream, TokenStream),
        seqpos_slice=seqpos_slice,
        max_norm_multiple=max_activation_norm_multiple,
    )
    return RowReader(traced, stream, traced.sites(submodule, io), rule, repeat=repeat)


def ahead(reader: RowReader, n_contexts: int, prefetch: int | None) -> RowSource:
    """Returns the reader, or one that reads ahead in a thread.

    Args:
        reader: reads rows.
        n_contexts: contexts in a forward pass.
        prefetch: forward passes made ahead; by default 1 where the model is on a GPU, else 0.
    """
    depth = int(reader.model.device.type == "cuda") if prefetch is None else prefetch
    return Prefetcher(reader, n_contexts, depth) if depth else reader
