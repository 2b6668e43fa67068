"""Files that lie, break or attack: an error of ours, and nothing is run."""

import io
import json
import os
import pickle
import shutil
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dictionary_learning import AutoEncoderTopK, load_dictionary, load_many, save_dictionary
from dictionary_learning.errors import CheckpointError
from dictionary_learning.interop import _archives as archives, _safe as safe
from dictionary_learning.interop._archives import read_pt
from dictionary_learning.interop._files import Files, check_relative
from dictionary_learning.interop._hub import fetch
from dictionary_learning.interop._safe import read_npz, read_safetensors, read_yaml
from tests.interop import golden

RAN = "DICTIONARY_LEARNING_TEST_RAN"


@pytest.fixture(autouse=True)
def nothing_ran(monkeypatch):
    monkeypatch.delenv(RAN, raising=False)
    yield
    assert RAN not in os.environ


@pytest.fixture
def sparsify(tmp_path):
    return copied("sparsify/topk", tmp_path)


def copied(name, tmp_path):
    return shutil.copytree(golden.folder(name), tmp_path / "copy")


def refused(path, said, **arguments):
    with pytest.raises(CheckpointError, match=said) as caught:
        load_dictionary(path, **arguments)
    assert len(str(caught.value)) > 30


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return exec, (f"import os; os.environ[{RAN!r}] = '1'",)


@pytest.mark.parametrize("name", ["dictionary_learning/AutoEncoder", "openai/relu", "third_party/goodfire"])
def test_malicious_pickle_is_refused_and_does_not_run(name, tmp_path):
    folder = copied(name, tmp_path)
    (path,) = [p for p in folder.iterdir() if p.suffix in (".pt", ".pth")]
    held = torch.load(path, weights_only=True)
    torch.save({**held, "payload": Evil()}, path)
    refused(folder, "no tensor by name|does not have|no dictionary of a known format")
    torch.save(Evil(), path)
    refused(folder, "tensors by name are needed|no dictionary of a known format")
    path.write_bytes(pickle.dumps(Evil()))
    refused(folder, "no archive")


def test_code_in_place_of_a_tensor_does_not_run(tmp_path):
    folder = copied("dictionary_learning/AutoEncoder", tmp_path)
    held = torch.load(folder / "ae.pt", weights_only=True)
    torch.save({**held, "bias": Evil()}, folder / "ae.pt")
    refused(folder, "'bias', which is no tensor")


@pytest.mark.parametrize("name", [n for n in golden.NAMES if n.split("/")[0] != "dictionary_learning_legacy"][::6])
def test_truncated_files_are_refused(name, tmp_path):
    folder = copied(name, tmp_path)
    for path in [p for p in folder.iterdir() if p.suffix in (".pt", ".pth", ".safetensors", ".npz")]:
        whole = path.read_bytes()
        for size in (0, 7, len(whole) // 3, len(whole) - 1):
            path.write_bytes(whole[:size])
            with pytest.raises(CheckpointError):
                load_dictionary(folder, **golden.FACTS.get(name, {}))
        path.write_bytes(whole)


def changed(folder, **tensors):
    path = folder / "sae.safetensors"
    save_file({**load_file(path), **tensors}, path)


def test_wrong_shapes_are_named(sparsify):
    changed(sparsify, **{"encoder.bias": torch.zeros(63)})
    refused(sparsify, r"'encoder.bias' in .* has shape \(63,\); \(dict_size=64\) is needed")


def test_transposed_matrices_are_refused(sparsify):
    changed(sparsify, W_dec=torch.zeros(16, 64))
    refused(sparsify, r"'W_dec' .* \(16, 64\)")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_named(sparsify, value):
    changed(sparsify, b_dec=torch.full((16,), value))
    refused(sparsify, "not finite in b_dec")


def test_unknown_and_missing_tensors_are_named(sparsify):
    changed(sparsify, surprise=torch.zeros(3))
    refused(sparsify, "does not have: surprise")
    save_file({"encoder.weight": torch.zeros(64, 16)}, sparsify / "sae.safetensors")
    refused(sparsify, "no tensor 'encoder.bias'")


def test_integers_in_place_of_weights_are_refused(sparsify):
    changed(sparsify, b_dec=torch.zeros(16, dtype=torch.int64))
    refused(sparsify, "floating-point")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"d_in": 32}, "d_in=32, and its tensors have 16"),
        ({"num_latents": 65}, "num_latents=65"),
        ({"k": 65}, "cannot keep k=65 of dict_size=64"),
        ({"k": 0}, "cannot keep k=0"),
        ({"k": "4"}, "k='4'; a int is needed"),
        ({"k": True}, "k=True"),
        ({"k": None}, "k"),
        ({"activation": "softmax"}, "activation='softmax'"),
        ({"activation": ["topk"]}, "activation="),
        ({"skip_connection": True}, "W_skip"),
        ({"transcode": "yes"}, "transcode='yes'"),
    ],
)
def test_config_that_lies_is_refused(sparsify, changes, said):
    path = sparsify / "cfg.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    refused(sparsify, said)


@pytest.mark.parametrize("text", ["[1]", "nonsense", "{", '{"k": ' + "9" * 5000 + "}", "[" * 100_000, "\xff"])
def test_config_that_is_none_is_refused(sparsify, text):
    (sparsify / "cfg.json").write_bytes(text.encode("latin-1"))
    refused(sparsify, "cfg.json|object|mapping")


def test_giant_config_is_not_read(sparsify):
    (sparsify / "cfg.json").write_text(" " * (safe.MOST_TEXT + 1))
    refused(sparsify, "more than")


def test_names_do_not_lead_out(tmp_path, sparsify):
    outside = tmp_path / "outside"
    shutil.copytree(sparsify, outside)
    inner = tmp_path / "run"
    inner.mkdir()
    shutil.copytree(sparsify, inner / "layers.0")
    for site in ("../outside", str(outside), "layers.0/../../outside", "~", "", "..", "a\0b"):
        with pytest.raises(CheckpointError):
            load_dictionary(inner, site=site)
    for name in ("owner/../../etc", "../owner/name", "owner/name/../../.."):
        with pytest.raises(CheckpointError):
            fetch(name)
        with pytest.raises(CheckpointError, match="leads out"):
            check_relative(name, "a repository")


def test_links_do_not_lead_out(tmp_path, sparsify):
    outside = tmp_path / "secret.safetensors"
    shutil.move(sparsify / "sae.safetensors", outside)
    (sparsify / "sae.safetensors").symlink_to(outside)
    refused(sparsify, "leads out of")
    run = tmp_path / "run"
    run.mkdir()
    shutil.copytree(golden.folder("sparsify/topk"), tmp_path / "elsewhere")
    (run / "layers.0").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="leads out of"):
        load_many(run)
    # what the caller names may be a link itself
    assert load_dictionary(run / "layers.0").k == 4


def test_links_that_lead_nowhere_are_no_files(tmp_path):
    for name in ("layers.0", "layers.1"):
        folder = tmp_path / "run" / name
        shutil.copytree(golden.folder("sparsify/topk"), folder)
        (folder / "x.pt").symlink_to("y.pt")  # a loop
        (folder / "y.pt").symlink_to("x.pt")
        (folder / "z.pt").symlink_to("nothing")
    (tmp_path / "run" / "l1").symlink_to("l2")
    (tmp_path / "run" / "l2").symlink_to("l1")
    assert load_dictionary(tmp_path / "run" / "layers.0").k == 4
    assert list(load_many(tmp_path / "run")) == ["layers.0", "layers.1"]
    refused(tmp_path / "run" / "l1", "There is no folder|leads to itself")


def test_links_of_the_hubs_cache_are_followed(tmp_path):
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for path in golden.folder("sparsify/topk").iterdir():
        shutil.copy(path, repository / "blobs" / f"blob-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/blob-{path.name}")
    assert load_dictionary(snapshot).k == 4
    (snapshot / "cfg.json").unlink()
    (snapshot / "cfg.json").symlink_to(golden.folder("sparsify/topk") / "cfg.json")
    refused(snapshot, "leads out of")


def header_of(shape, dtype="F32", offsets=(0, 4), name="W_dec"):
    text = json.dumps({name: {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}}).encode()
    return struct.pack("<Q", len(text)) + text + b"\0" * 4


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (struct.pack("<Q", 1 << 60) + b"{}", "cannot be read"),
        (header_of([1 << 40, 1 << 20]), "cannot be read"),
        (header_of([-1]), "cannot be read"),
        (header_of([1.5]), "cannot be read"),
        (header_of([1], dtype="F4_COMPLEX"), "cannot be read"),
        (header_of([1], offsets=(0, 8)), "cannot be read"),
        (struct.pack("<Q", 2) + b"[]" + b"\0", "cannot be read"),
        (struct.pack("<Q", 200_000) + b"[" * 200_000, "cannot be read"),
    ],
)
def test_headers_are_bounded(tmp_path, data, said):
    path = tmp_path / "sae.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=said):
        read_safetensors(path)


def test_giant_headers_are_not_read(tmp_path):
    path = tmp_path / "sae.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 50 << 20))
        file.truncate(51 << 20)
    with pytest.raises(CheckpointError, match="at most"):
        read_safetensors(path)


def test_own_files_that_claim_giants_take_no_memory(tmp_path):
    folder = save_dictionary(AutoEncoderTopK(12, 40, 3), tmp_path / "d")
    config = json.loads((folder / "config.json").read_text())
    config["dictionary"]["dict_size"] = 10**10
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "dictionary.safetensors")
    save_file(tensors, folder / "dictionary.safetensors", {"dictionary": json.dumps(config["dictionary"])})
    refused(folder, "do not fit")


def test_zip_bombs_are_not_inflated(tmp_path):
    for name, member in (("params.npz", "W_enc.npy"), ("ae.pt", "archive/data.pkl")):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(member, b"\0" * (30 << 20))
    with pytest.raises(CheckpointError, match="cannot be compressed so far"):
        read_npz(tmp_path / "params.npz")
    with pytest.raises(CheckpointError, match="cannot be compressed so far"):
        read_pt(tmp_path / "ae.pt")


def npy(shape, descr="<f4", data=b""):
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    header += b" " * (64 - (len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (npy((1 << 40,)), "cannot be read"),
        (npy((1,), "|O", pickle.dumps(Evil())), "no objects|cannot be read"),
        (npy((-1,)), "cannot be read"),
        (b"\x93NUMPY\x09\x00", "cannot be read"),
        (npy((1,), "<c8", b"\0" * 8), "no objects"),
    ],
)
def test_arrays_are_checked_before_they_are_made(tmp_path, data, said):
    with zipfile.ZipFile(tmp_path / "params.npz", "w") as archive:
        archive.writestr("W_enc.npy", data)
    with pytest.raises(CheckpointError, match=said):
        read_npz(tmp_path / "params.npz")


def test_arrays_of_objects_are_never_unpickled(tmp_path):
    np.savez(tmp_path / "params.npz", W_enc=np.array([Evil()], dtype=object))
    os.environ.pop(RAN, None)
    refused(tmp_path, "no objects|cannot be read")


def pt_with(path, edit):
    """Saves a tensor and rewrites the pickle in the archive."""
    buffer = io.BytesIO()
    torch.save({"bias": torch.arange(6.0).view(2, 3)}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        for member in old.infolist():
            data = old.read(member)
            new.writestr(member.filename, edit(data) if member.filename.endswith("data.pkl") else data)


def test_storages_have_the_size_that_is_claimed(tmp_path):
    """The numbers of elements in the pickle are not believed: torch.load would read past the end."""
    path = tmp_path / "ae.pt"
    pt_with(path, lambda data: data)
    assert torch.equal(read_pt(path)["bias"], torch.arange(6.0).view(2, 3))
    pt_with(path, lambda data: data.replace(b"K\x06", b"K\x7f"))
    with pytest.raises(CheckpointError, match="were claimed"):
        read_pt(path)


def test_a_giant_of_one_number_is_refused(tmp_path):
    torch.save({"bias": torch.zeros(1).expand(1 << 20, 1 << 20)}, tmp_path / "ae.pt")
    with pytest.raises(CheckpointError, match="claims more than the 1 numbers stored"):
        read_pt(tmp_path / "ae.pt")


def test_pickles_that_take_memory_are_refused(tmp_path):
    for pickled in (
        b"\x80\x02r\xff\xff\xff\xffK\x01.",
        b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
        b"\x80\x02",
        b"x",
    ):
        with zipfile.ZipFile(tmp_path / "ae.pt", "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
        with pytest.raises(CheckpointError):
            load_dictionary(tmp_path)


RAISER = b"cbuiltins\nexec\n(X\x01\x00\x00\x00xtR"  # a call of exec
ATTACKS = {
    "a place far up in the memo": b"\x80\x02K\x01r\xff\xff\xff\x7f.",
    "a giant of zeros": b"\x80\x05\x96\xff\xff\xff\x7f\x00\x00\x00\x00.",
    "an operation for extensions": b"\x80\x02\x82\x01.",
    "an instance by name": b"(ios\nsystem\n.",
    "an object with keywords": b"\x80\x04cos\nsystem\n)}\x92.",
    "attributes of a class that was not imported": b"\x80\x02cos\nsystem\n}X\x01\x00\x00\x00aK\x01sb.",
    "attributes of the note itself": b"\x80\x02cos\nsystem\nN}X\x08\x00\x00\x00__hash__K\x01s\x86b.",
    "attributes of a mapping's class": b"\x80\x02ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb.",
    "attributes of a dtype": b"\x80\x02ctorch\nFloatStorage\n}X\x01\x00\x00\x00aK\x01sb.",
    "a dtype that is called": b"\x80\x02ctorch\nFloatStorage\n)R.",
    "a storage of nothing": b"\x80\x02K\x01Q.",
    "a tensor without a storage": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00)ttR.",
    "a parameter of nothing": b"\x80\x02ctorch._utils\n_rebuild_parameter\n)R.",
    "a list that contains itself": b"\x80\x02]q\x00h\x00a.",
    "nothing on the stack": b"\x80\x02.",
    "a mark where a value should be": b"\x80\x02(.",
}


@pytest.mark.parametrize("pickled", ATTACKS.values(), ids=ATTACKS)
def test_pickles_change_nothing_but_their_own_result(pickled, tmp_path):
    before = {cls: dict(vars(cls)) for cls in (archives.Inert, archives._Mapping, archives._TensorNote)}
    with zipfile.ZipFile(tmp_path / "ae.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
    with pytest.raises(CheckpointError):
        load_dictionary(tmp_path, dict_class="AutoEncoder")
    with pytest.raises(CheckpointError):
        read_pt(tmp_path / "ae.pt")
    assert before == {cls: dict(vars(cls)) for cls in before}


def test_calls_become_notes(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + RAISER + b"}X\x01\x00\x00\x00aK\x01sb.")
    note = read_pt(tmp_path / "a.pt")
    assert type(note) is archives.Inert and note.arguments == ("x",) and note.state == {"a": 1}


def test_many_references_take_no_time(tmp_path):
    """Thirty lists, each of the one before twice, are a billion values."""
    body = b"]q\x00K\x01a" + b"".join(
        b"](h" + bytes([n]) + b"h" + bytes([n]) + b"eq" + bytes([n + 1]) for n in range(30)
    )
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + body + b".")
    with pytest.raises(CheckpointError, match="more, or deeper"):
        read_pt(tmp_path / "a.pt")


def test_flipped_bytes_of_weights_are_found(tmp_path):
    folder = copied("dictionary_learning/AutoEncoder", tmp_path)
    data = bytearray((folder / "ae.pt").read_bytes())
    with zipfile.ZipFile(folder / "ae.pt") as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
    data[largest.header_offset + largest.file_size // 2] ^= 1
    (folder / "ae.pt").write_bytes(data)
    refused(folder, "cannot be read")


def test_yaml_refers_to_nothing(tmp_path):
    path = tmp_path / "conf.yaml"
    path.write_text("a: &a [1, 2]\nb: [*a, *a]\n")
    with pytest.raises(CheckpointError, match="refers to parts of itself"):
        read_yaml(path)
    path.write_text("a: !!python/object/apply:os.putenv [x, y]\n")
    with pytest.raises(CheckpointError, match="is not YAML"):
        read_yaml(path)
    path.write_text("[" * 20_000)
    with pytest.raises(CheckpointError):
        read_yaml(path)


def test_files_name_what_is_there(tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(CheckpointError, match="It holds: a.txt"):
        Files(tmp_path).path("b.txt")
