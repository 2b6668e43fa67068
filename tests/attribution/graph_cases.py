"""Transcoders of the layers of tiny models, and the frozen model by hand."""

import torch

from dictionary_learning import load_model
from dictionary_learning.dictionaries import CrossLayerTranscoder, Dictionary, DictionaryInfo, Transcoder
from tests import tiny
from tests.contracts.dictionary_cases import moved

TEXT = "w1 w2 w3 w4 w9"
MLP = {
    "gpt2": "transformer.h.{}.mlp", "neox": "gpt_neox.layers.{}.mlp", "llama": "model.layers.{}.mlp",
    "gemma3": "model.layers.{}.mlp", "qwen3": "model.layers.{}.mlp",
}  # fmt: skip


def model(family: str = "llama"):
    return load_model(tiny.model(family).eval().double(), tokenizer=tiny.tokenizer(bos=False))


def without_biases(dictionary: Dictionary) -> Dictionary:
    with torch.no_grad():
        for name, parameter in dictionary.named_parameters():
            if name.split(".")[-1].startswith("b_"):
                parameter.zero_()
    return dictionary


def transcoders(
    family: str = "llama", *, layers=range(tiny.LAYERS), biases: bool = False, name: str = "top_k", skip: bool = True
) -> list[Dictionary]:
    """Returns random transcoders in float64, which know their sites."""
    found = []
    for layer in layers:
        torch.manual_seed(layer)
        options = {"name": name, "k": 6} if name == "top_k" else {"name": name}
        one = moved(Transcoder(tiny.DIM, 48, options, skip=skip))
        path = MLP[family].format(layer)
        one.info = DictionaryInfo(sites=(f"{path}:in",), target_sites=(path,))
        found.append((one if biases else without_biases(one)).double().eval())
    return found


def cross_layer(family: str = "llama", *, biases: bool = False) -> Dictionary:
    torch.manual_seed(0)
    one = moved(CrossLayerTranscoder((tiny.DIM,) * tiny.LAYERS, 48 * tiny.LAYERS, {"name": "top_k", "k": 6}))
    paths = [MLP[family].format(layer) for layer in range(tiny.LAYERS)]
    one.info = DictionaryInfo(sites=tuple(f"{path}:in" for path in paths), target_sites=tuple(paths))
    return (one if biases else without_biases(one)).double().eval()


class FrozenLlama:
    """The linear map that is left of a Llama, in float64 and with matrices alone.

    What is added to the residual stream by each layer's MLP is given; attention patterns and the
    norms' factors are those of a run of the model itself.
    """

    def __init__(self, traced, ids):
        self.module = traced._original
        self.module.set_attn_implementation("eager")
        hidden, seen = {}, {}

        def keep(name):
            def hook(module, args, kwargs, output):
                seen[name] = args[0] if args else kwargs["hidden_states"]

            return hook

        handles = [
            part.register_forward_hook(keep(name), with_kwargs=True)
            for name, part in self.module.named_modules()
            if name.endswith("norm")
        ]
        with torch.no_grad():
            out = self.module(ids, output_attentions=True)
        for handle in handles:
            handle.remove()
        del hidden
        self.patterns = [pattern[0] for pattern in out.attentions]  # (heads, ctx, ctx)
        self.factors = {}
        for name, x in seen.items():
            norm = self.module.get_submodule(name)
            scale = (x[0].double().square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()
            self.factors[name] = scale * norm.weight.detach()

    def norm(self, name, x):
        return x * self.factors[name]

    def attention(self, layer, x):
        part = self.module.model.layers[layer].self_attn
        value = (x @ part.v_proj.weight.T).unflatten(-1, (-1, part.head_dim)).transpose(0, 1)  # (kv heads, ctx, dim)
        value = value.repeat_interleave(len(self.patterns[layer]) // len(value), 0)
        return (self.patterns[layer].double() @ value).transpose(0, 1).flatten(1) @ part.o_proj.weight.T

    def reads(self, start, outputs, skips=None):
        """Returns what each MLP and the unembedding read, when outputs (layers, ctx, dim) are added."""
        x, found = start, []
        for layer in range(len(outputs)):
            prefix = f"model.layers.{layer}"
            x = x + self.attention(layer, self.norm(f"{prefix}.input_layernorm", x))
            read = self.norm(f"{prefix}.post_attention_layernorm", x)
            found.append(read)
            x = x + outputs[layer] + (0 if skips is None else read @ skips[layer].T)
        return [*found, self.norm("model.norm", x)]
