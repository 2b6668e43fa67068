"""Small random models, a tokenizer, text and synthetic activations: everything a test needs, offline."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers  # names of its models are looked up where one is built: each is slow to import
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

DEVICE = os.environ.get("TEST_DEVICE", "cpu")
"""Where the tests of ops, and those of a GPU, run."""
VOCAB, DIM, LAYERS, POSITIONS = 97, 16, 3, 64
WORDS = [f"w{i}" for i in range(VOCAB - 3)]

_SHARED = {"vocab_size": VOCAB, "hidden_size": DIM, "num_hidden_layers": LAYERS, "max_position_embeddings": POSITIONS}
_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 32}
_IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_BUILD = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=VOCAB, n_embd=DIM, n_layer=LAYERS, n_head=2, n_positions=POSITIONS, **_IDS)
    ),
    "neox": lambda: transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(**_SHARED, num_attention_heads=2, intermediate_size=32, **_IDS)
    ),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**_SHARED, **_HEADS, **_IDS)),
    "gemma3": lambda: transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**_SHARED, **_HEADS, **_IDS)),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**_SHARED, **_HEADS, **_IDS)),
}
FAMILIES = list(_BUILD)
_WHOLE_HEADS = {"num_attention_heads": 2, "intermediate_size": 32}
_GPT = {"vocab_size": VOCAB, "n_embd": DIM, "n_layer": LAYERS, "n_head": 2, "n_positions": POSITIONS}
_MORE = {
    "mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**_SHARED, **_HEADS, **_IDS)),
    "mixtral": lambda: transformers.MixtralForCausalLM(transformers.MixtralConfig(**_SHARED, **_HEADS, **_IDS, num_local_experts=4)),
    "phi": lambda: transformers.PhiForCausalLM(transformers.PhiConfig(**_SHARED, **_WHOLE_HEADS, **_IDS)),
    "opt": lambda: transformers.OPTForCausalLM(
        transformers.OPTConfig(**_SHARED, num_attention_heads=2, ffn_dim=32, word_embed_proj_dim=DIM, **_IDS)
    ),
    "gptj": lambda: transformers.GPTJForCausalLM(transformers.GPTJConfig(**_GPT, rotary_dim=4, **_IDS)),
    "falcon": lambda: transformers.FalconForCausalLM(
        transformers.FalconConfig(vocab_size=VOCAB, hidden_size=DIM, num_hidden_layers=LAYERS, num_attention_heads=2, **_IDS)
    ),
    "bloom": lambda: transformers.BloomForCausalLM(transformers.BloomConfig(vocab_size=VOCAB, hidden_size=DIM, n_layer=LAYERS, n_head=2, **_IDS)),
    "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**_SHARED, **_WHOLE_HEADS, pad_token_id=2)),
    "roberta": lambda: transformers.RobertaForMaskedLM(transformers.RobertaConfig(**_SHARED, **_WHOLE_HEADS, **_IDS)),
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=VOCAB, d_model=DIM, d_kv=8, d_ff=32, num_layers=LAYERS, num_heads=2)
    ),
    "bart": lambda: transformers.BartForConditionalGeneration(
        transformers.BartConfig(
            vocab_size=VOCAB, d_model=DIM, encoder_layers=LAYERS, decoder_layers=LAYERS, encoder_ffn_dim=32, decoder_ffn_dim=32,
            encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=POSITIONS, **_IDS,
        )
    ),
    "mamba": lambda: transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=VOCAB, hidden_size=DIM, num_hidden_layers=LAYERS, **_IDS)
    ),
    "vit": lambda: transformers.ViTForImageClassification(
        transformers.ViTConfig(hidden_size=DIM, num_hidden_layers=LAYERS, **_WHOLE_HEADS, image_size=16, patch_size=8)
    ),
}  # fmt: skip
"""Models that few tests need."""
LAYER = {
    "gpt2": "transformer.h.1",
    "neox": "gpt_neox.layers.1",
    "llama": "model.layers.1",
    "gemma3": "model.layers.1",
    "qwen3": "model.layers.1",
}
"""The path of the middle layer."""
ATTENTION = {"gpt2": "attn", "neox": "attention", "llama": "self_attn", "gemma3": "self_attn", "qwen3": "self_attn"}
"""The name of a layer's attention, which returns a tuple."""


def model(family: str = "llama", seed: int = 0) -> "transformers.PreTrainedModel":
    """Returns a random model whose weights are large enough that layers matter."""
    torch.manual_seed(seed)
    built = {**_BUILD, **_MORE}[family]()
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return built


def tokenizer(bos: bool = True, padding_side: str = "right") -> "transformers.PreTrainedTokenizerFast":
    """Returns a tokenizer of words: w0 is 3, w1 is 4; BOS is 0, a falsy id, EOS is 1 and padding 2."""
    vocabulary = {"<s>": 0, "</s>": 1, "<pad>": 2, **{word: i for i, word in enumerate(WORDS, 3)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"eos_token": "</s>", "pad_token": "<pad>", **({"bos_token": "<s>"} if bos else {})}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, padding_side=padding_side, **special)


def documents(n: int = 20, longest: int = 40, seed: int = 0) -> list[str]:
    """Returns random documents of 1 to `longest` words."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (n,), generator=generator).tolist()
    return [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (m,), generator=generator).tolist()) for m in lengths]


def save_model(folder: str | Path, family: str = "llama") -> None:
    """Writes a model with its tokenizer, as its folder on the hub is."""
    model(family).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


class Planted:
    """Activations that are sparse sums of known directions.

    Args:
        dim: width.
        n_features: how many directions.
        density: share of tokens on which each is active, with a magnitude from 1 to 2.
        seed: of everything.
    """

    def __init__(self, dim: int = 32, n_features: int = 48, density: float = 0.06, seed: int = 0):
        self.generator = torch.Generator().manual_seed(seed)
        options = {"generator": self.generator, "device": "cpu"}
        self.features = torch.nn.functional.normalize(torch.randn(n_features, dim, **options), dim=-1)
        self.offset = torch.randn(dim, **options)
        self.density = density

    def batch(self, n: int) -> Tensor:
        """Returns n activations."""
        shape = (n, len(self.features))
        options = {"generator": self.generator, "device": "cpu"}
        active = torch.rand(shape, **options) < self.density
        return (active * (1 + torch.rand(shape, **options))) @ self.features + self.offset

    def batches(self, steps: int, n: int = 256) -> Iterator[Tensor]:
        """Yields batches of activations."""
        for _ in range(steps):
            yield self.batch(n)


def plain_id(value: object) -> str:
    """Returns a parameter as text without addresses, which differ between the processes of a test run."""
    return re.sub(r" at 0x\w+", "", str(value))
