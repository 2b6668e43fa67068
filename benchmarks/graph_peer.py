"""Whether circuit-tracer finds the same attribution graph, prunes it alike, and reads our file.

A small Llama and its transcoders are written to a folder. circuit-tracer loads both, computes its
graph, and compares it with ours, edge by edge. It prunes our graph, and compares the nodes and
links with those of our JSON, which its own classes have to accept.

Needs its environment, as benchmarks/peers/setup.sh makes it under $PEERS.
usage: python benchmarks/graph_peer.py
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from common import PEERS, ROOT
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dictionary_learning import load_model
from dictionary_learning.attribution import AttributionGraph, attribution_graph
from dictionary_learning.dictionaries import CrossLayerTranscoder, Dictionary, DictionaryInfo, Transcoder
from dictionary_learning.exports import write_attribution_graph, write_circuit_tracer

DIM, SIZE, LAYERS, VOCAB = 32, 96, 4, 60
PROMPT = "w5 w9 w20 w7 w33 w5"
TOLERANCE = 1e-4
JUMP_RELU = {"name": "jump_relu", "initial_threshold": 0.3}
MLPS = [f"model.layers.{layer}.mlp" for layer in range(LAYERS)]


def language_model(folder: Path) -> None:
    """Writes a random Llama, large enough in its weights that layers matter, and a tokenizer of words."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=DIM, intermediate_size=64, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=1, pad_token_id=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    made = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    made.save_pretrained(folder)
    words = {"<s>": 0, "</s>": 1, "<pad>": 2, **{f"w{n}": n + 3 for n in range(VOCAB - 3)}}
    split = Tokenizer(models.WordLevel(words, unk_token="w0"))
    split.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=split, **special).save_pretrained(folder)
    path = folder / "tokenizer_config.json"  # which names a class that the peer's older transformers lacks
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}))


def filled(dictionary: Dictionary) -> Dictionary:
    """Returns a dictionary with random biases, and decoders that matter."""
    with torch.no_grad():
        for name, tensor in dictionary.named_parameters():
            if "threshold" not in name:
                tensor.add_(0.2 * torch.randn_like(tensor))
    return dictionary.eval()


def cases() -> dict[str, list[Dictionary]]:
    """Returns sets of transcoders, all with JumpReLU."""
    torch.manual_seed(1)
    layers: list[Dictionary] = []
    for path in MLPS:
        one = filled(Transcoder(DIM, SIZE, JUMP_RELU))
        one.info = DictionaryInfo(sites=(f"{path}:in",), target_sites=(path,), model="tiny")
        layers.append(one)
    across = filled(CrossLayerTranscoder((DIM,) * LAYERS, SIZE * LAYERS, JUMP_RELU))
    across.info = DictionaryInfo(sites=tuple(f"{path}:in" for path in MLPS), target_sites=tuple(MLPS), model="tiny")
    return {"layers": layers, "cross_layer": [across]}


def tensors_of(graph: AttributionGraph) -> dict[str, torch.Tensor]:
    """Returns what the peer needs to build the graph."""
    latents = torch.stack([graph.layer, graph.position, graph.latent], 1)
    square = torch.zeros(graph.n_nodes, graph.n_nodes)
    square[graph.targets] = graph.weight.float()
    return {
        "latents": latents, "activation": graph.activation.float(), "adjacency": square, "input_ids": graph.input_ids,
        "logit_ids": graph.logit_ids, "probability": graph.probability.float(),
    }  # fmt: skip


def main() -> int:
    """Returns 0 if all agree, or there is no peer."""
    python = PEERS / "circuit-tracer" / "bin" / "python"
    if not python.is_file():
        print(f"no {python}; make it with benchmarks/peers/setup.sh circuit-tracer")
        return 0
    good = True
    for name, transcoders in cases().items():
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            language_model(folder / "model")
            write_circuit_tracer(transcoders, folder / "transcoders")
            model = load_model(str(folder / "model"), dtype="float32", device="cpu")
            graph = attribution_graph(model, transcoders, PROMPT, max_latents=None)
            save_file({n: t.contiguous() for n, t in tensors_of(graph).items()}, folder / "graph.safetensors")
            write_attribution_graph(graph, folder / "graphs", slug="one")
            command = [str(python), str(ROOT / "benchmarks" / "peers" / "graph_check.py"), str(folder), PROMPT]
            done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
        if done.returncode:
            print(f"{name}: {done.stderr[-2000:]}")
            good = False
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        fits = found["weights"] < TOLERANCE and found["activations"] < TOLERANCE and found["same graph"]
        good = good and fits
        print(f"{name:12} {'same' if fits else 'DIFFERENT'}  {found} {done.stderr[-300:] if not fits else ''}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
