"""Tiny models whose logits are not what their unembedding returns."""

import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from tests import tiny

_SIZES = {
    "vocab_size": tiny.VOCAB, "hidden_size": tiny.DIM, "num_hidden_layers": tiny.LAYERS, "intermediate_size": 32,
    "max_position_embeddings": tiny.POSITIONS, "num_attention_heads": 2, "num_key_value_heads": 1,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
FACTORS = {"granite": 0.25, "cohere": 0.125, "gemma2": 1.0}
"""By which each multiplies what its unembedding returns; the last has a cap of 1 too."""


def scaled(name: str) -> torch.nn.Module:
    """Returns a model with logits large enough for a cap to bend them."""
    torch.manual_seed(0)
    build = {
        "granite": lambda: GraniteForCausalLM(
            GraniteConfig(**_SIZES, logits_scaling=4.0, residual_multiplier=0.5, embedding_multiplier=3.0)
        ),
        "cohere": lambda: CohereForCausalLM(CohereConfig(**_SIZES, logit_scale=0.125)),
        "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**_SIZES, head_dim=8, final_logit_softcapping=1.0)),
    }
    made = build[name]()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return made.eval()
