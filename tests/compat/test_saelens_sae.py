"""`SAE` of SAELens around a dictionary: its values, its orientation, its files, and its place in functions here."""

import copy
import json
import pickle

import jaxtyping
import pytest
import torch
from safetensors.torch import load_file

from dictionary_learning import AutoEncoder, AutoEncoderTopK, BatchTopKSAE, Transcoder, load_dictionary
from dictionary_learning.compat.saelens import SAE
from dictionary_learning.dictionaries import Dictionary, DictionaryInfo, Normalized
from dictionary_learning.errors import CheckpointError, ConfigError
from dictionary_learning.interop import _releases
from dictionary_learning.interop._releases import Release
from dictionary_learning.trainers import TrainerTopK
from tests.border_cases import CALLS, Place
from tests.interop import golden

GOLDEN = [name for name in golden.NAMES if name.startswith("saelens")]
OF_A_BATCH = ("saelens/batchtopk_checkpoint", "saelens/matryoshka_batchtopk_checkpoint")
"""Files of training, whose latents depend on the batch there."""
CONVERTED = (
    "saelens/topk_rescale_unfolded", "saelens_legacy/finetuning_scaling_factor", "saelens/matching_pursuit_raw_norm",
)  # fmt: skip
"""Files that are read as others that compute the same: with factors in the weights, or a bias that is not used."""
DIM, SIZE = 4, 8
LEAST = 30
"""Functions that take dictionaries, at least."""


def stored(name):
    return load_file(golden.folder(name) / "sae_weights.safetensors")


def known(dictionary):
    dictionary.info = DictionaryInfo(sites=("blocks.1.hook_resid_post",), model="gpt2")
    return dictionary


@pytest.mark.parametrize("name", [name for name in GOLDEN if name not in OF_A_BATCH])
def test_latents_and_reconstructions_are_those_of_saelens(name):
    sae, expected = SAE.load_from_disk(golden.folder(name), dtype="float32"), golden.io(name)
    x = expected["x"]
    golden.check_latents(sae.encode(x), expected["latents"])
    golden.check_close(sae(x), expected["reconstruction"])
    latents, of = sae.encode(x), expected["reconstruction"]
    if "skip" in name:  # `decode` omits W_skip x there
        of = of - x @ stored(name)["W_skip"].T
    if "temporal" not in name:  # which also predicts from the tokens before
        golden.check_close(sae.decode(latents), of)


@pytest.mark.parametrize("name", golden.NAMES)
def test_every_format_is_loaded_with_a_whole_cfg(name):
    facts, x = golden.FACTS.get(name, {}), golden.io(name)["x"]
    plain = load_dictionary(golden.folder(name), dtype=torch.float32, **facts)
    again = SAE.load_from_pretrained(golden.folder(name), **facts)
    for sae in (SAE(plain), SAE.load_from_disk(golden.folder(name), dtype="float32", **facts)):
        torch.testing.assert_close(sae.encode(x), plain.encode(x), check_dtype=False)
        torch.testing.assert_close(sae(x), plain(x), check_dtype=False)
        assert (sae.cfg.d_in, sae.cfg.d_sae) == (plain.activation_dim, plain.dict_size)
        for field in ("apply_b_dec_to_input", "normalize_activations", "reshape_activations", "architecture"):
            assert getattr(sae.cfg, field) == getattr(again.cfg, field)
        json.dumps(sae.cfg.to_dict())


@pytest.mark.parametrize("name", ["saelens/topk", "saelens/temporal", "saelens/standard_layer_norm"])
def test_settings_that_the_weights_have_are_not_set(name):
    sae = SAE.load_from_disk(golden.folder(name))
    for field, value in vars(sae.cfg).items():
        if field not in ("metadata", "device", "dtype"):
            setattr(sae.cfg, field, value)  # the same says nothing new
            with pytest.raises(ConfigError, match=f"cfg.{field} = 'another'"):
                setattr(sae.cfg, field, "another")
            assert getattr(sae.cfg, field) == value
    sae.cfg.device, sae.cfg.hook_name, sae.cfg.note = "cuda", "blocks.1.hook_resid_post", "mine"
    assert (sae.cfg.device, sae.cfg.metadata.hook_name, sae.cfg.note) == ("cuda", "blocks.1.hook_resid_post", "mine")


@pytest.mark.parametrize("name", GOLDEN)
def test_weights_are_oriented_as_in_saelens(name):
    sae, files = SAE.load_from_disk(golden.folder(name)), stored(name)
    assert sae.W_dec.shape == (64, sae.dictionary.output_dim) and sae.b_dec.shape == (sae.dictionary.output_dim,)
    if "W_enc" in files:
        assert sae.W_enc.shape == files["W_enc"].shape == (16, 64)
        assert sae.dictionary.dict_size == 64 and sae.state_dict()["W_enc"].shape == (16, 64)
    if name not in (*CONVERTED, *OF_A_BATCH):
        for tensor in set(sae.state_dict()) & set(files):
            own = files[tensor].clamp_min(0) if tensor == "threshold" else files[tensor]  # rectified either way
            torch.testing.assert_close(sae.state_dict()[tensor].to(own.dtype), own)


@pytest.mark.parametrize("name", ["saelens/jumprelu", "saelens/topk", "saelens_legacy/topk", "saelens/gated"])
def test_cfg_has_the_names_of_both_versions(name):
    cfg = SAE.load_from_disk(golden.folder(name)).cfg
    said = json.loads((golden.folder(name) / "cfg.json").read_text())
    assert (cfg.d_in, cfg.d_sae, cfg.dtype, cfg.device) == (16, 64, "float32", "cpu")
    assert cfg.architecture == cfg.architecture() == name.rpartition("/")[2]
    hook = (said.get("metadata") or said)["hook_name"]
    assert cfg.hook_name == cfg.metadata.hook_name == cfg.metadata["hook_name"] == cfg.hook_point == hook
    assert cfg.hook_layer == 0 and cfg.prepend_bos is cfg.metadata.prepend_bos is True and cfg.context_size == 128
    assert cfg.apply_b_dec_to_input is said["apply_b_dec_to_input"] and cfg.normalize_activations == "none"
    assert cfg.metadata.nothing_of_this_name is None and "nothing" not in cfg.metadata
    as_dict = cfg.to_dict()
    assert as_dict["architecture"] == cfg.architecture and as_dict["metadata"]["hook_name"] == hook
    json.dumps(as_dict)
    if "topk" in name:
        assert cfg.k == 4 and cfg.activation_fn_kwargs == {"k": 4}
    with pytest.raises(AttributeError, match="d_sae"):
        _ = cfg.d_size


@pytest.mark.parametrize("name", [name for name in GOLDEN if name not in ("saelens_legacy/tanh_relu",)])
def test_what_is_saved_is_what_was_loaded(name, tmp_path):
    sae, x = SAE.load_from_disk(golden.folder(name)), golden.io(name)["x"]
    weights, config = sae.save_model(tmp_path / "saved")
    assert (weights.name, config.name) == ("sae_weights.safetensors", "cfg.json")
    again = SAE.load_from_pretrained(tmp_path / "saved")
    assert again.dtype == sae.dtype
    torch.testing.assert_close(again(x), sae(x))
    said, before = (json.loads((f / "cfg.json").read_text()) for f in (tmp_path / "saved", golden.folder(name)))
    metadata = before.get("metadata") or before
    assert said["metadata"]["hook_name"] == metadata.get("hook_name", metadata.get("hook_point"))
    if before.get("normalize_activations") == "expected_average_only_in":  # its scale is not in the weights
        assert again.cfg.normalize_activations == said["normalize_activations"] == "expected_average_only_in"


def test_names_that_are_set_are_saved(tmp_path):
    sae = SAE(AutoEncoder(DIM, SIZE))
    sae.cfg.hook_name = "model.layers.1.nothing"
    with pytest.raises(CheckpointError, match="hook_name="):
        sae.save_model(tmp_path / "unknown")
    sae.cfg.hook_name, sae.cfg.metadata.model_name = "blocks.3.hook_mlp_out", "gpt2-small"
    sae.save_model(tmp_path / "named", sparsity=torch.full((SIZE,), -2.0))
    said = json.loads((tmp_path / "named" / "cfg.json").read_text())["metadata"]
    assert (said["hook_name"], said["model_name"]) == ("blocks.3.hook_mlp_out", "gpt2-small")
    _, cfg, sparsity = SAE.from_pretrained_with_cfg_and_sparsity(str(tmp_path / "named"))
    assert torch.equal(sparsity, torch.full((SIZE,), -2.0)) and cfg["d_in"] == DIM


def test_what_is_written_into_a_weight_is_written_into_the_dictionary():
    dictionary = AutoEncoder(DIM, SIZE)
    sae, values = SAE(dictionary), torch.randn(DIM, SIZE)
    sae.W_enc.data = values
    assert torch.equal(dictionary.W_enc, values.T)
    sae.W_enc.data *= 2
    assert torch.equal(dictionary.W_enc, 2 * values.T)
    sae.W_enc = torch.nn.Parameter(3 * values)
    sae.b_enc, sae.W_dec.data[2] = torch.ones(SIZE), 5.0
    assert torch.equal(dictionary.W_enc, 3 * values.T) and torch.equal(dictionary.b_enc, torch.ones(SIZE))
    assert torch.equal(dictionary.W_dec[2], torch.full((DIM,), 5.0))
    sae(torch.randn(3, DIM)).sum().backward()
    assert sae.W_enc.grad.shape == (DIM, SIZE) and {id(p) for p in sae.parameters()} == {
        id(p) for p in dictionary.parameters()
    }
    with pytest.raises(ConfigError, match="latents first"):
        sae.W_enc = torch.zeros(SIZE, DIM)
    with pytest.raises(ConfigError, match="no threshold"):
        sae.threshold = torch.zeros(SIZE)
    with pytest.raises(AttributeError):
        _ = sae.threshold
    other = SAE(AutoEncoder(DIM, SIZE))
    other.load_state_dict(sae.state_dict())
    assert torch.equal(other.W_enc, sae.W_enc) and torch.equal(other.b_dec, sae.b_dec)
    with pytest.raises(CheckpointError, match="W_dec"):
        other.load_state_dict({"encoder.weight": values})


def test_moving_and_casting_is_said_in_cfg():
    sae = SAE(AutoEncoder(DIM, SIZE)).to(torch.float64)
    assert (sae.dtype, sae.cfg.dtype, sae.device, sae.cfg.device) == (
        torch.float64,
        "float64",
        torch.device("cpu"),
        "cpu",
    )
    assert sae.eval() is sae and not sae.dictionary.training
    x = torch.randn(3, DIM)
    assert sae.encode(x).dtype == sae(x).dtype == torch.float64
    half = SAE.load_from_disk(golden.folder("saelens/standard_bf16"))
    assert half.dtype == torch.bfloat16 and half.encode(torch.randn(2, 16)).dtype == torch.bfloat16  # as there
    assert SAE.from_pretrained(str(golden.folder("saelens/standard_bf16"))).dtype == torch.float32


@pytest.mark.parametrize(
    "name", ["saelens/standard", "saelens/jumprelu", "saelens/gated", "saelens/standard_layer_norm"]
)
def test_folded_norms_change_latents_and_no_output(name):
    sae, x = SAE.load_from_disk(golden.folder(name)), golden.io(name)["x"]
    norms, latents, out = sae.W_dec.norm(dim=1).clone(), sae.encode(x), sae(x)
    sae.fold_W_dec_norm()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(64))
    torch.testing.assert_close(sae.encode(x), latents * norms, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(sae(x), out, atol=1e-5, rtol=1e-4)
    folded = SAE.load_from_disk(golden.folder(name), fold_W_dec_norm=True)
    torch.testing.assert_close(folded.encode(x), sae.encode(x))


def test_a_scale_of_activations_is_folded_as_there():
    sae, x = SAE.load_from_disk(golden.folder("saelens/standard_checkpoint_expected_average")), torch.randn(5, 16)
    assert sae.cfg.normalize_activations == "expected_average_only_in"
    latents, out = sae.encode(0.5 * x), sae(0.5 * x)
    sae.fold_activation_norm_scaling_factor(0.5)
    torch.testing.assert_close(sae.encode(x), latents)
    torch.testing.assert_close(sae(x), out / 0.5)
    assert sae.cfg.normalize_activations == "none" and SAE(sae.dictionary).cfg.normalize_activations == "none"
    place = golden.folder("saelens/standard_checkpoint_expected_average")
    scaled = load_dictionary(place, scale=0.5)
    torch.testing.assert_close(scaled(x), sae(x))
    with pytest.raises(CheckpointError, match="scale=0.5"):
        load_dictionary(golden.folder("saelens/standard"), scale=0.5)


def test_decode_needs_what_was_encoded_where_tokens_are_normalized():
    sae, x = SAE(Normalized(AutoEncoder(DIM, SIZE), "layer_norm_eps_in")), torch.randn(5, DIM)
    torch.testing.assert_close(sae.decode(sae.encode(x)), sae(x))
    with pytest.raises(ConfigError, match="give x"):
        sae.decode(sae.dictionary.encode(x))


def test_heads_are_put_side_by_side():
    sae = SAE.load_from_disk(golden.folder("saelens/standard_hook_z"))
    x = golden.io("saelens/standard_hook_z")["x"].view(4, -1, 16)
    heads = x.unflatten(-1, (4, 4))
    assert torch.equal(sae.encode(heads), sae.encode(x)) and sae(heads).shape == heads.shape
    assert torch.equal(sae.decode(sae.encode(heads)), sae(heads)) and torch.equal(sae(heads).flatten(-2), sae(x))
    sae.turn_off_forward_pass_hook_z_reshaping()
    with pytest.raises(ConfigError, match="width 4"):
        sae(heads)


def test_batch_top_k_has_the_threshold_that_is_saved(tmp_path):
    dictionary = known(BatchTopKSAE(DIM, SIZE, 2))
    dictionary.nonlinearity.threshold.fill_(0.5)
    sae = SAE(dictionary)
    sae.save_model(tmp_path)
    assert torch.equal(sae.threshold, SAE.load_from_disk(tmp_path).threshold)
    assert sae.cfg.architecture == SAE.load_from_disk(tmp_path).cfg.architecture == "jumprelu"


@pytest.fixture
def releases(monkeypatch):
    paths = ("saelens/standard", "saelens/topk")
    one = Release("a-release", str(golden.FIXTURES), "gpt2", "sae_lens", paths, ids=("blocks.{0-1}.hook_resid_pre",))
    monkeypatch.setattr(_releases, "_all", lambda: (one,))


def test_published_dictionaries_are_found_by_the_ids_of_saelens(releases):
    for sae_id in ("blocks.1.hook_resid_pre", "saelens/topk"):
        sae = SAE.from_pretrained(release="a-release", sae_id=sae_id, device="cpu")
        assert isinstance(sae, SAE) and sae.cfg.architecture == "topk" and sae.cfg.model_name == "gelu-1l"
    sae, cfg_dict, sparsity = SAE.from_pretrained_with_cfg_and_sparsity("a-release", "blocks.0.hook_resid_pre")
    assert cfg_dict["d_sae"] == 64 and sparsity.shape == (64,) and sae.W_enc.shape == (16, 64)
    with pytest.raises(CheckpointError, match=r"no site 'blocks.2.hook_resid_pre'.*blocks.0.hook_resid_pre"):
        SAE.from_pretrained("a-release", "blocks.2.hook_resid_pre")
    with pytest.raises(CheckpointError, match="Did you mean 'a-release'"):
        SAE.from_pretrained("a-relaese", "blocks.2.hook_resid_pre")


@pytest.mark.parametrize(("release", "sae_id", "path"), [
    ("gpt2-small-res-jb", "blocks.8.hook_resid_pre", "blocks.8.hook_resid_pre"),
    ("gpt2-small-resid-post-v5-32k", "blocks.7.hook_resid_post", "v5_32k_layer_7.pt"),
    ("gemma-scope-2b-pt-res-canonical", "layer_20/width_16k/canonical", "layer_20/width_16k/average_l0_71"),
    ("gemma-scope-2-1b-pt-res", "layer_13_width_16k_l0_medium", "resid_post/layer_13_width_16k_l0_medium"),
    ("llama_scope_lxr_8x", "l15r_8x", "Llama3_1-8B-Base-L15R-8x"),
    ("sae_bench_gemma-2-2b_topk_width-2pow12_date-1109", "blocks.12.hook_resid_post__trainer_0",
     "gemma-2-2b_topk_width-2pow12_date-1109/resid_post_layer_12/trainer_0"),
    ("gemma-2b-res-jb", "blocks.12.hook_resid_post", "gemma_2b_blocks.12.hook_resid_post_16384"),
])  # fmt: skip
def test_ids_stand_for_paths(release, sae_id, path):
    (found,) = [one for one in _releases.list_pretrained(name=release) if one.name == release]
    assert path in found.sites and found.site_of_id.get(sae_id, sae_id) == path


def test_what_makes_no_sae_is_refused():
    with pytest.raises(ConfigError, match="load_from_disk"):
        SAE({"d_in": 4, "d_sae": 8})
    with pytest.raises(ConfigError, match="load_from_disk"):
        SAE.from_dict({"d_in": 4, "d_sae": 8})
    sae = SAE(AutoEncoder(DIM, SIZE))
    assert SAE(sae).dictionary is sae.dictionary
    with pytest.raises(ConfigError, match="keep_error=False"):
        sae.use_error_term = True
    with pytest.raises(ConfigError, match="dtype='floa32'"):
        SAE.load_from_disk(golden.folder("saelens/standard"), dtype="floa32")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    jaxtyping.config.update("jaxtyping_disable", True)
    yield Place(tmp_path_factory.mktemp("place"))
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def in_saes(value):
    """Returns an argument with each dictionary in an SAE."""
    if isinstance(value, Dictionary):
        return SAE(value)
    if isinstance(value, dict):
        return {name: in_saes(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [in_saes(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.filterwarnings("ignore")
def test_functions_take_an_sae_as_the_dictionary_inside(place, monkeypatch):
    def used(*arguments, **options):
        raise AssertionError("the SAE itself was used, and not the dictionary inside")

    for method in ("encode", "decode", "forward", "reconstruct", "decode_with"):
        monkeypatch.setattr(SAE, method, used)
    found = []
    for name, call in CALLS.items():
        function, given = call(place)
        wrapped = in_saes(given)
        if repr(wrapped) == repr(given):
            continue  # it takes no dictionary
        found.append(name)
        try:
            made = function(**wrapped)
            next(made) if hasattr(made, "__next__") else None
        except CheckpointError:
            assert name == "push_to_hub"  # there is no hub
    assert len(found) > LEAST


def test_a_config_may_start_from_an_sae():
    sae = SAE(AutoEncoderTopK(DIM, SIZE, 2))
    assert TrainerTopK.Config(k=2, finetune=sae).finetune is sae.dictionary


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda sae: pickle.loads(pickle.dumps(sae))])
def test_copies_are_apart(copied):
    sae = SAE(known(AutoEncoderTopK(DIM, SIZE, 2)))
    other = copied(sae)
    assert (other.cfg.k, other.cfg.hook_name, other.info) == (2, "blocks.1.hook_resid_post", sae.info)
    other.W_enc.data[:], other.cfg.hook_name = 0.0, "blocks.0.hook_mlp_out"
    assert sae.W_enc.abs().max() > 0 and sae.cfg.hook_name == "blocks.1.hook_resid_post"


def test_transcoders_have_their_widths():
    sae = SAE(Transcoder(DIM, SIZE, {"name": "relu"}, output_dim=3))
    assert (sae.cfg.d_in, sae.cfg.d_out, sae.cfg.architecture) == (DIM, 3, "transcoder")
    assert sae(torch.randn(2, DIM)).shape == (2, 3) and sae.get_name() == "sae_None_None_8"
