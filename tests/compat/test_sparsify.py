"""Scripts and commands for EleutherAI's sparsify: only the import is another."""

import functools
import json
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from datasets import Dataset

from dictionary_learning import ContextStream, load_dictionary, load_model, parallel, trainSAE
from dictionary_learning.activations._filters import TokenFilter
from dictionary_learning.compat.sparsify import (
    Sae,
    SaeConfig,
    SaeTrainer,
    SparseCoder,
    TrainConfig,
    Trainer,
    TranscoderConfig,
    __main__ as command_module,
    trainer as trainer_module,
)
from dictionary_learning.compat.sparsify._options import parse
from dictionary_learning.compat.sparsify._translation import configs_of, hookpoints_of
from dictionary_learning.compat.sparsify.data import MemmapDataset, chunk_and_tokenize
from dictionary_learning.errors import CheckpointError, ConfigError, DataError, Interrupted
from tests import tiny
from tests.parallel.ranks import results
from tests.test_resume import StopAfter

CTX = 16


@pytest.fixture(scope="module")
def tokenized():
    texts = Dataset.from_dict({"text": tiny.documents(200, seed=3)})
    return chunk_and_tokenize(texts, tiny.tokenizer(), max_seq_len=CTX)


def settings(tmp_path, **changes):
    sae = changes.pop("sae", SaeConfig(k=4, expansion_factor=4))
    return TrainConfig(sae, **{"batch_size": 4, "save_dir": str(tmp_path), "log_to_wandb": False, **changes})


def test_readme_example(tokenized, tmp_path):
    gpt = tiny.model("llama")
    cfg = TrainConfig(SaeConfig(k=4), batch_size=16, save_dir=str(tmp_path), log_to_wandb=False)
    trainer = Trainer(cfg, tokenized, gpt)
    trainer.fit()
    folder = tmp_path / "unnamed"
    assert sorted(path.name for path in folder.iterdir()) == ["layers.0", "layers.1", "layers.2"]
    saes = Sae.load_many(str(folder), local=True)
    assert list(saes) == ["layers.0", "layers.1", "layers.2"] == list(trainer.saes)
    ids = torch.randint(3, tiny.VOCAB, (2, 8))
    outputs = gpt(ids, output_hidden_states=True)
    for (name, sae), hidden in zip(saes.items(), outputs.hidden_states[1:], strict=True):
        assert sae.num_latents == 32 * tiny.DIM and sae.cfg.k == 4 and sae.d_in == tiny.DIM
        out = sae.encode(hidden.flatten(0, 1))
        assert out.top_acts.shape == out.top_indices.shape == (16, 4) and out.pre_acts.shape == (16, 512)
        assert 0 <= sae(hidden.flatten(0, 1)).fvu < 3
        own = load_dictionary(folder / name)
        torch.testing.assert_close(sae(hidden).sae_out, own(hidden), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(saes["layers.1"].W_dec.norm(dim=1), torch.ones(512))


def test_older_name_trains_a_module_with_patterns(tokenized, tmp_path):
    cfg = settings(tmp_path, hookpoints=["layers.[01].mlp"], run_name="mlps", init_seeds=[0, 1])
    trainer = SaeTrainer(cfg, tokenized.select(range(16)), tiny.model("llama"))
    trainer.fit()
    names = [f"layers.{layer}.mlp/seed{seed}" for layer in (0, 1) for seed in (0, 1)]
    assert list(trainer.saes) == names
    assert all((tmp_path / "mlps" / name / "sae.safetensors").is_file() for name in names)


IN_OUR_NAMES = {
    "k": 4, "dict_size": 64, "seed": 0, "normalize": "none", "auxk_alpha": 0.0, "b_dec_init_method": "mean",
    "scale_encoder": False, "encoder_lr_factor": 1.0, "decoder_lr_factor": 1.0, "max_grad_norm": None,
    "unit_norm_decoder": True, "optimizer": "signum_schedule_free", "schedule": "constant", "warmup_steps": 0,
    "dead_feature_threshold": 10_000_000,
}  # fmt: skip
"""What sparsify does without settings."""


def rate(base, dict_size):
    return base / (dict_size / 2**14) ** 0.5


@pytest.mark.parametrize(("changes", "ours"), [
    ({"sae": SaeConfig(k=4, expansion_factor=4, activation="groupmax")}, {"trainer": "group_max"}),
    ({"sae": SaeConfig(k=4, num_latents=96, multi_topk=True), "k_decay_steps": 4}, {
        "dict_size": 96, "multi_topk": True, "k_anneal_steps": 4, "k_anneal_start": 96, "lr": rate(5e-3, 96),
    }),
    ({"sae": TranscoderConfig(k=4, num_latents=64, skip_connection=True), "hookpoints": ["layers.1.mlp"]}, {
        "wiring": "skip_transcoder", "unit_norm_decoder": False,
        "site": "model.layers.1.mlp:in", "target_site": "model.layers.1.mlp:out",
    }),
    ({"optimizer": "adam", "lr_warmup_steps": 2, "auxk_alpha": 1 / 32, "dead_feature_threshold": 100}, {
        "optimizer": "adam", "lr": rate(2e-4, 64), "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "schedule": "linear",
        "warmup_steps": 2, "decay_start": 2, "auxk_alpha": 1 / 32, "dead_feature_threshold": 100,
    }),
    ({"optimizer": "muon", "grad_acc_steps": 2, "micro_acc_steps": 2}, {
        "optimizer": "muon", "lr": 2e-3, "schedule": "linear", "warmup_steps": 0, "decay_start": 0,
        "grad_acc_steps": 2, "micro_acc_steps": 2,
    }),
    ({"loss_fn": "kl", "layers": [1]}, {"loss_fn": "kl"}),
    ({"loss_fn": "ce", "layers": [1], "exclude_tokens": [1, 5]}, {"loss_fn": "ce"}),
    ({"save_best": True, "save_every": 2, "layers": [0]}, {}),
], ids=["groupmax", "multi_topk", "skip_transcoder", "adam", "muon", "kl", "ce", "save_best"])  # fmt: skip
def test_every_setting_trains_what_our_names_say(tokenized, tmp_path, changes, ours):
    cfg, rows = settings(tmp_path, **changes), tokenized.select(range(40))
    trainer = Trainer(cfg, rows, tiny.model("llama"))
    trainer.fit()
    model = load_model(tiny.model("llama"), tokenizer=tiny.tokenizer())
    layers = changes.get("layers", [0, 1, 2])
    configs = [
        {"trainer": "top_k", "lr": rate(5e-3, 64), "site": f"model.layers.{n}:out", **IN_OUR_NAMES, **ours}
        for n in (layers if "target_site" not in ours else [1])
    ]
    stream = ContextStream(
        rows.select(range(36 if cfg.save_best else 40)), model,  # the others decide which is best
        [config[name] for config in configs for name in ("site", "target_site") if name in config],
        ctx_len=CTX, batch_size=4, remove_bos=False, pack=False, predict="loss_fn" in ours,
    )  # fmt: skip
    stream.filter = TokenFilter(exclude_ids=tuple(cfg.exclude_tokens))
    expected = trainSAE(stream, configs, 9 if cfg.save_best else 10, progress=False)
    assert len(trainer.saes) == len(expected)
    for (name, sae), own in zip(trainer.saes.items(), expected, strict=True):
        for one in (sae, Sae.load_from_disk(tmp_path / "unnamed" / name)):
            found = one.state_dict()
            assert found.keys() == SparseCoder.of_dictionary(own).state_dict().keys()
            for part, tensor in SparseCoder.of_dictionary(own).state_dict().items():
                assert torch.equal(found[part], tensor), part
            assert one.cfg.transcode == cfg.sae.transcode and one.cfg.activation == cfg.sae.activation
    if cfg.save_best:
        assert (tmp_path / "unnamed" / "best" / "layers.0" / "cfg.json").is_file()


def test_what_counts_there_counts_here(tokenized, tmp_path):
    cfg = settings(tmp_path, optimizer="adam", lr_warmup_steps=3, grad_acc_steps=2, k_decay_steps=8, exclude_tokens=[1])
    trainer = Trainer(cfg, tokenized, tiny.model("llama"))
    config = trainer.configs["layers.1"]
    assert config.lr == pytest.approx(2e-4 / (64 / 2**14) ** 0.5)
    assert (config.dict_size, config.warmup_steps, config.decay_start) == (64, 3, 3)
    assert (config.k_anneal_steps, config.k_anneal_start) == (4, 64)  # batches there; at most all latents
    batch = next(trainer._stream(tokenized, predict=False))
    first = tokenized[:4]["input_ids"]
    (x,) = (batch[site] for site in batch if "1" in str(site))
    assert len(x) == int((first != 1).sum())  # four sequences, without the tokens that are excluded
    reference = tiny.model("llama")(first, output_hidden_states=True).hidden_states[2][first != 1]
    torch.testing.assert_close(x, reference, atol=1e-5, rtol=1e-4)


def test_hookpoints_are_patterns_in_which_a_star_stands_for_dots():
    model = load_model(tiny.model("gpt2"), tokenizer=tiny.tokenizer())
    found = hookpoints_of(TrainConfig(hookpoints=["h.*.attn", "h.[01].mlp.act"]), model)
    assert list(found) == ["h.0.attn", "h.0.mlp.act", "h.1.attn", "h.1.mlp.act", "h.2.attn"]
    assert str(found["h.0.mlp.act"]) == "transformer.h.0.mlp.act:out"
    assert list(hookpoints_of(TrainConfig(layer_stride=2), model)) == ["h.0", "h.2"]
    with pytest.raises(ConfigError, match="h.9"):
        hookpoints_of(TrainConfig(hookpoints=["h.9.attn"]), model)
    assert len(configs_of(TrainConfig(init_seeds=[0, 1]), {"h.0": 16}, {"h.0": found["h.0.attn"]})) == 2


def test_finetune_starts_from_a_run(tokenized, tmp_path):
    first = Trainer(settings(tmp_path, run_name="first", layers=[1]), tokenized.select(range(16)), tiny.model("llama"))
    first.fit()
    cfg = settings(tmp_path, layers=[1], finetune=str(tmp_path / "first"), lr=1e-9)
    again = Trainer(cfg, tokenized.select(range(16)), tiny.model("llama"))
    again.fit()
    torch.testing.assert_close(again.saes["layers.1"].W_dec, first.saes["layers.1"].W_dec, atol=1e-5, rtol=1e-4)
    cfg = settings(tmp_path, layers=[2], finetune=str(tmp_path / "first"))
    with pytest.raises(CheckpointError, match=r"layers\.2"):
        Trainer(cfg, tokenized, tiny.model("llama"))


def test_coder_by_hand(tmp_path):
    coder = SparseCoder(8, SaeConfig(k=3, num_latents=24))
    coder.b_dec.data, coder.encoder.bias.data = torch.randn(8), torch.randn(24)
    x = torch.randn(2, 5, 8)
    pre = torch.relu((x - coder.b_dec) @ coder.encoder.weight.T + coder.encoder.bias)
    acts, indices, all_pre = coder.encode(x)
    torch.testing.assert_close(all_pre, pre)
    torch.testing.assert_close(acts.sort().values, pre.topk(3).values.sort().values)
    out = coder(x)
    kept = torch.zeros_like(pre).scatter(-1, indices, acts)
    torch.testing.assert_close(out.sae_out, kept @ coder.W_dec + coder.b_dec)
    error, centered = x - out.sae_out, x - x.flatten(0, 1).mean(0)
    torch.testing.assert_close(out.fvu, error.pow(2).sum() / centered.pow(2).sum())
    dead = torch.arange(24) < 10
    assert coder(x, dead_mask=dead).auxk_loss > 0 and coder(x, dead_mask=dead & False).auxk_loss == 0
    coder.save_to_disk(tmp_path / "layers.0")
    SparseCoder(8, SaeConfig(k=3, num_latents=24, skip_connection=True, transcode=True)).save_to_disk(
        tmp_path / "layers.10"
    )
    SparseCoder(8, SaeConfig(k=3, num_latents=24, activation="groupmax")).save_to_disk(tmp_path / "layers.2")
    assert list(Sae.load_many(str(tmp_path))) == ["layers.0", "layers.2", "layers.10"]
    assert list(Sae.load_many(str(tmp_path), layers=["layers.10", "layers.0"])) == ["layers.0", "layers.10"]
    assert list(Sae.load_many(str(tmp_path), local=True, pattern="layers.1*")) == ["layers.10"]
    bare = Sae.load_from_hub(str(tmp_path), hookpoint="layers.0", decoder=False)
    assert bare.W_dec is None and torch.equal(bare.encode(x).top_acts, acts)
    with pytest.raises(ConfigError, match="decoder=False"):
        bare(x)
    torch.testing.assert_close(coder.to_dictionary()(x), out.sae_out)
    with pytest.raises(CheckpointError):
        Sae.load_many(str(tmp_path), layers=["layers.5"])
    with pytest.raises(CheckpointError):
        Sae.load_from_disk(tmp_path)


@pytest.mark.parametrize("changes", [
    {"layers": [0], "layer_stride": 2}, {"layers": [0], "hookpoints": ["h.0"]}, {"init_seeds": []},
    {"loss_fn": "ce", "distribute_modules": True}, {"loss_fn": "kl", "micro_acc_steps": 2},
    {"sae": SaeConfig(skip_connection=True)}, {"sae": SaeConfig(activation="groupmax", multi_topk=True)},
])  # fmt: skip
def test_settings_that_contradict_each_other(changes, tmp_path):
    with pytest.raises(ConfigError):
        settings(tmp_path, **changes)


def test_memory_mapped_ids(tmp_path):
    np.arange(3, 3 + 70, dtype=np.uint16).tofile(tmp_path / "ids.bin")
    data = MemmapDataset(tmp_path / "ids.bin", CTX)
    assert len(data) == 4 and data[1]["input_ids"].tolist() == list(range(19, 35))
    assert len(data.shard(2, 1)) == 2 and data.shard(2, 1)[0]["input_ids"][0] == 35
    assert len(data.select(range(1, 3))) == 2 and len(MemmapDataset(tmp_path / "ids.bin", CTX, 3)) == 3
    for chosen in (range(1, 3), range(0, 4, 2), range(3, 0, -1), range(0), [2, 0], range(-2, 0)):
        expected = data.rows[np.array(list(chosen), dtype=int)]
        assert np.array_equal(data.select(chosen).rows, expected)
    with pytest.raises(IndexError):
        data.select(range(2, 5))
    with pytest.raises(DataError):
        MemmapDataset(tmp_path / "ids.bin", 100)
    trainer = Trainer(settings(tmp_path / "run", layers=[0]), data, tiny.model("llama"))
    trainer.fit()
    assert list(trainer.saes) == ["layers.0"]
    rows = Dataset.from_dict({"input_ids": data.rows.tolist()})
    again = Trainer(settings(tmp_path / "of_rows", layers=[0]), rows, tiny.model("llama"))
    again.fit()
    assert torch.equal(again.saes["layers.0"].encoder.weight, trainer.saes["layers.0"].encoder.weight)


def test_memory_mapped_ids_stay_in_their_file(tmp_path):
    with open(tmp_path / "ids.bin", "wb") as file:
        file.truncate(64 * 2**20)  # zeros
    data = MemmapDataset(tmp_path / "ids.bin", CTX)
    trainer = Trainer(settings(tmp_path / "run", layers=[0]), data, tiny.model("llama"))
    tracemalloc.start()
    try:
        stream = trainer._stream(data.select(range(10, len(data))), predict=False)
        assert next(stream).tokens.input_ids.shape == (4, CTX)
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()


def test_options_have_their_names_and_defaults():
    text = (
        "gpt2 data --hookpoints h.*.attn h.0 --layer_stride 2 --expansion_factor 8 --num_latents 64 --k 16 "
        "--grad_acc_steps 8 --micro_acc_steps 2 --ctx_len 128 --load_in_8bit --distribute_modules --finetune run "
        "--k_decay_steps 10_000 --activation groupmax --transcode --skip_connection --multi_topk false "
        "--normalize_decoder false --optimizer adam --lr_warmup_steps 5 --auxk_alpha 0.03 --exclude_tokens 1 2 "
        "--init_seeds 0 1 --save_every 10 --save_best --resume --max_examples 99 --run_name mine --batch_size 1 "
        "--data_args name=x,n=3"
    )
    args = parse(text.split())
    assert (args.model, args.dataset, args.hookpoints) == ("gpt2", "data", ["h.*.attn", "h.0"])
    assert (args.sae.k, args.sae.num_latents, args.sae.activation) == (16, 64, "groupmax")
    assert (
        args.sae.transcode and args.sae.skip_connection and not args.sae.multi_topk and not args.sae.normalize_decoder
    )
    assert args.load_in_8bit and args.distribute_modules and args.resume and args.save_best
    assert (args.k_decay_steps, args.exclude_tokens, args.init_seeds) == (10_000, [1, 2], [0, 1])
    default = parse([])
    assert (default.model, default.dataset) == ("HuggingFaceTB/SmolLM2-135M", "EleutherAI/SmolLM2-135M-10B")
    assert (default.batch_size, default.optimizer, default.ctx_len, default.shuffle_seed) == (32, "signum", 2048, 42)
    assert default.sae == SaeConfig()


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sparsify")
    tiny.save_model(folder / "model")
    Dataset.from_dict({"text": tiny.documents(300, seed=5)}).save_to_disk(str(folder / "data"))
    return folder


def test_command_tokenizes_and_connects_before_the_model_has_a_device(places, tmp_path, monkeypatch):
    order = []

    def noted(name, action):
        return lambda *given, **named: order.append(name) or action(*given, **named)

    for owner, name in ((command_module, "chunk_and_tokenize"), (parallel, "start"), (command_module, "load_model")):
        monkeypatch.setattr(owner, name, noted(name, getattr(owner, name)))
    monkeypatch.setattr(Trainer, "fit", lambda self: None)
    assert command_module.main([str(places / "model"), str(places / "data"), "--ctx_len", "16", "--layers", "1"]) == 0
    # connected processes wait for minutes only; connecting chooses the device that the model is loaded on
    assert order == ["chunk_and_tokenize", "start", "load_model"]


def test_command_says_what_data_a_model_without_tokenizer_needs(places, tmp_path, caplog):
    tiny.model("llama").save_pretrained(tmp_path / "bare")
    assert command_module.main([str(tmp_path / "bare"), str(places / "data"), "--ctx_len", "16"]) == 2
    assert "has no tokenizer. Give data with a column input_ids." in caplog.text


@pytest.mark.parametrize("wrong", [["--k", "0"], ["--num_latents", "8", "--k", "32"], ["--ctx_len", "0"]])
def test_command_says_errors_in_one_line(wrong, places, tmp_path, caplog):
    assert command_module.main([str(places / "model"), str(places / "data"), "--save_dir", str(tmp_path), *wrong]) == 2
    last = caplog.records[-1]
    assert last.levelname == "ERROR" and "\n" not in last.getMessage() and "Traceback" not in caplog.text


def test_command_and_resume(places, tmp_path):
    main = command_module.main
    arguments = [str(places / "model"), str(places / "data"), "--batch_size", "1", "--ctx_len", "16", "--layers", "1"]
    arguments += ["--k", "4", "--expansion_factor", "4", "--max_examples", "12", "--log_to_wandb", "false"]
    arguments += ["--save_dir", str(tmp_path), "--run_name", "r", "--grad_acc_steps", "4", "--save_every", "1"]
    assert main(arguments) == 0
    log = [json.loads(line) for line in (tmp_path / ".r" / "metrics.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 12 and log[-1]["tokens"] == 12 * 16
    whole = Sae.load_from_disk(tmp_path / "r" / "layers.1").W_dec
    stopped = [*arguments, "--run_name", "s"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trainer_module, "trainSAE", functools.partial(trainSAE, loggers=[StopAfter(4)]))
        with pytest.raises(Interrupted):
            main(stopped)
    assert not (tmp_path / "s" / "layers.1").exists() and (tmp_path / ".s" / "checkpoints").is_dir()
    assert main([*stopped, "--resume"]) == 0
    log = [json.loads(line)["step"] for line in (tmp_path / ".s" / "metrics.jsonl").read_text().splitlines()]
    assert log[-1] == 12 and log.count(8) == 1
    assert torch.equal(Sae.load_from_disk(tmp_path / "s" / "layers.1").W_dec, whole)
    assert main([*arguments[:2], "--hookpoints", "nothing", "--save_dir", str(tmp_path)]) == 2


def by_torchrun(arguments, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "-m"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        [*launch, "dictionary_learning.compat.sparsify", *arguments],
        capture_output=True, text=True, env=env, timeout=500, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def by_ranks(arguments, tmp_path):
    assert results(2, command_module.main, arguments) == [0, 0]


COPIES = "--batch_size 1 --layers 0 2 --k 8 --grad_acc_steps 8 --ctx_len 16"
DISTRIBUTED = (
    "--distribute_modules --batch_size 1 --layer_stride 2 --grad_acc_steps 8 --ctx_len 16 --k 8 --micro_acc_steps 2"
)


@pytest.mark.parametrize(("line", "start"), [
    # ranks with equal dictionaries are compared in tests/parallel, where torchrun is, too
    pytest.param(COPIES, by_torchrun, marks=pytest.mark.slow, id="copies"),
    pytest.param(DISTRIBUTED, by_torchrun, marks=pytest.mark.slow, id="distributed"),
    pytest.param(DISTRIBUTED, by_ranks, id="distributed ranks"),
])  # fmt: skip
def test_torchrun_lines_of_the_readme(places, tmp_path, line, start):
    given = ["--log_to_wandb", "false", "--save_dir", str(tmp_path), "--max_examples", "64", "--expansion_factor", "4"]
    start([str(places / "model"), str(places / "data"), *line.split(), *given], tmp_path)
    saes = Sae.load_many(str(tmp_path / "unnamed"), local=True)
    assert list(saes) == ["layers.0", "layers.2"] and saes["layers.2"].cfg.k == 8
    log = [json.loads(text) for text in (tmp_path / ".unnamed" / "metrics.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 32 and log[-1]["tokens"] == 64 * 16  # on two processes, a sequence each
