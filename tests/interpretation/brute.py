"""Contexts of latents by brute force: a plain hook, dense latents, and one latent at a time."""

import torch
from torch import Tensor

from dictionary_learning import TokenFilter
from dictionary_learning.data import TokenBatch, as_token_stream
from tests import tiny

CTX = 16


def contexts(texts, n_tokens: int, tokenizer=None, ctx: int = CTX, batch: int = 4, **options) -> TokenBatch:
    """Returns the contexts that a pass reads, as one batch."""
    stream = as_token_stream(texts, tokenizer or tiny.tokenizer(), ctx_len=ctx, **options)
    parts, n = [], 0
    while n < n_tokens and (part := stream.take(batch)) is not None:
        parts.append(part)
        n += int(part.attention_mask.sum())
    wide = [
        [torch.nn.functional.pad(one, (0, ctx - one.shape[1])) for one in (*p, p.document, p.position)] for p in parts
    ]
    return TokenBatch(*(torch.cat(one) for one in zip(*wide, strict=True)))


def activations(module: torch.nn.Module, path: str, tokens: TokenBatch, side: str = "out") -> Tensor:
    """Returns the activations at a module (contexts, ctx, dim)."""
    seen = []

    def out(_, args, output):
        seen.append(args[0] if side == "in" else output[0] if isinstance(output, tuple) else output)

    handle = module.get_submodule(path).register_forward_hook(out)
    with torch.no_grad():
        module(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask.long())
    handle.remove()
    return seen[0]


def dense_latents(dictionary, x: Tensor, keep: Tensor) -> Tensor:
    """Returns the positive latents (contexts, ctx, dict_size); 0 where tokens do not count."""
    with torch.no_grad():
        found = dictionary.encode(x).clamp_min(0)
    return found * keep.unsqueeze(-1)


def usual_keep(tokens: TokenBatch, special=(0,)) -> Tensor:
    """Returns the tokens that count by default."""
    return TokenFilter(exclude_ids=special, exclude_first=True).token_mask(tokens)


def window(tokens: TokenBatch, latents: Tensor, row: int, column: int, before: int, after: int):
    """Returns ids and activations of a window."""
    columns = [c for c in range(column - before, column + after + 1)
               if 0 <= c < tokens.input_ids.shape[1] and tokens.attention_mask[row, c]]  # fmt: skip
    return tokens.input_ids[row, columns], latents[row, columns]
