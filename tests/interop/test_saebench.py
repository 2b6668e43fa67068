"""A dictionary behind the interface that SAEBench's evaluations use."""

import pytest
import torch

from dictionary_learning import (
    AutoEncoder,
    AutoEncoderTopK,
    JumpReluAutoEncoder,
    Transcoder,
    as_custom_sae,
    load_dictionary,
)
from dictionary_learning.dictionaries import Normalized
from dictionary_learning.errors import ConfigError
from tests.interop import golden

WHERE = {"model_name": "pythia-70m-deduped", "hook_name": "blocks.3.hook_resid_post"}
X = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(3))


def perturbed(dictionary):
    with torch.no_grad():
        for tensor in dictionary.parameters():
            tensor.add_(0.3 * torch.rand_like(tensor))
    return dictionary


@pytest.mark.parametrize(
    "build", [lambda: AutoEncoder(12, 40), lambda: JumpReluAutoEncoder(12, 40, 0.1), lambda: AutoEncoderTopK(12, 40, 4)]
)
def test_outputs_stay_and_orientation_is_theirs(build):
    dictionary = perturbed(build())
    sae = as_custom_sae(dictionary, **WHERE)
    torch.testing.assert_close(sae(X), dictionary(X).detach())
    torch.testing.assert_close(sae.decode(sae.encode(X)), sae(X))
    assert sae.W_enc.shape == (12, 40) and sae.W_dec.shape == (40, 12)
    assert sae.b_enc.shape == (40,) and sae.b_dec.shape == (12,)
    assert sae.b_mag.shape == (40,)
    if not isinstance(dictionary, AutoEncoderTopK):  # which compares latents by value
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(40))
    assert not any(a is b for a in sae.parameters() for b in dictionary.parameters())


def test_settings_are_those_that_evaluations_ask_for():
    sae = as_custom_sae(AutoEncoderTopK(12, 40, 4), **WHERE, context_size=64)
    cfg = sae.cfg.to_dict()
    wanted = {
        "model_name": "pythia-70m-deduped", "d_in": 12, "d_sae": 40, "hook_name": "blocks.3.hook_resid_post", "hook_layer": 3,
        "context_size": 64, "architecture": "topk", "dtype": "float32", "device": "cpu", "hook_head_index": None,
    }  # fmt: skip
    assert {name: cfg[name] for name in wanted} == wanted


def test_what_a_file_says_is_taken():
    dictionary = load_dictionary(golden.folder("saelens/jumprelu"))
    sae = as_custom_sae(dictionary)
    assert (sae.cfg.model_name, sae.cfg.hook_name, sae.cfg.hook_layer) == ("gelu-1l", "blocks.0.hook_mlp_out", 0)


def test_moving_and_casting_is_said():
    sae = as_custom_sae(AutoEncoder(12, 40), **WHERE).to(dtype=torch.bfloat16)
    assert sae.cfg.dtype == "bfloat16" and sae.dtype == torch.bfloat16
    assert sae.encode(X).dtype == torch.bfloat16 and sae(X.bfloat16()).dtype == torch.bfloat16
    assert str(sae.device) == sae.cfg.device == "cpu"


def test_what_latents_alone_do_not_decode_is_refused():
    for dictionary in (Transcoder(12, 40, {"name": "relu"}, skip=True), Normalized(AutoEncoder(12, 40), "layer_norm")):
        with pytest.raises(ConfigError, match="decodes latents alone"):
            as_custom_sae(dictionary, **WHERE)
    with pytest.raises(ConfigError, match="which model and which hook"):
        as_custom_sae(AutoEncoder(12, 40))


class Tokens:
    """Random tokens, as the evaluation asks its store of activations for them."""

    normalize_activations = "none"
    store_batch_size_prompts = 4
    context_size = 16

    def get_batch_tokens(self, n=4):
        return torch.randint(0, 50, (n or 4, 16))

    def apply_norm_scaling_factor(self, x):
        return x

    def unscale(self, x):
        return x

    def reset_input_dataset(self):
        pass


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["saelens/jumprelu", "dictionary_learning/BatchTopKSAE_threshold", "sparsify/topk", "dictionary_learning/GatedAutoEncoder"]
)  # fmt: skip
def test_saebench_evaluates_it(name):
    core = pytest.importorskip("sae_bench.evals.core.main")
    lens = pytest.importorskip("transformer_lens")
    from sae_bench.evals.core.eval_config import CoreEvalConfig
    from sae_bench.sae_bench_utils.general_utils import load_and_format_sae

    shape = {"n_layers": 2, "d_model": 16, "n_ctx": 16, "d_head": 8, "n_heads": 2, "d_mlp": 32, "d_vocab": 50}
    model = lens.HookedTransformer(lens.HookedTransformerConfig(**shape, act_fn="gelu", device="cpu"))
    dictionary = load_dictionary(golden.folder(name))
    sae = as_custom_sae(dictionary, model_name="tiny", hook_name="blocks.0.hook_mlp_out", context_size=16)
    load_and_format_sae("any", sae, "cpu")
    asked = [field for field in CoreEvalConfig.__dataclass_fields__ if field.startswith("compute_")]
    batches = {"n_eval_reconstruction_batches": 1, "n_eval_sparsity_variance_batches": 1, "batch_size_prompts": 4}
    config = CoreEvalConfig(model_name="tiny", context_size=16, **batches, **dict.fromkeys(asked, True))
    figures, _ = core.run_evals(sae, Tokens(), model, config)
    assert 0 < figures["sparsity"]["l0"] < 64


def test_saelens_loads_what_is_written(tmp_path):
    saelens = pytest.importorskip("sae_lens")
    from dictionary_learning import write_dictionary

    dictionary = perturbed(JumpReluAutoEncoder(12, 40, 0.1))
    sae = saelens.SAE.load_from_disk(str(write_dictionary(dictionary, tmp_path / "d", "sae_lens")))
    torch.testing.assert_close(sae.encode(X), dictionary.encode(X))
