"""Lines of scripts for dictionary-learning 0.1: each does what it did there, or says why not."""

import collections
import contextlib
import copy
import importlib
import inspect
import json
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from dictionary_learning import load_dictionary, trainSAE, utils
from dictionary_learning.compat._dictionary_names import of_release
from dictionary_learning.dictionaries import Crosscoder
from dictionary_learning.dictionary import (
    AutoEncoder,
    AutoEncoderNew,
    Dictionary,
    GatedAutoEncoder,
    IdentityDict,
    JumpReluAutoEncoder,
)
from dictionary_learning.errors import CheckpointError, ConfigError, DictionaryLearningError
from dictionary_learning.trainers import (
    BatchTopKTrainer,
    JumpReluTrainer,
    SAETrainer,
    StandardTrainer,
    TopKTrainer,
    TrainerTopK,
)
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE, MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.trainers.trainer import ConstrainedAdam
from tests.test_resume import check_resumes
from tests.tiny import Planted

FIXTURES = Path(__file__).parents[1] / "fixtures" / "dictionary_learning"
D, F = 32, 96
FORM = {"steps": 12, "activation_dim": D, "dict_size": F, "layer": 3, "lm_name": "tiny", "device": "cpu"}
PATHS = {
    "": "AutoEncoder GatedAutoEncoder JumpReluAutoEncoder ActivationBuffer __version__",
    "buffer": "ActivationBuffer HeadActivationBuffer NNsightActivationBuffer",
    "pytorch_buffer": "ActivationBuffer collect_activations EarlyStopException",
    "activault_s3_buffer": "S3RCache ActivaultS3ActivationBuffer create_s3_client",
    "config": "DEBUG",
    "evaluation": "evaluate loss_recovered",
    "interp": "feature_effect examine_dimension feature_umap",
    "training": "trainSAE get_norm_factor log_stats new_wandb_process",
    "utils": "hf_dataset_to_generator load_dictionary get_nested_folders get_submodule truncate_model",
    "trainers.jumprelu": "RectangleFunction JumpReLUFunction StepFunction",
    "trainers.matryoshka_batch_top_k": "apply_temperature",
}


@pytest.mark.parametrize(("module", "name"), [(m, n) for m, names in PATHS.items() for n in names.split()])
def test_import_paths(module, name):
    assert hasattr(importlib.import_module(f"dictionary_learning.{module}".rstrip(".")), name)


def test_what_is_gone_says_so_where_it_is_used():
    from dictionary_learning.activault_s3_buffer import S3RCache, create_s3_client
    from dictionary_learning.buffer import HeadActivationBuffer, NNsightActivationBuffer
    from dictionary_learning.training import log_stats

    for gone in (S3RCache, create_s3_client, HeadActivationBuffer, NNsightActivationBuffer, log_stats):
        with pytest.raises(ConfigError, match=r"migrating\.md"):
            gone("anything", layer=3)
    with pytest.raises(ConfigError, match=r"migrating\.md"):
        S3RCache.from_credentials("key", "secret")


def test_weights_are_written_through_encoder_and_decoder():
    ae, x = AutoEncoder(activation_dim=2, dict_size=3), torch.randn(5, 2)
    W, V = torch.randn(3, 2), torch.randn(2, 3)
    ae.encoder.weight.data = W
    ae.decoder.weight.data = V
    ae.bias.data = torch.ones(2)
    ae.encoder.bias.data = torch.full((3,), 0.5)
    f = torch.relu((x - 1) @ W.T + 0.5)
    torch.testing.assert_close(ae.encode(x), f)
    torch.testing.assert_close(ae.encoder(x - ae.bias).relu(), f)
    torch.testing.assert_close(ae.decode(f=f), f @ V.T + 1)
    torch.testing.assert_close(ae.decoder(f), f @ V.T)
    assert ae.decoder.bias is None and AutoEncoderNew(2, 3).decoder.bias is not None
    ae.decoder.weight.data /= 2
    ae.decoder.weight.data.mul_(4)
    torch.testing.assert_close(ae.W_dec, 2 * V.T)
    ae.decoder.weight = nn.Parameter(V)
    torch.testing.assert_close(ae.W_dec, V.T)
    with pytest.raises(ConfigError, match="shape"):
        ae.decoder.weight.data = V.T
    ae.bias = nn.Parameter(torch.full((2,), 3.0))  # written: a second parameter would be trained in its place
    assert ae.b_dec.tolist() == [3, 3] and [n for n, _ in ae.named_parameters()] == ["W_dec", "W_enc", "b_enc", "b_dec"]
    ae.decoder.weight.norm(dim=0).sum().backward()
    torch.testing.assert_close(ae.decoder.weight.grad, ae.W_dec.grad.T)
    assert type(ae.decoder.weight + 1) is torch.Tensor


@pytest.mark.parametrize("make", [
    lambda: AutoEncoder(4, 6), lambda: AutoEncoderNew(4, 6), lambda: GatedAutoEncoder(4, 6),
    lambda: JumpReluAutoEncoder(4, 6), lambda: AutoEncoderTopK(4, 6, 2), lambda: BatchTopKSAE(4, 6, 2),
    lambda: MatryoshkaBatchTopKSAE(4, 6, 2, [2, 4]), lambda: Crosscoder([2, 2], 6, {"name": "relu"}),
])  # fmt: skip
def test_parts_are_assigned_or_refused(make):
    ae, x = make(), torch.randn(5, 4)
    encoder, decoder = nn.Linear(4, 6, bias=ae.b_enc is not None), nn.Linear(6, 4, bias=ae.decoder.bias is not None)
    ae.encoder, ae.decoder = encoder, decoder
    assert not {"encoder", "decoder"} & ae._modules.keys()
    center = ae.b_dec if ae.centered else 0
    torch.testing.assert_close(ae.pre_activations(x), encoder(x - center))
    f = torch.rand(5, 6)
    torch.testing.assert_close(ae.decode(f), f @ decoder.weight.T + ae.b_dec)
    ae.encoder = nn.Linear(4, 6, bias=False)
    assert ae.encoder.bias is None or not ae.encoder.bias.any()
    for wrong in (nn.Linear(4, 7), nn.Sequential(nn.Linear(4, 6)), None):
        with pytest.raises(ConfigError):
            ae.encoder = wrong
    if ae.decoder.bias is None:
        with pytest.raises(ConfigError, match="bias=False"):
            ae.decoder = nn.Linear(6, 4)
    for name in ("bias", "decoder_bias", "r_mag", "gate_bias", "mag_bias", "threshold"):
        if isinstance(getattr(ae, name, None), torch.Tensor):
            value = torch.rand(getattr(ae, name).shape)
            setattr(ae, name, nn.Parameter(value) if value.ndim else value)
            torch.testing.assert_close(getattr(ae, name).detach(), value)
            with pytest.raises(ConfigError, match="shape"):
                setattr(ae, name, nn.Parameter(torch.zeros(3, 3)))
    if hasattr(ae, "k"):
        for write in (lambda k: setattr(ae, "k", k), lambda k: setattr(ae, "k", torch.tensor(k)), ae.k.fill_):
            for k in (3, 5):
                write(k)
                assert ae.k == ae.nonlinearity.k == ae.k.item() == k
                assert (ae.encode_sparse(x).values != 0).sum() <= 5 * k
            for wrong in (0, 7, 2.5):
                with pytest.raises(ConfigError):
                    write(wrong)
    copy.deepcopy(ae)


def test_decoder_rows_are_normalized_and_the_output_stays():
    ae, x = AutoEncoder(4, 3), torch.randn(6, 4)
    ae.decoder.weight.data = 3 * torch.randn(4, 3)
    before = ae(x)
    ae.normalize_decoder()
    torch.testing.assert_close(ae.decoder.weight.norm(dim=0), torch.ones(3))
    torch.testing.assert_close(ae(x), before)


def test_gated_parameters_and_flags():
    ae = GatedAutoEncoder(4, 6, initialization=lambda ae: ae.gate_bias.data.fill_(0.25), device="cpu")
    ae.decoder.weight.data *= torch.arange(1.0, 7)
    ae.r_mag.data = torch.randn(6)
    ae.mag_bias.data, ae.decoder_bias.data = torch.randn(6), torch.randn(4)
    x, norms = torch.randn(5, 4), ae.decoder.weight.norm(dim=0)
    e = (x - ae.decoder_bias) @ ae.encoder.weight.T
    f = (e + 0.25 > 0) * torch.relu(ae.r_mag.exp() * e + ae.mag_bias)
    torch.testing.assert_close(ae.encode(x), f)
    torch.testing.assert_close(ae.encode(x, True)[1], torch.relu(e + 0.25))
    scaled, _ = ae.encode(x, return_gate=True, normalize_decoder=True)
    torch.testing.assert_close(scaled, f * norms)
    torch.testing.assert_close(ae.decode(scaled, True), ae.decode(f))
    x_hat, features = ae(x, output_features=True, normalize_decoder=True)
    torch.testing.assert_close(x_hat, ae(x))
    torch.testing.assert_close(features, scaled)
    with pytest.raises(ConfigError):
        GatedAutoEncoder(4, 6, "kaiming")
    with pytest.raises(ConfigError):
        AutoEncoder(4, 6).decode(f, normalize_decoder=True)


def test_ghost_mask():
    ae, x, mask = AutoEncoder(4, 6), torch.randn(5, 4), torch.tensor([1.0, 0, 0, 1, 1, 0])
    _, ghost, f = ae(x, output_features=True, ghost_mask=mask)
    torch.testing.assert_close(ghost, (((x - ae.bias) @ ae.W_enc.T + ae.b_enc).exp() * mask) @ ae.W_dec)
    torch.testing.assert_close(f, ae.encode(x))
    assert len(ae(x, ghost_mask=mask)) == 2 and torch.equal(ae(x, ghost_mask=None), ae(x))


def test_jump_relu_and_top_k_flags(caplog):
    for jump in (JumpReluAutoEncoder(4, 6, "cpu"), JumpReluAutoEncoder(4, 6, device="cpu")):
        assert float(jump.threshold.detach()[0]) == pytest.approx(1e-3)
    x = torch.randn(5, 4)
    pre = x @ jump.W_enc.T + jump.b_enc
    torch.testing.assert_close(jump.encode(x, output_pre_jump=True)[1], pre)
    jump.b_dec.data += 1
    jump.apply_b_dec_to_input = True
    torch.testing.assert_close(jump.encode(x, output_pre_jump=True)[1], (x - 1) @ jump.W_enc.T + jump.b_enc)
    top = AutoEncoderTopK(4, 6, 2)
    top.nonlinearity.threshold.fill_(0.1)
    dense, values, indices, post = top.encode(x, return_topk=True, use_threshold=True)
    torch.testing.assert_close(dense, post * (post > 0.1))
    assert values.shape == indices.shape == (5, 2) and top.k.item() == 2 and json.dumps(top.k) == "2"
    assert not caplog.records
    JumpReluAutoEncoder(4, 4)
    MatryoshkaBatchTopKSAE(4, 4, 1, [2, 2])
    assert [record.message.split()[0] for record in caplog.records] == ["W_enc", "W_enc"]


def test_identity():
    x = torch.randn(3, 7)
    for ae in (
        IdentityDict(),
        IdentityDict(7),
        IdentityDict(7, torch.float32, "cpu"),
        IdentityDict.from_pretrained(7, "nowhere"),
    ):
        assert torch.equal(ae(x), x) and torch.equal(ae(x, output_features=True)[1], x)
        mask = torch.ones(7)
        assert torch.equal(ae(x, ghost_mask=mask), x) and torch.equal(ae(x, True, mask)[1], x)
    assert IdentityDict(7, torch.float64).encode(x).dtype == torch.float64


@pytest.mark.parametrize(("name", "make"), [
    ("AutoEncoder", AutoEncoder), ("AutoEncoderNew", AutoEncoderNew), ("GatedAutoEncoder", GatedAutoEncoder),
    ("AutoEncoderTopK", lambda d, f: AutoEncoderTopK(d, f, 4)), ("BatchTopKSAE_threshold", lambda d, f: BatchTopKSAE(d, f, 4)),
    ("MatryoshkaBatchTopKSAE_threshold", None), ("JumpReluAutoEncoder", JumpReluAutoEncoder),
])  # fmt: skip
def test_state_dicts_of_ae_pt_are_loaded_by_hand(name, make):
    known = load_dictionary(FIXTURES / name)
    state = torch.load(FIXTURES / name / "ae.pt", weights_only=True)
    if make is None:
        made = MatryoshkaBatchTopKSAE(16, 64, int(state["k"]), state["group_sizes"].tolist())
    else:
        made = make(16, 64) if "k" not in state else type(make(16, 64))(16, 64, int(state["k"]))
    made.load_state_dict(state)
    x = torch.randn(9, 16)
    torch.testing.assert_close(made.encode(x), known.encode(x))
    torch.testing.assert_close(made(x), known(x))
    if "k" in state:
        with pytest.raises(CheckpointError, match="k="):
            (AutoEncoderTopK(16, 64, 63)).load_state_dict(state)


@pytest.mark.parametrize("cls", [AutoEncoderTopK, BatchTopKSAE])
def test_a_named_class_needs_no_config(cls, tmp_path):
    folder = FIXTURES / ("AutoEncoderTopK" if cls is AutoEncoderTopK else "BatchTopKSAE_threshold")
    (tmp_path / "ae.pt").write_bytes((folder / "ae.pt").read_bytes())
    k = int(torch.load(folder / "ae.pt", weights_only=True)["k"])
    for ae in (cls.from_pretrained(tmp_path / "ae.pt", k, "cpu"), cls.from_pretrained(str(tmp_path / "ae.pt"), k=k)):
        assert type(ae) is cls and ae.k == k
    with pytest.raises(CheckpointError):
        cls.from_pretrained(tmp_path / "ae.pt", k + 1)


def test_norms_are_rescaled_where_0_1_rescales_them(caplog):
    stored = load_dictionary(FIXTURES / "AutoEncoder")
    rescaled, config = utils.load_dictionary(base_path=FIXTURES / "AutoEncoder", device="cpu")
    torch.testing.assert_close(rescaled.decoder.weight.norm(dim=0), torch.ones(64))
    assert config["trainer"]["dict_class"] == "AutoEncoder" and not caplog.records
    asked = AutoEncoder.from_pretrained(FIXTURES / "AutoEncoder" / "ae.pt", torch.float32, "cpu", True)
    torch.testing.assert_close(asked.W_enc, rescaled.W_enc)
    kept = AutoEncoder.from_pretrained(FIXTURES / "AutoEncoder", normalize_decoder=False)
    assert torch.equal(kept.W_enc, stored.W_enc) and not caplog.records
    AutoEncoder.from_pretrained(FIXTURES / "AutoEncoder")
    assert "rescales latents" in caplog.text


def test_sae_lens_releases_are_asked_for_by_name():
    with pytest.raises(ConfigError, match="release="):
        JumpReluAutoEncoder.from_pretrained(load_from_sae_lens=True)
    sae_lens = Path(__file__).parents[1] / "fixtures" / "saelens" / "jumprelu"
    loaded = JumpReluAutoEncoder.from_pretrained(
        load_from_sae_lens=True, release=str(sae_lens.parent), sae_id="jumprelu"
    )
    assert type(loaded) is JumpReluAutoEncoder and loaded.apply_b_dec_to_input
    named = {"release": str(sae_lens.parent), "sae_id": "jumprelu"}
    for device in ("cpu", "meta"):  # the latter has no numbers, so it is refused where it is used
        for placed, further in (
            ((True, torch.float16, device), {}), ((True,), {"dtype": torch.float16, "device": device}),
            ((True, torch.float16), {"device": device}),
        ):  # fmt: skip
            for where, flags, names in ((None, placed, named), (sae_lens, (False, *placed[1:]), {})):
                with contextlib.nullcontext() if device == "cpu" else pytest.raises(ConfigError, match="device='meta'"):
                    loaded = JumpReluAutoEncoder.from_pretrained(where, *flags, **names, **further)
                    assert loaded.dtype == torch.float16
    with pytest.raises(ConfigError, match="device='meta'"):
        JumpReluAutoEncoder.from_pretrained(None, "meta", load_from_sae_lens=True, **named)
    with pytest.raises(TypeError):
        JumpReluAutoEncoder.from_pretrained(sae_lens, False, torch.float16, "cpu", "cpu")
    with pytest.raises(CheckpointError, match="holds a JumpReluAutoEncoder"):
        of_release(GatedAutoEncoder, **named)


# --- trainers ---------------------------------------------------------------------------------


def rates(trainer):
    return [trainer.learning_rate(step) / trainer.settings.lr for step in range(trainer.steps)]


def test_none_means_no_decay_and_no_warm_up():
    top = TopKTrainer(**FORM, k=4, warmup_steps=2, decay_start=None)
    assert rates(top)[2:] == [1.0] * 10
    explicit = TrainerTopK(steps=12, activation_dim=D, dict_size=F, k=4, warmup_steps=2, decay_start=None, device="cpu")
    assert rates(explicit)[2:] == [1.0] * 10
    l1 = StandardTrainer(**FORM, warmup_steps=2, sparsity_warmup_steps=None)
    assert l1.coefficient.now == pytest.approx(0.1)


def test_what_is_left_out_is_as_in_0_1(caplog):
    caplog.set_level(logging.INFO)
    top = TopKTrainer(**FORM, k=4)
    assert "dictionary-learning 0.1" in caplog.text
    assert top.settings.lr == pytest.approx(2e-4 / (F / 2**14) ** 0.5)
    assert (top.settings.beta1, top.settings.beta2, top.settings.max_grad_norm) == (0.9, 0.999, 1.0)
    assert top.lr_factors() == {"W_enc": 1.0, "W_dec": 1.0}
    jump = JumpReluTrainer(**FORM)
    assert (jump.settings.normalize, jump.settings.lr, jump.settings.target_l0) == (None, 7e-5, 20.0)
    long = StandardTrainer(**{**FORM, "steps": 5000})
    assert (long.settings.warmup_steps, long.settings.sparsity_warmup_steps) == (1000, 2000)
    assert float(long.ae.W_dec.detach().norm(dim=1)[0]) == pytest.approx(0.1)
    own = TopKTrainer.Config(k=4).build(activation_dim=D, steps=12, device="cpu")
    assert own.settings.max_grad_norm == 1e-3  # this version's, without `layer` and `lm_name`


def test_every_argument_by_position():
    values = (12, D, F, 4, 3, "tiny", AutoEncoderTopK, 1e-3, 0.5, 2, None, 0.9, 5, None, 7, "cpu", "run", "resid")
    top = TopKTrainer(*values)
    names = [
        "steps",
        "activation_dim",
        "dict_size",
        "k",
        "layer",
        "lm_name",
        "dict_class",
        "lr",
        "auxk_alpha",
        "warmup_steps",
    ]
    named = TopKTrainer(
        **dict(zip(names, values, strict=False)), decay_start=None, threshold_beta=0.9, threshold_start_step=5,
        seed=7, device="cpu", wandb_name="run", submodule_name="resid",
    )  # fmt: skip
    assert top.config == named.config and top.settings.lr == 1e-3 and top.seed == 7


def test_attributes_and_saved_keys():
    top = MatryoshkaBatchTopKTrainer(**FORM, k=4, group_fractions=[0.25, 0.75], wandb_name="run", submodule_name="s")
    assert (top.effective_l0, top.dead_features, top.pre_norm_auxk_loss) == (-1, 0, -1)
    for step, x in enumerate(Planted().batches(3, 64)):
        loss = top.update(step, x)
    assert f"{loss:.3f}" and loss.item() > 0
    assert (top.layer, top.lm_name, top.wandb_name, top.submodule_name) == (3, "tiny", "run", "s")
    assert (top.auxk_alpha, top.threshold_beta, top.top_k_aux) == (1 / 32, 0.999, D // 2)
    assert top.num_tokens_since_fired.shape == (F,) and top.effective_l0 == 4
    assert top.scheduler.get_last_lr()[0] == top.learning_rate(3) and top.scheduler.last_epoch == 3
    assert top.config["top_k_aux"] == D // 2 and top.config["group_sizes"] == [24, 72]
    thirds = MatryoshkaBatchTopKTrainer(**FORM, k=4, group_fractions=[1 / 3, 1 / 3, 1 / 3])
    assert thirds.config["group_sizes"] == list(thirds.ae.group_sizes) == [32, 32, 32]
    assert StandardTrainer(**FORM, l1_penalty=0.3).config["l1_penalty"] == 0.3
    with pytest.raises(AttributeError, match=r"migrating\.md"):
        _ = top.get_auxiliary_loss
    with pytest.raises(AttributeError):
        _ = top.nothing
    total = top.loss(Planted().batch(8), step=3)
    total.backward()
    assert top.ae.W_dec.grad is not None


def test_constrained_adam_normalizes_columns_of_linear_and_rows_of_ours():
    linear, ae = nn.Linear(6, 4, bias=False), AutoEncoder(4, 6)
    for module, decoder in ((linear, linear.parameters()), (ae, ae.decoder.parameters())):
        optimizer = ConstrainedAdam(module.parameters(), decoder, lr=0.1)
        for parameter in module.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    torch.testing.assert_close(linear.weight.norm(dim=0), torch.ones(6))
    torch.testing.assert_close(ae.decoder.weight.norm(dim=0), torch.ones(6))


# --- classes of one's own ---------------------------------------------------------------------


class MyDict(Dictionary, nn.Module):
    def __init__(self, activation_dim, dict_size):
        super().__init__()
        self.activation_dim = activation_dim
        self.dict_size = dict_size
        self.encoder = nn.Linear(activation_dim, dict_size)
        self.decoder = nn.Linear(dict_size, activation_dim, bias=False)
        self.bias = nn.Parameter(torch.zeros(activation_dim))

    def encode(self, x):
        return self.encoder(x).relu()

    def decode(self, f):
        return self.decoder(f) + self.bias

    def forward(self, x, output_features=False):
        f = self.encode(x)
        return (self.decode(f), f) if output_features else self.decode(f)

    def scale_biases(self, scale):
        self.encoder.bias.data *= scale
        self.bias.data *= scale

    @classmethod
    def from_pretrained(cls, path, device=None):
        state = torch.load(path, weights_only=True)
        made = cls(*reversed(state["encoder.weight"].shape))
        made.load_state_dict(state)
        return made


class MyTrainer(SAETrainer):
    def __init__(
        self, steps, activation_dim, dict_size, layer, lm_name, lr=1e-2, seed=None, device="cpu", wandb_name="mine"
    ):
        super().__init__(seed)
        if seed is not None:
            torch.manual_seed(seed)
        self.layer, self.lm_name, self.lr, self.wandb_name = layer, lm_name, lr, wandb_name
        self.ae = MyDict(activation_dim, dict_size).to(device)
        self.optimizer = ConstrainedAdam(self.ae.parameters(), self.ae.decoder.parameters(), lr=lr)
        self.logging_parameters = ["n_seen"]
        self.n_seen = 0

    def loss(self, x, step=None, logging=False):
        x_hat, f = self.ae(x, output_features=True)
        return (x - x_hat).pow(2).sum(-1).mean() + 0.01 * f.sum(-1).mean()

    def update(self, step, activations):
        self.n_seen += len(activations)
        self.optimizer.zero_grad()
        loss = self.loss(activations)
        loss.backward()
        self.optimizer.step()

    @property
    def config(self):
        return {"trainer_class": "MyTrainer", "dict_class": "MyDict", "layer": self.layer, "lm_name": self.lm_name}


def test_own_trainer_and_dictionary_train(tmp_path):
    figures = []

    class Log:
        def log(self, values, step, tokens):
            figures.append(values)

        def close(self):
            pass

    config = {"trainer": MyTrainer, **FORM}
    (ae,) = trainSAE(
        list(Planted().batches(12, 64)), [config], 12, save_dir=tmp_path / "run", progress=False, loggers=[Log()],
        log_steps=1, normalize_activations=True,
    )  # fmt: skip
    by_hand = MyTrainer(**FORM)
    assert by_hand.ae.output_dim == D and by_hand.seed is None
    assert isinstance(ae, MyDict) and figures[-1]["mine"]["n_seen"] == 12 * 64
    assert figures[-1]["mine"]["fvu"] != figures[0]["mine"]["fvu"]
    x = Planted().batch(32)
    again = MyDict.from_pretrained(tmp_path / "run" / "trainer_0" / "ae.pt")
    torch.testing.assert_close(again(x), ae(x))
    said = json.loads((tmp_path / "run" / "trainer_0" / "config.json").read_text())["trainer"]
    assert (said["trainer_class"], said["dict_class"], said["layer"]) == ("MyTrainer", "MyDict", 3)


class Counting(MyTrainer):
    """Its next steps depend on what it counted, saw and drew before."""

    def __init__(self, **options):
        super().__init__(**options)
        self.since_fired, self.past, self.pace = torch.zeros(F), [], {"now": 1.0}
        self.bias = nn.Parameter(torch.zeros(D))
        self.optimizer = torch.optim.Adam([*self.ae.parameters(), self.bias], lr=self.lr)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1 / (1 + step))
        self.generator = torch.Generator().manual_seed(1)

    def loss(self, x, step=None, logging=False):
        x_hat, f = self.ae(x + self.bias, output_features=True)
        weight = 1e-3 * self.pace["now"] * (1 + self.n_seen / 64) * (1 + self.since_fired)
        return (x - x_hat).pow(2).sum(-1).mean() + (weight * f).sum(-1).mean() * (1 + len(self.past))

    def update(self, step, activations):
        x = activations + 0.1 * torch.randn(activations.shape, generator=self.generator)
        with torch.no_grad():
            fires = (self.ae.encode(x) > 0).any(0)
        self.since_fired = torch.where(fires, 0.0, self.since_fired + 1)
        self.past = [*self.past, fires.float().mean()][-3:]
        self.pace["now"] = float(torch.stack(self.past).mean())
        super().update(step, x)
        self.scheduler.step()


@pytest.mark.parametrize("normalize_activations", [True, False])
def test_own_trainer_resumes_to_the_same_bytes(normalize_activations, tmp_path, caplog):
    config = {"trainer": Counting, **FORM, "seed": 5}
    data = list(Planted().batches(12, 64))
    data[1][3] = torch.nan  # which is counted
    check_resumes(
        lambda: [x.clone() for x in data], config, tmp_path, stops=(2, 6),
        normalize_activations=normalize_activations, save_format="dictionary_learning",
    )  # fmt: skip
    assert "do not hold" not in caplog.text
    last = json.loads((tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()[-1])
    assert '"n_seen": 768' in json.dumps(last) and '"nonfinite_tokens": 1' in json.dumps(last)


def test_what_no_checkpoint_holds_is_told_where_a_run_goes_on(tmp_path, caplog):
    class Queue(MyTrainer):
        def __init__(self, **options):
            super().__init__(**options)
            self.seen, self.on, self.made = collections.deque([0], 3), torch.device("cpu"), nn.ReLU

    check_resumes(
        lambda: list(Planted().batches(4, 64)), {"trainer": Queue, **FORM, "seed": 5, "steps": 4}, tmp_path, stops=(2,),
        steps=4, save_format="dictionary_learning",
    )  # fmt: skip
    assert "Checkpoints of Queue do not hold seen (deque)" in caplog.text


class Described(MyTrainer):
    """Has more than a trainer of this package has, which its subclasses inherit."""

    @classmethod
    def of_form(cls):
        return cls(**FORM)

    @property
    def n_batches(self):
        return self.n_seen // 64

    def get_logging_parameters(self):
        return {"loudness": 7.0}


class Further(Described):
    def loss(self, x, step=None, logging=False):
        return 2 * super().loss(x, step, logging)


class Sized:
    @property
    def dict_size(self):
        return self.ae.dict_size + 1


class Mixed(Sized, SAETrainer):
    def __init__(self, dict_size, **_):
        super().__init__(None)
        self.ae = MyDict(D, dict_size)

    def update(self, step, activations):
        pass


def test_own_trainer_is_inherited_whole():
    data = list(Planted().batches(2, 64))
    made = Further.of_form()
    for step, x in enumerate(data):
        made.update(step, x)
    assert made.config == MyTrainer(**FORM).config and made.config["layer"] == 3
    assert made.n_batches == 2 and made.get_logging_parameters() == {"loudness": 7.0}
    assert Further.Config is not Described.Config and Further.Config.trainer_class is Further
    assert Mixed(dict_size=F).dict_size == F + 1 and Mixed(dict_size=F).config == {"wandb_name": "trainer"}
    twice, once = Further(**FORM, seed=5), Described(**FORM, seed=5)
    torch.testing.assert_close(twice.loss(data[0]), 2 * once.loss(data[0]))
    torch.manual_seed(3)
    by_hand = Further(**FORM)
    for step, x in enumerate(data):
        by_hand.update(step, x)
    torch.manual_seed(3)
    (ae,) = trainSAE([x.clone() for x in data], [{"trainer": Further, **FORM, "steps": 2}], 2, progress=False)
    for one, other in zip(ae.parameters(), by_hand.ae.parameters(), strict=True):
        torch.testing.assert_close(one, other.detach())


def test_own_trainer_makes_its_own_steps():
    torch.manual_seed(3)
    by_hand = MyTrainer(**FORM)
    for step, x in enumerate(Planted().batches(12, 64)):
        by_hand.update(step, x)
    torch.manual_seed(3)
    (ae,) = trainSAE(list(Planted().batches(12, 64)), [{"trainer": MyTrainer, **FORM}], 12, progress=False)
    for one, other in zip(ae.parameters(), by_hand.ae.parameters(), strict=True):
        torch.testing.assert_close(one, other.detach())


class MyTopK(AutoEncoderTopK):
    def __init__(self, activation_dim, dict_size, k):
        super().__init__(activation_dim, dict_size, k)
        self.encoder.weight.data *= 0.5


def test_own_subclass_of_a_dictionary_trains(tmp_path):
    config = {"trainer": TopKTrainer, "dict_class": MyTopK, "k": 4, **FORM}
    for form in ("own", "dictionary_learning"):
        (ae,) = trainSAE(
            list(Planted().batches(12, 64)), [config], 12, save_dir=tmp_path / form, progress=False, save_format=form
        )
        assert type(ae) is MyTopK
        x, loaded = Planted().batch(32), load_dictionary(tmp_path / form / "trainer_0")
        torch.testing.assert_close(loaded(x), ae(x))
        assert loaded.info.config["peer"]["trainer"]["own_class"] == "MyTopK"


# --- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["typed", "dict", "recipe"])
def test_files_are_those_of_0_1(way, tmp_path):
    from dictionary_learning.trainers.recipes import gao_2024

    configs = {
        "typed": TrainerTopK.Config(k=4, dict_size=F),
        "dict": {"trainer": TopKTrainer, "k": 4, **FORM},
        "recipe": gao_2024(k=4, dict_size=F, normalize="unit_mean_square"),
    }
    (ae,) = trainSAE(
        list(Planted().batches(12, 64)), configs[way], 12, save_dir=tmp_path, progress=False, save_steps=[0, 6],
        save_format="dictionary_learning", device="cpu",
    )  # fmt: skip
    folder = tmp_path / "trainer_0"
    assert utils.get_nested_folders(str(tmp_path)) == [str(folder)]
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {"ae.pt", "config.json", "checkpoints/ae_0.pt", "checkpoints/ae_6.pt"}
    state = torch.load(folder / "ae.pt", weights_only=True)
    assert sorted(state) == ["b_dec", "decoder.weight", "encoder.bias", "encoder.weight", "k", "threshold"]
    said = json.loads((folder / "config.json").read_text())["trainer"]
    assert (said["trainer_class"], said["dict_class"], said["k"]) == ("TopKTrainer", "AutoEncoderTopK", 4)
    x = Planted().batch(32)
    torch.testing.assert_close(utils.load_dictionary(str(folder), device="cpu")[0](x), ae(x))
    f = torch.relu((x - state["b_dec"]) @ state["encoder.weight"].T + state["encoder.bias"])
    kept = torch.zeros_like(f).scatter(1, f.topk(4).indices, f.topk(4).values)
    torch.testing.assert_close(kept @ state["decoder.weight"].T + state["b_dec"], ae(x), atol=1e-5, rtol=1e-4)


def test_a_format_that_cannot_hold_it_is_refused_before_training(tmp_path):
    data = list(Planted().batches(3, 64))
    with pytest.raises(CheckpointError, match="GroupMax"):
        trainSAE(data, {"trainer": "group_max", "k": 4, "dict_size": F}, 3, save_dir=tmp_path / "a", progress=False, save_format="dictionary_learning")  # fmt: skip
    with pytest.raises(DictionaryLearningError, match="format"):
        trainSAE(data, {"trainer": "top_k"}, 3, save_dir=tmp_path / "b", progress=False, save_format="pickle")


def test_batch_top_k_config_has_what_saebench_looks_up(tmp_path):
    trainSAE(list(Planted().batches(3, 64)), {"trainer": BatchTopKTrainer, "k": 4, **FORM, "steps": 3}, 3, save_dir=tmp_path, progress=False, save_format="dictionary_learning")  # fmt: skip
    said = json.loads((tmp_path / "trainer_0" / "config.json").read_text())
    assert {"layer", "lm_name", "k", "dict_class", "trainer_class", "top_k_aux"} <= said["trainer"].keys()
    assert said["trainer"]["layer"] == 3 and inspect.getmodule(BatchTopKTrainer)
