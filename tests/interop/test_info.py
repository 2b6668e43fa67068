"""What is known about a dictionary goes with it: loaded, copied, moved, saved."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file

from dictionary_learning import (
    AutoEncoder,
    AutoEncoderTopK,
    Dictionary,
    DictionaryInfo,
    list_pretrained,
    load_dictionary,
    load_from_hub,
    load_many,
    pretrained,
    save_dictionary,
    utils,
    write_dictionary,
)
from dictionary_learning.compat import _loading as loading
from dictionary_learning.dictionaries import BatchTopKSAE
from dictionary_learning.errors import CheckpointError, ConfigError
from dictionary_learning.interop import FORMATS
from tests.interop import golden

CONFIG = {
    "name": "top_k-3",
    "site": "m.1:in",
    "target_site": ["m.1:out", "m.2:out"],
    "buffer": {"model": {"name": "gpt2"}},
}


def saved(folder):
    return save_dictionary(AutoEncoderTopK(12, 40, 3), folder, CONFIG)


def test_dictionary_built_by_hand_has_an_empty_info():
    assert AutoEncoder(4, 8).info == DictionaryInfo()


@pytest.mark.parametrize(
    "load",
    [
        load_dictionary,
        load_from_hub,
        Dictionary.from_pretrained,
        AutoEncoderTopK.from_pretrained,
        lambda path: load_many(path)[""],
        lambda path: utils.load_dictionary(path)[0],
    ],
)
def test_every_loader_says_what_is_known(load, tmp_path):
    info = load(saved(tmp_path / "d")).info
    assert (info.sites, info.target_sites) == (("m.1:in",), ("m.1:out", "m.2:out"))
    assert (info.name, info.model, info.format) == ("top_k-3", "gpt2", "own")
    assert info.source == str(tmp_path / "d")
    assert info.config["buffer"] == CONFIG["buffer"]


@pytest.mark.parametrize("name", golden.NAMES[::5])
def test_every_format_says_its_name_and_place(name):
    folder = golden.folder(name)
    dictionary = load_dictionary(folder, **golden.FACTS.get(name, {}))
    assert dictionary.info.format == golden.format_of(name)
    assert dictionary.info.source is not None and dictionary.info.source.startswith(str(folder))


def test_info_survives_copies_and_moves_and_is_no_state(tmp_path):
    dictionary = load_dictionary(saved(tmp_path / "d"))
    for other in (copy.deepcopy(dictionary), dictionary.to(torch.bfloat16), dictionary.to("cpu").eval()):
        assert other.info == dictionary.info
    assert not [name for name in dictionary.state_dict() if "info" in name]


def test_saving_keeps_what_is_known(tmp_path):
    first = load_dictionary(saved(tmp_path / "a"))
    second = load_dictionary(save_dictionary(first, tmp_path / "b"))
    third = load_dictionary(save_dictionary(first, tmp_path / "c", {"name": "other"}))
    assert second.info.config == first.info.config
    assert third.info.name == "other" and third.info.sites == first.info.sites


def test_info_set_by_hand_is_saved(tmp_path):
    dictionary = AutoEncoder(4, 8)
    dictionary.info = DictionaryInfo(sites=("m.1:out",), model="gpt2", name="mine")
    info = load_dictionary(save_dictionary(dictionary, tmp_path)).info
    assert (info.sites, info.model, info.name) == (("m.1:out",), "gpt2", "mine")


@pytest.mark.parametrize("old", [utils.load_dictionary, loading.load_dictionary])
def test_old_address_returns_dictionary_and_config(old, tmp_path):
    dictionary, config = old(saved(tmp_path), "cpu")
    assert isinstance(dictionary, AutoEncoderTopK) and config["site"] == "m.1:in"


def test_old_name_of_the_list_of_releases():
    assert pretrained is list_pretrained


@pytest.mark.parametrize("cls", [AutoEncoderTopK, BatchTopKSAE])
def test_class_that_is_called_decides_where_files_fit_two(cls, tmp_path):
    (tmp_path / "ae.pt").write_bytes((golden.folder("dictionary_learning/AutoEncoderTopK") / "ae.pt").read_bytes())
    assert type(cls.from_pretrained(tmp_path / "ae.pt", k=4)) is cls
    with pytest.raises(CheckpointError, match="alike"):
        Dictionary.from_pretrained(tmp_path / "ae.pt", k=4)


@pytest.mark.parametrize("ending", [".pt", ".pth"])
@pytest.mark.parametrize("name", ["AutoEncoder", "AutoEncoderNew", "AutoEncoderTopK", "BatchTopKSAE", "GatedAutoEncoder", "JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE"])  # fmt: skip
def test_weights_of_a_class_may_have_any_name(name, ending, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    there = golden.folder(f"dictionary_learning/{name}")
    (tmp_path / f"old{ending}").write_bytes((there / "ae.pt").read_bytes())
    (tmp_path / "other.txt").write_text("")
    expected = load_dictionary(there)
    cls = type(expected)
    given = {"dict_class": name} if name != "AutoEncoderNew" else {}
    for loaded in (
        cls.from_pretrained(f"old{ending}"),
        cls.from_pretrained(tmp_path / f"old{ending}", format="dictionary_learning"),
        load_dictionary(f"old{ending}", **given),
    ):
        assert type(loaded) is cls
        assert all(torch.equal(loaded.state_dict()[key], tensor) for key, tensor in expected.state_dict().items())


@pytest.mark.parametrize("name", ["empty.safetensors", "text.jsonl", "other.safetensors", "other.pt", "state.pth"])
def test_what_is_said_of_a_file_says_nothing_of_its_folder(name, tmp_path, monkeypatch):
    from safetensors.torch import save_file

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_neighbor.txt").write_text("")
    write = {"other.safetensors": save_file, "other.pt": torch.save, "state.pth": torch.save}.get(name)
    if write is None:
        (tmp_path / name).write_text("")
    else:
        write({"a_tensor": torch.zeros(2)}, tmp_path / name)
    for format in (None, *FORMATS):
        with pytest.raises(CheckpointError) as caught:
            load_dictionary(name, format=format)
        assert "a_neighbor" not in str(caught.value)
        if format is None and write is not None:
            assert "a_tensor" in str(caught.value)


def test_class_that_is_called_does_not_overrule_the_files():
    with pytest.raises(CheckpointError, match="holds a AutoEncoderTopK, not a BatchTopKSAE"):
        BatchTopKSAE.from_pretrained(golden.folder("dictionary_learning/AutoEncoderTopK"))


@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec", "nonlinearity.threshold"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_never_written(name, value, tmp_path):
    dictionary = AutoEncoderTopK(4, 8, 2)
    dictionary.state_dict()[name].flatten()[0] = value
    for write in (save_dictionary, write_dictionary):
        with pytest.raises(CheckpointError, match=f"not finite in {name}"):
            write(dictionary, tmp_path / "d")
        assert not (tmp_path / "d").exists()


def test_config_that_json_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"\['run'\]\['model'\] is a .*Linear"):
        save_dictionary(AutoEncoder(4, 8), tmp_path / "d", {"run": {"model": torch.nn.Linear(1, 1)}})
    assert not (tmp_path / "d").exists()
    save_dictionary(AutoEncoder(4, 8), tmp_path / "d", {"run": {"dtype": torch.float32, "out": tmp_path}})
    assert json.loads((tmp_path / "d" / "config.json").read_text())["run"] == {"dtype": "float32", "out": str(tmp_path)}


@pytest.mark.parametrize("to", ["own", "dictionary_learning", "sparsify", "sae_lens"])
def test_equal_dictionaries_give_equal_files(to, tmp_path):
    dictionary = AutoEncoderTopK(12, 40, 3)
    folders = [write_dictionary(dictionary, tmp_path / f"d{n}", to) for n in range(4)]
    for path in folders[0].iterdir():
        assert len({(folder / path.name).read_bytes() for folder in folders}) == 1, path.name


@pytest.mark.parametrize("to", ["own", "dictionary_learning", "sparsify", "sae_lens"])
@pytest.mark.parametrize("other", ["own", "dictionary_learning", "sparsify", "sae_lens"])
def test_folder_holds_one_format(to, other, tmp_path):
    dictionary = AutoEncoderTopK(12, 40, 3)
    folder = write_dictionary(dictionary, tmp_path / "d", other)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    if to == other:
        write_dictionary(dictionary, folder, to)
    else:
        with pytest.raises(CheckpointError, match="in another format"):
            write_dictionary(dictionary, folder, to)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert load_dictionary(folder).info.format == other


@pytest.mark.parametrize(
    "name", ["sparsify/topk", "saelens/topk", "saelens/jumprelu", "dictionary_learning/AutoEncoder"]
)
def test_files_of_compiled_modules_are_read(name, tmp_path):
    from safetensors.torch import save_file

    for path in golden.folder(name).iterdir():
        if path.suffix == ".safetensors":
            save_file({f"_orig_mod.{key}": tensor for key, tensor in load_file(path).items()}, tmp_path / path.name)
        elif path.suffix == ".pt":
            held = torch.load(path, weights_only=True)
            torch.save({f"_orig_mod.{key}": tensor for key, tensor in held.items()}, tmp_path / path.name)
        else:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    expected = golden.io(name)
    golden.check_latents(load_dictionary(tmp_path).encode(expected["x"]), expected["latents"])


@pytest.mark.parametrize("path", ["C:\\runs\\x", "C:/data", "D:/a/b", "runs\\mine"])
def test_paths_are_never_names_of_repositories(path):
    with pytest.raises(CheckpointError, match="There is no folder"):
        load_dictionary(path)


@pytest.mark.usefixtures("as_for_a_user")
@pytest.mark.parametrize(
    ("name", "value"),
    [("sites", "m.1"), ("sites", (1,)), ("target_sites", (None,)), ("model", 3), ("name", b"x"), ("config", [1])],
)
def test_what_is_no_fact_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"Got {name}="):
        DictionaryInfo(**{name: value})


@pytest.mark.usefixtures("as_for_a_user")
def test_lists_of_sites_are_tuples():
    assert DictionaryInfo(sites=["m.1"]).sites == ("m.1",)
