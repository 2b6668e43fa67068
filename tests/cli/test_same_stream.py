"""Data that the shell, a run file and Python describe: the same rows, in the same order."""

import json
import logging
import os
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from dictionary_learning import (
    ActivationBuffer,
    load_dictionary,
    load_model,
    load_session,
    write_cache,
)
from dictionary_learning.activations._normalizers import NORMALIZATIONS
from dictionary_learning.activations.cache import ActivationCache
from dictionary_learning.cli import _train_data, build_parser, main
from dictionary_learning.cli._arguments import read_config
from dictionary_learning.cli._in_options import in_options, warning_in_options
from dictionary_learning.cli._run_file import read_file
from dictionary_learning.cli._train_options import TrainArguments
from dictionary_learning.data import Chat, TokenStream, as_source, as_token_stream, mix
from dictionary_learning.interop import convert
from dictionary_learning.trainers import TrainerTopK
from tests import tiny
from tests.cli.test_what_is_said import choices

SITE = "transformer.h.1"
SIZES = {"ctx_len": 16, "n_ctxs": 16, "refresh_batch_size": 4, "device": "cpu", "dtype": "float32"}
EVERY = 10
TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A saved model and three texts."""
    place = tmp_path_factory.mktemp("same")
    tiny.save_model(place / "model", "gpt2")
    write(place / "text.jsonl", [{"text": text} for text in tiny.documents(60)])
    write(place / "two words.jsonl", [{"body": text} for text in tiny.documents(40, seed=1)])
    turns = [[{"role": "user", "content": f"w9 w8 {text}"}] for text in tiny.documents(40, seed=2)]
    write(place / "chats.jsonl", [{"messages": turn} for turn in turns])
    ids = torch.randint(3, tiny.VOCAB, (600,), generator=torch.Generator().manual_seed(5))
    ids[::20] = 1
    np.save(place / "ids.npy", ids.numpy().astype(np.uint16))
    return place


def write(path: Path, records: list) -> None:
    path.write_text("\n".join(map(json.dumps, records)))


@pytest.fixture(scope="module")
def model(place):
    return load_model(str(place / "model"), device="cpu", dtype="float32")


def words(settings: dict) -> list[str]:
    found = []
    for name, value in settings.items():
        values = value if isinstance(value, list) else [value]
        found += [
            f"--{name.replace('_', '-')}",
            *("none" if v is None else str(v).lower() if v is True or v is False else str(v) for v in values),
        ]
    return found  # fmt: skip


def by_words(place, settings) -> TrainArguments:
    given = [str(place / "model"), str(place / "text.jsonl"), *words(settings)]
    return read_config(build_parser("train", given).read(given), TrainArguments)


def by_file(place, settings, path) -> TrainArguments:
    path.write_text(yaml.safe_dump({"model": str(place / "model"), "data": str(place / "text.jsonl"), **settings}))
    values = read_file(path)
    parser = build_parser("train", [], values)
    parser.take(values, str(path))
    return read_config(parser.read([]), TrainArguments)


def rows(arguments: TrainArguments, model) -> list[torch.Tensor]:
    assert arguments.data is not None
    text = arguments.divided(arguments.data, arguments.held_out_every)[0]
    return first(_train_data.make_source(arguments, model, text, [TrainerTopK.Config(k=2)]))


def first(stream) -> list[torch.Tensor]:
    return [next(stream) for _ in range(4)]


def books(place):
    return str(place / "two words.jsonl")


CASES = {
    "mixture": (
        lambda p: {
            "mix": [f"{books(p)} text_column=body", f"{p / 'chats.jsonl'} max-examples=20"],
            "weights": [1, 3, 2.5], "mix_seed": 4, "exhausted": "continue", "shuffle_seed": 1, "shuffle_buffer": 7,
            "chat_template": TEMPLATE, "system_prompt": "w9 w8", "removal_frequency": 0.5, "chat_seed": 3,
        },
        lambda p: mix(
            [
                as_source(p / "text.jsonl").hold_out(EVERY)[0],
                as_source(p / "two words.jsonl", text_column="body").hold_out(EVERY)[0],
                as_source(
                    p / "chats.jsonl",
                    chat=Chat(template=TEMPLATE, system_prompt="w9 w8", removal_frequency=0.5, seed=3),
                ).hold_out(EVERY)[0].first(20),
            ],
            [1, 3, 2.5], seed=4, exhausted="continue",
        ).shuffled(1, 7),
        {}, {},
    ),
    "parts that are rendered and tokenized in their own ways": (
        lambda p: {
            "mix": [
                f"{p / 'chats.jsonl'} chat_template={json.dumps(TEMPLATE)} system_prompt='w9 w8'",
                f"{p / 'chats.jsonl'} chat_template={json.dumps('w7 ' + TEMPLATE)}",
                f"{p / 'ids.npy'} separator_id=1",
            ],
        },
        lambda p: mix(
            [
                as_source(p / "text.jsonl"),
                as_source(p / "chats.jsonl", chat=Chat(template=TEMPLATE, system_prompt="w9 w8")),
                as_source(p / "chats.jsonl", chat=Chat(template="w7 " + TEMPLATE)),
                as_source(p / "ids.npy", separator_id=1),
            ]
        ).hold_out(EVERY)[0],
        {}, {},
    ),
    "a mixture that is held out as a whole": (
        lambda p: {"mix": [f"{books(p)} text_column=body"], "exhausted": "restart"},
        lambda p: mix(
            [as_source(p / "text.jsonl"), as_source(p / "two words.jsonl", text_column="body")], exhausted="restart"
        ).hold_out(EVERY)[0],
        {}, {},
    ),
    "BOS and separator": (
        lambda p: {"bos": "context", "separator": "w3", "exclude_tokens": [9, "w5", "eos"]},
        None, {"bos": "context", "separator": "w3"}, {"exclude_tokens": [9, "w5", "eos"]},
    ),
    "no separator, and an id of one": (
        lambda p: {"bos": "none", "separator": None}, None, {"bos": "none", "separator": None}, {},
    ),
    "an id as separator": (
        lambda p: {"bos": "none", "separator": 7, "remove_bos": False},
        None, {"bos": "none", "separator": 7}, {"remove_bos": False},
    ),
    "nothing inserted": (
        lambda p: {"add_special_tokens": False, "exclude_tokens": [12]},
        None, {"add_special_tokens": False}, {"exclude_tokens": [12]},
    ),
    "padded on the left, long ones split": (
        lambda p: {"pack": False, "padding_side": "left", "long_documents": "split", "seqpos_slice": [2, None]},
        None, {"pack": False, "padding_side": "left", "long_documents": "split"}, {"seqpos_slice": (2, None)},
    ),
    "two passes": (lambda p: {"epochs": 2, "end_of_data": "stop"}, None, {"epochs": 2}, {"end_of_data": "stop"}),
}  # fmt: skip
"""What the shell says; the same source, options of the stream and of the buffer, in Python."""


@pytest.mark.parametrize("case", CASES)
def test_shell_file_and_python_read_the_same_rows(place, model, tmp_path, case):
    said, source, of_stream, of_buffer = CASES[case]
    settings = {**SIZES, "batch_size": 32, "held_out_every": EVERY, "sites": [SITE], **said(place)}
    text = source(place) if source else as_source(place / "text.jsonl").hold_out(EVERY)[0]
    stream = as_token_stream(text, model.tokenizer, ctx_len=16, model=model, **of_stream)
    options = {"n_ctxs": 16, "refresh_batch_size": 4, "ctx_len": 16, "end_of_data": "repeat", "pack": stream.pack}
    expected = first(ActivationBuffer(stream, model, SITE, out_batch_size=32, **{**options, **of_buffer}))
    for arguments in (by_words(place, settings), by_file(place, settings, tmp_path / "run.yaml")):
        assert all(map(torch.equal, rows(arguments, model), expected))
    default = rows(by_words(place, {**SIZES, "batch_size": 32, "held_out_every": EVERY, "sites": [SITE]}), model)
    if case != "two passes":
        assert not all(map(torch.equal, default, expected))


def test_a_part_of_a_mixture_may_be_a_mapping_in_a_file(place, model, tmp_path):
    settings = {**SIZES, "batch_size": 32, "held_out_every": EVERY, "sites": [SITE]}
    mapped = {**settings, "mix": [{"data": books(place), "text-column": "body", "max_examples": 5}]}
    worded = {**settings, "mix": [f"{books(place)} text_column=body max_examples=5"]}
    one, other = by_file(place, mapped, tmp_path / "a.yaml"), by_words(place, worded)
    assert list(one.parts()) == list(other.parts()) and len(one.mix) == 1
    assert all(map(torch.equal, rows(one, model), rows(other, model)))


def test_cache_is_that_of_python(place, model, tmp_path):
    said = {"mix": [f"{books(place)} text_column=body"], "bos": "none", "separator": "w3", "exclude_tokens": ["w4"]}
    sizes = {name: value for name, value in SIZES.items() if name != "n_ctxs"}
    line = words({**sizes, "sites": SITE, "held_out_every": EVERY, **said, "shard_size": 64})
    assert (
        main(["cache", str(place / "model"), str(place / "text.jsonl"), "--out", str(tmp_path / "shell"), *line]) == 0
    )
    text = mix([as_source(place / "text.jsonl"), as_source(books(place), text_column="body")]).hold_out(EVERY)[0]
    stream = TokenStream(text, model.tokenizer, ctx_len=16, bos="none", separator="w3")
    options = {"ctx_len": 16, "refresh_batch_size": 4, "shard_size": 64, "exclude_tokens": ["w4"]}
    write_cache(tmp_path / "python", stream, model, SITE, **options)
    ours, theirs = (ActivationCache(tmp_path / name, out_batch_size=32) for name in ("shell", "python"))
    for x, y in zip(ours, theirs, strict=True):
        assert isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor) and torch.equal(x, y)


def test_pretokenized_contexts_are_those_of_python(place, model, tmp_path):
    said = {"mix": [f"{books(place)} text_column=body"], "bos": "none", "separator": None, "ctx_len": 16}
    line = ["pretokenize", str(place / "text.jsonl"), "--model", str(place / "model"), "--out", str(tmp_path / "out")]
    assert main([*line, *words(said)]) == 0
    text = mix([as_source(place / "text.jsonl"), as_source(books(place), text_column="body")])
    stream = TokenStream(text, model.tokenizer, ctx_len=16, bos="none", separator=None)
    assert [row.ids for row in as_source(tmp_path / "out")] == [row.ids for row in stream.take_rows(10_000)]


@pytest.fixture(scope="module")
def run(place):
    """A run on a mixture, with contexts of its own kind, as the format of another package too."""
    said = {
        "mix": [f"{books(place)} text_column=body"], "bos": "none", "separator": "w3", "exclude_tokens": ["w4"],
        "held_out_every": EVERY, "n_tokens": 128, "batch_size": 32, "n_eval_tokens": 128, "n_fidelity_tokens": 64,
        "k": 2, "expansion_factor": 2, "sites": SITE, "n_resamples": 0, "ablations": "zero", "n_geometry_latents": 0,
    }  # fmt: skip
    line = ["train", str(place / "model"), str(place / "text.jsonl"), *words({**SIZES, **said})]
    for format in ("own", "dictionary_learning", "sae_lens", "sparsify"):
        assert main([*line, "--save-dir", str(place / "runs" / format), "--save-format", format]) == 0
    return place / "runs"


def test_a_run_is_evaluated_on_contexts_like_its_own(run, tmp_path, monkeypatch):
    monkeypatch.chdir(run.parent)
    options = ["--n-tokens", "128", "--n-fidelity-tokens", "64", "--dtype", "float32", "--device", "cpu"]
    options += ["--n-resamples", "0", "--ablations", "zero", "--n-geometry-latents", "0"]
    figures = []
    for more in ([], ["--bos", "document"]):
        out = str(tmp_path / f"out{len(more)}")
        assert main(["evaluate", str(run / "own"), "--save-dir", out, *options, *more]) == 0
        figures.append(json.loads((Path(out) / "report.json").read_text())["dictionaries"][0]["metrics"])
    before = json.loads((run / "own" / "report.json").read_text())["dictionaries"][0]["metrics"]
    numbers = [{k: v for k, v in found.items() if v is not None} for found in (figures[0], before)]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-6)
    assert figures[1]["fvu"] != pytest.approx(before["fvu"], rel=1e-6)


def test_a_run_opens_again_with_its_rows(run, place, model, monkeypatch):
    monkeypatch.chdir(run.parent)
    session = load_session(run / "own", device="cpu")
    text = mix([as_source(place / "text.jsonl"), as_source(books(place), text_column="body")]).hold_out(EVERY)[0]
    stream = TokenStream(text, model.tokenizer, ctx_len=16, bos="none", separator="w3", n_embeddings=tiny.VOCAB)
    options = {"n_ctxs": 16, "refresh_batch_size": 4, "ctx_len": 16, "end_of_data": "repeat", "exclude_tokens": ["w4"]}
    expected = first(ActivationBuffer(stream, model, SITE, out_batch_size=32, **options))
    assert all(map(torch.equal, first(session.activations), expected))


@pytest.mark.parametrize("format", ["dictionary_learning", "sae_lens", "sparsify"])
def test_format_of_the_shell_is_that_of_python(run, format, tmp_path):
    """A folder that --save-format writes holds what `convert` writes of the same dictionary."""
    own = load_dictionary(run / "own" / "trainer_0")
    assert (run / format / "report.json").is_file()  # it was evaluated too
    convert(run / "own" / "trainer_0", tmp_path / "python", to=format)
    x = torch.randn(32, tiny.DIM, generator=torch.Generator().manual_seed(0))
    files = {path.name for path in (tmp_path / "python").rglob("*") if path.suffix in (".pt", ".safetensors")}
    assert files and files <= {path.name for path in (run / format / "trainer_0").rglob("*")}
    by_shell, by_python = (load_dictionary(path) for path in (run / format / "trainer_0", tmp_path / "python"))
    assert torch.equal(by_shell(x), by_python(x))
    assert torch.allclose(by_shell(x), own(x), atol=1e-5)


def test_a_strangers_mixture_is_refused(run, tmp_path, monkeypatch, caplog):
    """What files name is read without being asked for only in the current folder."""
    monkeypatch.chdir(tmp_path)
    options = ["--model", str(run.parent / "model"), "--save-dir", str(tmp_path / "out")]
    config = json.loads((run / "own" / "trainer_0" / "config.json").read_text())
    assert config["run"]["mix"] == [f"{books(run.parent)} text_column=body"]
    config["run"]["data"] = "text.jsonl"
    (tmp_path / "text.jsonl").write_text((run.parent / "text.jsonl").read_text())
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    for path in (run / "own" / "trainer_0").iterdir():
        if path.is_file():
            (stranger / path.name).write_bytes(path.read_bytes())
    (stranger / "config.json").write_text(json.dumps(config))
    assert main(["evaluate", str(stranger), *options]) == 2
    assert "stranger" in caplog.text and "--mix" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--weights", "1", "2"], "Got 2 weights for 1 data"),
        (["--mix", "a.jsonl", "--weights", "1"], "Got 1 weights for 2 data"),
        (["--mix", "a.jsonl", "--weights", "1", "-1"], "a weight above 0"),
        (["--mix", "a.jsonl colour=red"], "the setting colour"),
        (["--mix", "a.jsonl bos=none"], "with bos: contexts are made of the whole mixture"),
        (["--mix", "a.jsonl max_examples=many"], "max_examples"),
        (["--mix", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--exclude-tokens", "w1000"], "--exclude-tokens w1000"),
        (["--exclude-tokens", "5000"], "--exclude-tokens 5000"),
        (["--exclude-tokens", "-1"], "--exclude-tokens -1"),
        (["--bos", "None"], "is not document | context | both | none."),
        (["--separator", "nowhere"], "--separator nowhere"),
        (["--bos", "sometimes"], "'sometimes'"),
        (["--epochs", "0"], "epochs"),
        (["--model-args", "eager"], "name=value"),
        (["--model-args", "device=cpu"], "--device"),
        (["--model-args", "nonesuch=3"], "Got --model-args nonesuch=3 for 'model', and its model takes no such"),
        (["--ablations", "zero", "none"], "--ablations zero none: none stands alone"),
        (["--ablations", "none", "none"], "none stands alone"),
        (["--ablations", "zero", "zero"], "one of them twice"),
        (["--tokenizer", "empty"], "The folder 'empty' has no file of a tokenizer"),
        (["--cache-window", "3"], "--cache"),
        (["--resume-from", "elsewhere"], "--save-dir"),
        (["--save-best", "l0=sideways", "--evaluate-every", "2"], "sideways"),
    ],
)
def test_what_cannot_be_is_refused(place, settings, message, caplog, monkeypatch):
    monkeypatch.chdir(place)
    (place / "a.jsonl").write_text((place / "text.jsonl").read_text())
    (place / "empty").mkdir(exist_ok=True)
    line = ["train", "model", "text.jsonl", *words({**SIZES, "n_tokens": 64, "batch_size": 32, "sites": SITE})]
    assert main([*line, *settings]) == 2
    assert message in caplog.records[-1].getMessage()


NO_EFFECT = [
    (["--mix-seed", "0"], "--mix-seed without --mix"),
    (["--exhausted", "stop"], "--exhausted without --mix"),
    (["--shuffle-buffer", "9"], "--shuffle-buffer without --shuffle-seed"),
    (["--token-dtype", "uint32"], "--token-dtype and no .bin file"),
    (["--separator-id", "3"], "--separator-id and no .bin or .npy"),
    (["--row-len", "64"], "--row-len and no .bin or .npy"),
    (["--streaming", "false"], "--streaming and no data set on the hub"),
    (["--removal-frequency", "0.5"], "--removal-frequency without --system-prompt"),
    (["--chat-seed", "1"], "--chat-seed without --system-prompt"),
    (["--system-prompt", "w9"], "--system-prompt and the data hold no conversations"),
    (["--chat-template", "{% if %}"], "--chat-template and the data hold no conversations"),
    (["--mix", "a.jsonl chat_seed=2"], "'chat_seed' for 'a.jsonl' in mix without"),
    (["--mix", "a.jsonl", "--system-prompt", "w9"], "--system-prompt and the data hold no conversations"),
    (["--mix", "chats.jsonl", "a.jsonl system_prompt=w9"], "'system_prompt' for 'a.jsonl' in mix and the data hold no"),
    (["--long-documents", "split"], "--long-documents with packed contexts"),
    (["--padding-side", "left"], "--padding-side with packed contexts"),
    (["--rows", "contexts"], "--rows, and the data hold no token ids"),
    (["--vocab-size", "97"], "--vocab-size, and the data hold no token ids"),
]


@pytest.mark.parametrize(("settings", "message"), NO_EFFECT)
def test_what_is_said_has_an_effect(place, settings, message, caplog, monkeypatch, tmp_path):
    """What is said and changes nothing is refused, in words and files, before anything is written."""
    monkeypatch.chdir(place)
    (place / "a.jsonl").write_text((place / "text.jsonl").read_text())
    sizes = {**SIZES, "n_tokens": 64, "batch_size": 32, "sites": [SITE]}
    lines = [["train", "model", "text.jsonl", *words(sizes), *settings]]
    given: dict[str, Any] = {}
    name = ""
    for word in settings:
        if word.startswith("--"):
            name = word[2:].replace("-", "_")
            given[name] = []
        else:
            given[name].append(word)
    told = {
        name: value if name == "mix" else yaml.safe_load(value[0])
        for name, value in given.items()
        if value[0] != "{% if %}"
    }
    if told:
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({"model": "model", "data": "text.jsonl", **sizes, **told}))
        lines.append(["train", "--config", str(path)])
        sweep = tmp_path / "sweep.yaml"
        sweep.write_text(path.read_text() + "methods: {top_k: {k: 2}}\n")
        lines.append(["sweep", str(sweep)])
    lines += [["cache", "model", "text.jsonl", "--sites", SITE, "--device", "cpu", *settings]]
    lines += [["pretokenize", "text.jsonl", "--model", "model", *settings]]
    for line in lines:
        out = "--out" if line[0] in ("cache", "pretokenize") else "--save-dir"
        assert main([*line, out, str(tmp_path / "out")]) == 2
        assert message in caplog.records[-1].getMessage() and not (tmp_path / "out").exists()


def test_what_has_an_effect_somewhere_is_read(place, tmp_path):
    """An option may be for one part of a mixture only, or for one file of a folder."""
    folder = tmp_path / "tokens"
    folder.mkdir()
    for n in range(2):
        np.arange(64, dtype=np.uint32).tofile(folder / f"{n}.bin")
    (folder / "notes").write_text("of no kind")
    for data, settings in (
        (str(folder), ["--token-dtype", "uint32", "--row-len", "8"]),
        (str(folder / "*.bin"), ["--token-dtype", "uint32", "--separator-id", "5"]),
        (str(place / "chats.jsonl"), ["--system-prompt", "w9", "--chat-seed", "1", "--chat-template", TEMPLATE]),
        (str(place / "text.jsonl"), ["--mix", str(place / "chats.jsonl"), "--system-prompt", "w9", "--mix-seed", "1"]),
    ):
        line = [str(place / "model"), data, *settings]
        found = read_config(build_parser("train", line).read(line), TrainArguments)
        assert next(found.source(data)) is not None and next(found.divided(data, 5)[0]) is not None


def test_a_run_without_a_mixture_has_no_options_of_one(place, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(place)
    sizes = {**SIZES, "n_tokens": 64, "batch_size": 32, "sites": SITE, "n_eval_tokens": 64, "n_fidelity_tokens": 0}
    assert main(["train", "model", "text.jsonl", *words(sizes), "--save-dir", str(tmp_path / "run")]) == 0
    for settings, message in (
        (["--exhausted", "restart"], "--exhausted without --mix"),
        (["--mix-seed", "0"], "--mix-seed without --mix"),
        (["--rows", "documents"], "--rows, and the data hold no token ids"),
        (["--long-documents", "split"], "--long-documents with packed contexts"),
    ):
        caplog.clear()
        line = ["evaluate", str(tmp_path / "run"), "--n-tokens", "64", *settings]
        assert main([*line, "--save-dir", str(tmp_path / "out")]) == 2
        assert message in caplog.records[-1].getMessage() and "not read as in training" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": ["text.jsonl", "a.jsonl"]}, "further data are the option mix"),
        ({"dtype": ["float32"]}, "one value"),
        ({"mix": [{"text_column": "body"}]}, "name its data"),
        ({"mix": [{"data": "a.jsonl", "weight": 3}]}, "the setting weight"),
        ({"bos": True}, "document | context"),
        ({"normalize_activations": "by_hand"}, "unit_mean_square"),
    ],
)
def test_what_a_file_cannot_say_is_refused(place, settings, message, caplog, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"model": "model", "data": "text.jsonl", **settings}))
    assert main(["train", "--config", str(path)]) == 2
    assert message in caplog.records[-1].getMessage()


def test_a_file_says_pairs_as_a_mapping(place, tmp_path):
    said = {"model_args": {"attn_implementation": "eager", "low_cpu_mem_usage": True}, "mix": {"data": "a.jsonl"}}
    found = by_file(place, said, tmp_path / "run.yaml")
    assert found.model_args == ("attn_implementation=eager", "low_cpu_mem_usage=true") and found.mix == ("a.jsonl",)
    model = found.replace(device="cpu").load(str(place / "model"))
    config: Any = model.module.config
    assert config._attn_implementation == "eager"


def test_normalization_is_a_flag_or_a_name(place):
    for words_, expected in (([], True), (["layer_norm"], "layer_norm"), (["false"], False)):
        line = ["--normalize-activations", *words_, "model", "text.jsonl"]
        found = read_config(build_parser("train", line).read(line), TrainArguments)
        assert (found.normalize_activations, found.data) == (expected, "text.jsonl")
    names = {name for name, _ in NORMALIZATIONS.items()}
    assert names <= choices(typing.get_type_hints(TrainArguments)["normalize_activations"])


def test_a_folder_of_a_tokenizer_is_one(place, tmp_path):
    """What the tokenizer alone wrote has no config of a model."""
    tiny.tokenizer(bos=False).save_pretrained(tmp_path / "tokenizer")
    assert not (tmp_path / "tokenizer" / "config.json").exists()
    for folder in (tmp_path / "tokenizer", str(tmp_path / "tokenizer")):
        loaded = load_model(str(place / "model"), tokenizer=folder, device="cpu", dtype="float32").tokenizer
        assert loaded.bos_token is None and loaded("w1 w2").input_ids == tiny.tokenizer(bos=False)("w1 w2").input_ids
    found = by_words(place, {"tokenizer": str(tmp_path / "tokenizer"), "device": "cpu"}).load(str(place / "model"))
    assert found.tokenizer is not None and found.tokenizer.bos_token is None


def test_errors_speak_of_options(place, tmp_path, monkeypatch, caplog):
    """The shell has no arguments of Python, and what it advises can be typed."""
    monkeypatch.chdir(place)
    (place / "bad.jsonl").write_text((place / "text.jsonl").read_text() + '\n{"text": null}')
    for dtype in ("uint32", "int64"):
        np.arange(64, dtype=dtype).tofile(place / f"{dtype}.bin")
    os.mkfifo(tmp_path / "pipe")
    sizes = words({**SIZES, "n_tokens": 4096, "batch_size": 32, "sites": SITE})
    for data, settings, message, python in (
        ("text.jsonl", ["--resume-from", str(tmp_path)], "or leave out --resume and --resume-from", "resume="),
        ("bad.jsonl", ["--held-out-every", "1000"], "--on-bad-document skip", "on_bad_document"),
        ("uint32.bin", [], "Set --token-dtype uint32", "dtype="),
        ("int64.bin", [], "Set --token-dtype int64", "dtype="),
        ("int64.bin", ["--token-dtype", "uint32"], "Set --token-dtype int64", "dtype="),
        (str(tmp_path / "pipe"), [], "no file that can be read again", "hub"),
        ("-", [], "no file that can be read again", "hub"),
    ):
        caplog.clear()
        line = ["train", "model", data, *sizes, *settings, "--k", "2", "--overwrite"]
        line = [word for word in line if word != "--overwrite" or "--resume-from" not in settings]
        assert main([*line, "--save-dir", str(tmp_path / "out")]) == 2
        said = caplog.records[-1].getMessage()
        assert message in said and python not in said
    assert in_options("Go on by resume='auto' (--resume), or overwrite=True (--overwrite on the command line).") == (
        "Go on by --resume, or --overwrite."
    )


SAID = {
    "Use the settings it was made with, name what may differ in allow_changed, or give another folder.": (
        "Use the settings it was made with, name what may differ in --allow-changed, or give another folder."
    ),
    "TopK cannot keep k=64 of dict_size=32 latents; lower k or raise dict_size.": (
        "TopK cannot keep --k 64 of --dict-size 32 latents; lower k or raise --dict-size."
    ),
    "Got layers=[99, 100]; pack=False.": "Got --layers 99 100; --pack false.",
    "Lower n_ctxs, or set dtype='int8'.": "Lower --n-ctxs, or set --storage-dtype int8.",
    "Load it with load_model(..., dtype='float32').": "Load it with --dtype float32.",
    "TrainerTopK.Config.auxk_alpha is nan; it must be a finite number.": "--auxk-alpha is nan; it must be a finite number.",
    "'a/save_dir' has 'n_ctxs' in trainers[0].lr; read a/n_ctxs.": "'a/save_dir' has 'n_ctxs' in trainers[0].lr; read a/n_ctxs.",
    "Got nonsense=3. Give --mix 'B text_column=body'.": "Got nonsense=3. Give --mix 'B text_column=body'.",
    "Set k. Go on with: dictionary-learning train --mix 'B text_column=body'": (
        "Set k. Go on with: dictionary-learning train --mix 'B text_column=body'"
    ),
}


@pytest.mark.parametrize("message", SAID)
def test_arguments_of_python_are_options_in_the_shell(message):
    fields = {action.dest for action in build_parser("train", [])._actions if action.option_strings}
    assert in_options(message, fields) == SAID[message]


def test_warnings_of_the_library_say_options_too(caplog):
    logger = logging.getLogger("dictionary_learning.attribution._runs")
    with warning_in_options({"dtype"}):
        logger.warning("%s: load it with load_model(..., dtype='float32').", "m")
    logger.warning("load_model(..., dtype='float32')")
    assert caplog.messages == ["m: load it with --dtype float32.", "load_model(..., dtype='float32')"]
