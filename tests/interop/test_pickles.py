"""Pickles of mats_sae_training: read without executing anything of them."""

import dataclasses
import gzip
import os
import pickle

import pytest
import torch

from dictionary_learning import AutoEncoder, load_dictionary
from dictionary_learning.errors import CheckpointError


@dataclasses.dataclass
class Settings:
    """As the settings object of that package: a class that the reader must not import."""

    d_in: int = 8
    d_sae: int = 24
    model_name: str = "gpt2-small"
    hook_point: str = "blocks.2.hook_resid_pre"
    dtype: object = torch.float32
    device: object = torch.device("cpu")


def content():
    torch.manual_seed(0)
    state = {
        "W_enc": torch.randn(8, 24),
        "b_enc": torch.randn(24),
        "W_dec": torch.randn(24, 8),
        "b_dec": torch.randn(8),
    }
    return {"cfg": Settings(), "state_dict": state}


def write(path, value):
    with (gzip.open if path.suffix == ".gz" else open)(path, "wb") as file:
        pickle.dump(value, file)
    return path


@pytest.mark.parametrize("name", ["final.pkl.gz", "final.pkl"])
def test_an_autoencoder_is_read(tmp_path, name):
    held = content()
    loaded = load_dictionary(write(tmp_path / name, held))
    assert isinstance(loaded, AutoEncoder) and loaded.info.format == "mats_sae"
    assert (loaded.info.model, loaded.info.sites) == ("gpt2-small", ("blocks.2.hook_resid_pre",))
    state, x = held["state_dict"], torch.randn(6, 8)
    f = ((x - state["b_dec"]) @ state["W_enc"] + state["b_enc"]).relu()
    torch.testing.assert_close(loaded.encode(x), f)
    torch.testing.assert_close(load_dictionary(tmp_path)(x), f @ state["W_dec"] + state["b_dec"])


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_nothing_of_it_is_executed(tmp_path):
    write(tmp_path / "evil.pkl.gz", {**content(), "more": Evil(tmp_path / "touched")})
    load_dictionary(tmp_path / "evil.pkl.gz")
    write(tmp_path / "worse.pkl.gz", Evil(tmp_path / "touched"))
    with pytest.raises(CheckpointError):
        load_dictionary(tmp_path / "worse.pkl.gz")
    assert not (tmp_path / "touched").exists()


def test_damaged_files_are_refused(tmp_path):
    whole = write(tmp_path / "whole.pkl", content()).read_bytes()
    for name, data in {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"hello"}.items():
        (tmp_path / f"{name}.pkl").write_bytes(data)
        with pytest.raises(CheckpointError):
            load_dictionary(tmp_path / f"{name}.pkl")
    with gzip.open(tmp_path / "bomb.pkl.gz", "wb") as file:
        file.write(b"\0" * (8 << 20))
    with pytest.raises(CheckpointError):
        load_dictionary(tmp_path / "bomb.pkl.gz")
    with pytest.raises(CheckpointError, match="state_dict"):
        load_dictionary(write(tmp_path / "other.pkl", {"a": 1}))
