"""The checkpoints that other packages wrote, and what those packages make of the same activations."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

FIXTURES = Path(__file__).parent.parent / "fixtures"
IO = FIXTURES / "io"
NAMES = sorted(p.relative_to(IO).with_suffix("").as_posix() for p in IO.rglob("*.safetensors"))
FACTS = {"third_party/qwen_scope": {"k": 4}, "third_party/llama_scope_r1": {"scale": 0.75}}
"""What the files do not hold: k is in a repository's name, and the scale in its description."""
RECTIFIED = ("relu", "standard", "deepseek", "goodfire", "AutoEncoder", "mwhanna", "transcoder", "tanh")
FORMATS = {
    "dictionary_learning": "dictionary_learning",
    "dictionary_learning_legacy": "dictionary_learning",
    "gemma_scope": "gemma_scope",
    "gemma_scope_2": "gemma_scope_2",
    "openai": "openai",
    "saelens": "sae_lens",
    "saelens_legacy": "sae_lens",
    "sparsify": "sparsify",
    "third_party/mwhanna_transcoder": "mwhanna",
}


def folder(name: str) -> Path:
    return FIXTURES / name


def io(name: str) -> dict[str, Tensor]:
    """Returns the activations and what is made of them; of temporal dictionaries, as contexts."""
    found = load_file(IO / f"{name}.safetensors")
    if "temporal" in name:
        found = {key: value.reshape(2, 16, -1) for key, value in found.items()}
    return found


def format_of(name: str) -> str:
    return FORMATS.get(name) or FORMATS.get(name.split("/")[0]) or name.split("/")[1]


def check_close(got: Tensor, expected: Tensor) -> None:
    """Compares as two float32 computations in another order agree: a few units in the last place of the terms."""
    assert got.shape == expected.shape
    assert bool(((got - expected).abs() <= 5e-6 * expected.abs().clamp_min(1)).all()), (got - expected).abs().max()


def check_latents(got: Tensor, expected: Tensor) -> None:
    """The nearest switch is further away than rounding, so that the same latents fire."""
    check_close(got, expected)
    assert torch.equal(got != 0, expected != 0)
