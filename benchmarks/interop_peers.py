"""Whether the packages themselves read what this package writes for them, and compute the same.

Needs their environments, as benchmarks/peers/setup.sh makes them under $PEERS.
usage: python benchmarks/interop_peers.py [saelens] [sparsify] [dl]
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from common import PEERS, ROOT
from safetensors.torch import save_file

from dictionary_learning import write_dictionary
from dictionary_learning.dictionaries import (
    AbsTopKSAE,
    AutoEncoder,
    AutoEncoderTopK,
    BatchTopKSAE,
    Dictionary,
    GatedAutoEncoder,
    GroupMaxSAE,
    JumpReluAutoEncoder,
    MatryoshkaBatchTopKSAE,
    Normalized,
    SkipAutoencoder,
    SparseAutoencoder,
    Transcoder,
    fold_decoder_norm_,
)
from dictionary_learning.experimental.temporal import TemporalAutoencoder

DIM, SIZE, K = 24, 96, 6
TOP_K = {"name": "top_k", "k": K}
JUMP = {"name": "jump_relu", "initial_threshold": 0.3}
PURSUIT = {"name": "stopped_pursuit", "k": K, "residual_threshold": 0.5}
Case = Callable[[], Dictionary]
COMMON: dict[str, Case] = {
    "relu": lambda: folded(AutoEncoder(DIM, SIZE)),  # dictionary_learning gives rows unit norm when it loads
    "top_k": lambda: AutoEncoderTopK(DIM, SIZE, K),
    "batch_top_k": lambda: BatchTopKSAE(DIM, SIZE, K),
    "matryoshka": lambda: MatryoshkaBatchTopKSAE(DIM, SIZE, K, [32, 64]),
    "jump_relu": lambda: JumpReluAutoEncoder(DIM, SIZE, 0.3),
    "gated": lambda: GatedAutoEncoder(DIM, SIZE),
}
CASES: dict[str, tuple[str, dict[str, Case]]] = {
    "saelens": (
        "sae_lens",
        {
            **COMMON,
            "abs_top_k": lambda: AbsTopKSAE(DIM, SIZE, K),
            "relu_uncentered": lambda: AutoEncoder(DIM, SIZE, apply_b_dec_to_input=False),
            "pursuit": lambda: SparseAutoencoder(DIM, SIZE, PURSUIT),
            "layer_norm": lambda: Normalized(AutoEncoderTopK(DIM, SIZE, K), "layer_norm_eps_in"),
            "constant_norm": lambda: Normalized(AutoEncoder(DIM, SIZE), "constant_norm_rescale"),
            "transcoder": lambda: Transcoder(DIM, SIZE, {"name": "relu"}, output_dim=20),
            "skip_transcoder": lambda: Transcoder(DIM, SIZE, {"name": "relu"}, skip=True),
            "jump_relu_transcoder": lambda: Transcoder(DIM, SIZE, JUMP),
            "jump_relu_skip_transcoder": lambda: Transcoder(DIM, SIZE, JUMP, skip=True),
            "temporal": lambda: TemporalAutoencoder(
                DIM, SIZE, K, n_heads=2, n_layers=2, bottleneck_factor=8, scale=2.0
            ),
        },
    ),
    "sparsify": (
        "sparsify",
        {
            "top_k": lambda: AutoEncoderTopK(DIM, SIZE, K),
            "group_max": lambda: GroupMaxSAE(DIM, SIZE, K),
            "skip": lambda: SkipAutoencoder(DIM, SIZE, TOP_K),
            "transcoder": lambda: Transcoder(DIM, SIZE, TOP_K),
            "skip_transcoder": lambda: Transcoder(DIM, SIZE, TOP_K, skip=True),
        },
    ),
    "dl": ("dictionary_learning", COMMON),
}


def folded(dictionary: AutoEncoder) -> AutoEncoder:
    """Returns the dictionary with decoder rows of unit norm."""
    fold_decoder_norm_(dictionary)
    return dictionary


def written(make: Case, to: str, folder: Path) -> None:
    """Writes a dictionary with no tensor at its initial value, and what it makes of some activations."""
    dictionary = make().requires_grad_(False)
    for name, tensor in dictionary.state_dict().items():
        if name.endswith("threshold") and tensor.ndim == 0:
            tensor.fill_(0.6)
        elif not name.endswith("W_dec"):
            tensor.add_(0.1 * torch.randn_like(tensor))
    x = torch.randn(4, 16, DIM)
    write_dictionary(dictionary, folder, to)
    io = {"x": x, "latents": dictionary.encode(x), "reconstruction": dictionary(x)}
    save_file({name: tensor.contiguous() for name, tensor in io.items()}, folder / "io.safetensors")


def check(peer: str) -> bool:
    """Writes the cases, lets the peer read them and says how far apart they are."""
    python = PEERS / peer / "bin" / "python"
    if not python.is_file():
        print(f"{peer}: no {python}; make it with benchmarks/peers/setup.sh {peer}")
        return True
    to, cases = CASES[peer]
    with tempfile.TemporaryDirectory() as folder:
        for name, make in cases.items():
            torch.manual_seed(0)
            written(make, to, Path(folder) / name)
        command = [str(python), str(ROOT / "benchmarks" / "peers" / "interop_check.py"), peer, folder]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    if done.returncode:
        print(f"{peer}: {done.stderr[-1000:]}")
        return False
    good = True
    for name, result in json.loads(done.stdout.splitlines()[-1]).items():
        if "error" in result:
            print(f"{peer:9} {name:26} {result['error']}")
            good = False
            continue
        fits = max(result["latents"], result["reconstruction"]) < 1e-5 and result["same support"]
        good = good and fits
        shown = f"latents {result['latents']:.1e}  reconstruction {result['reconstruction']:.1e}"
        print(f"{peer:9} {name:26} {shown}  {'same' if fits else 'DIFFERENT'}")
    return good


if __name__ == "__main__":
    results = [check(peer) for peer in sys.argv[1:] or CASES]
    sys.exit(0 if all(results) else 1)
