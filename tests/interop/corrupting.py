"""Damaged copies of checkpoints, and what becomes of reading them."""

import random
import shutil
from pathlib import Path

from dictionary_learning import AutoEncoderTopK, load_dictionary, save_dictionary
from dictionary_learning.dictionaries import Normalized
from dictionary_learning.errors import CheckpointError
from tests.interop import golden

ONE_OF_EACH = (
    "own",
    "dictionary_learning/BatchTopKSAE_threshold",
    "dictionary_learning/GatedAutoEncoder",
    "dictionary_learning/backup_interrupted/trainer_0",
    "gemma_scope/jumprelu",
    "gemma_scope_2/transcoder_affine",
    "openai/topk",
    "saelens/jumprelu_skip_transcoder",
    "saelens/matching_pursuit",
    "saelens/temporal",
    "saelens/batchtopk_checkpoint",
    "saelens_legacy/topk",
    "sparsify/topk_bf16",
    "third_party/deepseek_r1",
    "third_party/llama_scope",
    "third_party/llama_scope_r1",
    "third_party/mwhanna_transcoder",
    "third_party/qwen_scope",
    "third_party/temporal",
)
"""A checkpoint of each format, and of each kind of file."""
INTERESTING = (
    b"\x00",
    b"\xff",
    b"\x7f",
    b"-1",
    b"0",
    b"9" * 30,
    b"null",
    b"true",
    b"[]",
    b"{}",
    b'"',
    b"NaN",
    b"1e999",
    b"\n",
)
WAYS = ("flip", "cut", "insert", "remove", "replace", "swap", "zeros", "text")


def corrupt(data: bytes, way: str, seed: int) -> bytes:
    """Returns data damaged in one of `WAYS`."""
    draw = random.Random(seed)
    size = max(len(data), 1)
    # settings and headers are at the beginning, the directory of an archive at the end
    place = draw.choice(
        [draw.randrange(size), draw.randrange(min(size, 400)), size - 1 - draw.randrange(min(size, 400))]
    )
    length = draw.choice([1, 2, 8, 100])
    if way == "flip":
        changed = bytearray(data)
        for _ in range(draw.choice([1, 1, 3, 20])):
            changed[draw.randrange(size) if draw.random() < 0.3 else place] ^= 1 << draw.randrange(8)
        return bytes(changed)
    if way == "cut":
        return data[:place]
    if way == "insert":
        return data[:place] + draw.choice(INTERESTING) * draw.choice([1, 1, 50]) + data[place:]
    if way == "remove":
        return data[:place] + data[place + length :]
    if way == "replace":
        new = draw.choice(INTERESTING)
        return data[:place] + new + data[place + len(new) :]
    if way == "swap":
        other = draw.randrange(size)
        a, b = sorted((place, other))
        return data[:a] + data[b : b + length] + data[a + length : b] + data[a : a + length] + data[b + length :]
    if way == "zeros":
        return data[:place] + b"\0" * length + data[place + length :]
    words = [
        b'"k"',
        b'"d_in"',
        b'"d_sae"',
        b'"shape"',
        b"true",
        b"false",
        b"null",
        b"16",
        b"64",
        b"4",
        b"F32",
        b"float32",
        b"0.3",
    ]
    present = [word for word in words if word in data]
    if not present:
        return data[::-1]
    return data.replace(draw.choice(present), draw.choice(words + [b"-1", b"1e30", b"[]", b"18446744073709551617"]), 1)


def read_corrupted(name: str, file_index: int, way: str, seed: int, work: Path) -> str:
    """Damages a file of a checkpoint and reads it; returns "read" or "refused", and raises what is neither."""
    folder = work / "checkpoint"
    shutil.rmtree(folder, ignore_errors=True)
    if name == "own":
        own = Normalized(AutoEncoderTopK(16, 64, 4), "layer_norm")
        save_dictionary(own, folder, {"site": "layers.3:out"})
    else:
        shutil.copytree(golden.folder(name), folder)
    paths = sorted(p for p in folder.iterdir() if p.is_file())
    path = paths[file_index % len(paths)]
    path.write_bytes(corrupt(path.read_bytes(), way, seed))
    try:
        dictionary = load_dictionary(folder, **golden.FACTS.get(name, {}))
    except CheckpointError:
        return "refused"
    assert all(bool(tensor.isfinite().all()) for tensor in dictionary.state_dict().values())
    return "read"
