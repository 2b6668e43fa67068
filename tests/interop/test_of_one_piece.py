"""What a file and its config contradict each other in is refused; what a format cannot say, too."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dictionary_learning import load_dictionary, trainSAE, write_dictionary
from dictionary_learning.dictionaries import (
    AutoEncoder,
    AutoEncoderTopK,
    BatchTopKSAE,
    GatedAutoEncoder,
    JumpReluAutoEncoder,
    MatryoshkaBatchTopKSAE,
    Normalized,
)
from dictionary_learning.errors import CheckpointError
from dictionary_learning.interop import FORMATS
from dictionary_learning.interop._safe import read_safetensors
from dictionary_learning.trainers.top_k import TopKTrainer
from tests.tiny import Planted

MADE = [
    AutoEncoder(8, 16),
    GatedAutoEncoder(8, 16),
    JumpReluAutoEncoder(8, 16),
    AutoEncoderTopK(8, 16, 4),
    BatchTopKSAE(8, 16, 4),
    MatryoshkaBatchTopKSAE(8, 16, 4, [4, 12]),
]
MADE[-1].nonlinearity.threshold.fill_(0.1), MADE[-2].nonlinearity.threshold.fill_(0.1)
WRITTEN = [(made, to) for made in MADE for to in ("own", "dictionary_learning", "sparsify", "sae_lens")]
X = torch.randn(5, 8, generator=torch.Generator().manual_seed(2))


def edit(folder, change):
    """Changes the tensors of a folder of any format."""
    (path,) = [path for path in folder.iterdir() if path.suffix in (".pt", ".safetensors")]
    if path.suffix == ".pt":
        return torch.save(change(torch.load(path, weights_only=True)), path)
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = {name: tensor.clone() for name, tensor in read_safetensors(path).items()}
    return save_file(change(tensors), path, metadata)


@pytest.mark.parametrize(("made", "to"), WRITTEN, ids=lambda one: one if isinstance(one, str) else type(one).__name__)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16])
def test_files_of_several_precisions_are_read_as_float32(made, to, dtype, tmp_path):
    try:
        write_dictionary(made, tmp_path / "d", to)
    except CheckpointError:
        pytest.skip("the format has no such class")
    names = []

    def change(tensors):
        names.extend(name for name, tensor in tensors.items() if tensor.ndim == 2)
        return {**tensors, names[0]: tensors[names[0]].to(dtype)}

    edit(tmp_path / "d", change)
    loaded = load_dictionary(tmp_path / "d")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(loaded(X), load_dictionary(tmp_path / "d", dtype=torch.float64)(X).float(), atol=1e-4, rtol=1e-4)  # fmt: skip


@pytest.mark.parametrize(("made", "name"), [(MADE[3], "k"), (MADE[4], "k"), (MADE[5], "k"), (MADE[5], "group_sizes")])
def test_a_config_that_says_otherwise_is_refused(made, name, tmp_path):
    write_dictionary(made, tmp_path, "dictionary_learning")
    config = json.loads((tmp_path / "config.json").read_text())
    config["trainer"][name] = 5 if name == "k" else [8, 8]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"{name}=.*belong together"):
        load_dictionary(tmp_path)
    if name == "k":  # a checkpoint while k was annealed holds that of its step
        config["trainer"]["k_anneal_steps"] = 100
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert load_dictionary(tmp_path).k == 4


def test_fields_of_sae_lens_that_are_not_known(tmp_path, caplog):
    write_dictionary(MADE[0], tmp_path, "sae_lens")
    config = json.loads((tmp_path / "cfg.json").read_text())
    load_dictionary(tmp_path)
    assert "not known here" not in caplog.text
    (tmp_path / "cfg.json").write_text(json.dumps({**config, "gain_of_latents": 3}))
    load_dictionary(tmp_path)
    assert "not known here, and are not read: gain_of_latents." in caplog.text
    (tmp_path / "cfg.json").write_text(json.dumps({**config, "reshape_activations": "weird"}))
    with pytest.raises(CheckpointError, match="reshape_activations='weird'"):
        load_dictionary(tmp_path)


@pytest.mark.parametrize("unit_norm", [True, False])
def test_sparsify_says_whether_rows_were_kept_at_unit_norm(unit_norm, tmp_path):
    config = {"trainer": TopKTrainer, "k": 4, "dict_size": 48, "unit_norm_decoder": unit_norm}
    trainSAE(list(Planted(16).batches(3, 32)), [config], 3, save_dir=tmp_path, save_format="sparsify", progress=False)
    assert json.loads((tmp_path / "trainer_0" / "cfg.json").read_text())["normalize_decoder"] is unit_norm
    load_dictionary(tmp_path / "trainer_0")


class Louder(AutoEncoderTopK):
    def encode(self, x, *older, **flags):
        return super().encode(x, *older, **flags) * 3


class Gain(AutoEncoderTopK):
    def __init__(self, activation_dim, dict_size, k):
        super().__init__(activation_dim, dict_size, k)
        self.gain = nn.Parameter(torch.ones(dict_size), requires_grad=False)


class Plain(AutoEncoderTopK):
    pass


@pytest.mark.parametrize("to", [name for name, entry in FORMATS.items() if entry.writes and name not in ("own", "dictionary_learning")])  # fmt: skip
@pytest.mark.parametrize(("cls", "part"), [(Louder, "its own encode"), (Gain, r"tensors of its own \(gain\)")])
def test_what_a_format_has_no_place_for_is_refused(to, cls, part, tmp_path):
    for made in (cls(8, 16, 4), Normalized(cls(8, 16, 4), "layer_norm")):
        with pytest.raises(CheckpointError, match=part):
            write_dictionary(made, tmp_path / to, to)
        assert not (tmp_path / to).exists()
    config = {"trainer": TopKTrainer, "dict_class": cls, "k": 4, "dict_size": 48}
    with pytest.raises(CheckpointError, match=part):
        trainSAE(list(Planted(16).batches(3, 32)), [config], 3, save_dir=tmp_path / "run", save_format=to, progress=False)  # fmt: skip
    write_dictionary(Plain(8, 16, 4), tmp_path / to, to)


@pytest.mark.parametrize("cls", [Louder, Gain])
def test_dictionary_learning_holds_all_tensors_and_says_who_loads_them(cls, tmp_path):
    made = cls(8, 16, 4)
    write_dictionary(made, tmp_path, "dictionary_learning")
    again = cls(8, 16, 4)
    again.load_state_dict(torch.load(tmp_path / "ae.pt", weights_only=True))
    torch.testing.assert_close(again(X), made(X))
    with pytest.raises(CheckpointError, match="load_state_dict"):
        load_dictionary(tmp_path)
