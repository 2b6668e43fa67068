"""Models and dictionaries that attributions are tested on."""

import copy

import torch
from torch import nn

from dictionary_learning import load_model
from dictionary_learning.dictionaries import (
    AutoEncoder,
    AutoEncoderTopK,
    Dictionary,
    DictionaryInfo,
    HeadAutoencoders,
    IdentityDict,
    JumpReluAutoEncoder,
    Normalized,
    Transcoder,
)
from tests import tiny
from tests.contracts.dictionary_cases import moved

LAYERS = [f"model.layers.{n}" for n in range(3)]
TEXTS, OTHERS = ["w1 w2 w3 w4 w9", "w7 w8 w4"], ["w4 w2 w6 w4 w9", "w7 w3 w4"]
TOP_K = {"name": "top_k", "k": 6}


def llama():
    return load_model(copy.deepcopy(tiny.model()).eval().double(), tokenizer=tiny.tokenizer(bos=False))


class Linear(nn.Module):
    """Linear in its embeddings: each layer mixes the tokens before, and all dimensions."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(tiny.VOCAB, 16)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.head = nn.Linear(16, tiny.VOCAB)

    def forward(self, input_ids):
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = x + layer(x).cumsum(1)
        return self.head(x)


def placed(build, site: str, target: str | None = None, seed: int = 0) -> Dictionary:
    """Returns a dictionary in float64 with random values, which knows its site."""
    torch.manual_seed(seed)
    dictionary = build()
    if not isinstance(dictionary, (IdentityDict, Normalized)):
        moved(dictionary)
    dictionary.info = DictionaryInfo(sites=(site,), target_sites=(target,) if target else ())
    return dictionary.double()


def normalized() -> Dictionary:
    return Normalized(moved(AutoEncoderTopK(16, 48, 6)), "layer_norm", scales=[2.0])


BUILD = {
    "top_k": lambda: placed(lambda: AutoEncoderTopK(16, 48, 6), LAYERS[1]),
    "relu": lambda: placed(lambda: AutoEncoder(16, 48), LAYERS[0]),
    "jump_relu": lambda: placed(lambda: JumpReluAutoEncoder(16, 48), f"{LAYERS[2]}:in"),
    "normalized": lambda: placed(normalized, LAYERS[1]),
    "identity": lambda: placed(lambda: IdentityDict(16), f"{LAYERS[1]}.mlp"),
    "heads": lambda: placed(lambda: HeadAutoencoders(16, 48, TOP_K, n_heads=2), f"{LAYERS[1]}:heads"),
    "transcoder": lambda: placed(
        lambda: Transcoder(16, 48, TOP_K, skip=True), f"{LAYERS[1]}.mlp:in", f"{LAYERS[1]}.mlp"
    ),
}
