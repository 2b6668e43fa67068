"""Loads what this package wrote with another package, in that package's environment, and compares.

usage: interop_check.py saelens|sparsify|dl FOLDER; each folder in FOLDER has a dictionary and io.safetensors. Prints JSON.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file


def saelens(folder, x):
    from sae_lens import SAE

    sae = SAE.load_from_disk(str(folder), device="cpu")
    return sae.encode(x), sae(x)


def sparsify(folder, x):
    from sparsify import SparseCoder

    coder = SparseCoder.load_from_disk(str(folder), device="cpu")
    flat = x.flatten(0, -2)  # it takes tokens, not contexts
    kept = coder.encode(flat)
    latents = torch.zeros(len(flat), coder.num_latents).scatter_(-1, kept.top_indices.long(), kept.top_acts)
    return latents.unflatten(0, x.shape[:-1]), coder(flat).sae_out.unflatten(0, x.shape[:-1])


def dl(folder, x):
    from dictionary_learning.utils import load_dictionary

    ae, _ = load_dictionary(str(folder), device="cpu")
    latents = ae.encode(x)
    return latents, ae.decode(latents)


def main():
    load, found = {"saelens": saelens, "sparsify": sparsify, "dl": dl}[sys.argv[1]], {}
    for folder in sorted(Path(sys.argv[2]).iterdir()):
        io = load_file(folder / "io.safetensors")
        try:
            with torch.no_grad():
                latents, x_hat = load(folder, io["x"])
        except Exception as error:  # noqa: BLE001  (whatever the peer raises is the result)
            found[folder.name] = {"error": f"{type(error).__name__}: {error}"[:300]}
            continue
        found[folder.name] = {
            "latents": float((latents - io["latents"]).abs().max()),
            "reconstruction": float((x_hat - io["reconstruction"]).abs().max()),
            "same support": bool(torch.equal(latents != 0, io["latents"] != 0)),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
