"""Faults that no single argument shows: of data, states, files, sizes and combinations."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch

import dictionary_learning as dl
from dictionary_learning import Candidate, Site
from dictionary_learning.data import TokenStream, as_source, as_token_stream, mix
from dictionary_learning.interventions import (
    attached,
    edit_latents,
    edit_latents_across,
    graft_across,
    latent_edits,
    read_latents,
    steer,
)
from tests import tiny
from tests.border_cases import CTX, SITE, Place

SMALL = {"n_ctxs": 4, "out_batch_size": 8, "ctx_len": CTX, "refresh_batch_size": 2}


def train(p: Place, config: Any = None, data: Any = None, steps: int = 2, **options: Any) -> Any:
    config = {"trainer": "top_k", "k": 4, "dict_size": 32, **(config or {})}
    return dl.trainSAE(p.activations if data is None else data, config, steps, progress=False, device="cpu", **options)


def buffer(p: Place, data: Any, **options: Any) -> Any:
    return dl.ActivationBuffer(data, p.model, SITE, **{**SMALL, **options})


def rows(n: int = 8, width: int = tiny.DIM) -> torch.Tensor:
    return torch.randn(n, width)


def failing() -> Iterator[Any]:
    raise ZeroDivisionError
    yield


def cache_with(p: Place, **changes: Any) -> Path:
    """Returns a cache whose index was edited by hand."""
    folder = p.new()
    shutil.copytree(p.root / "cache", folder)
    index = folder / "index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), **changes}))
    return folder


def continued(p: Place, path: Path) -> Any:
    return dl.write_cache(path, p.texts, p.model, SITE, ctx_len=CTX, refresh_batch_size=2)


def flipped(p: Place) -> Path:
    """Returns a Parquet file with other bits in its columns."""
    path = p.new().with_suffix(".parquet")
    path.parent.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({"text": [text * 50 for text in p.texts]}), path)
    found = bytearray(path.read_bytes())
    found[60:140] = bytes(255 - byte for byte in found[60:140])
    path.write_bytes(found)
    return path


def with_more_words() -> Any:
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens([f"x{n}" for n in range(50)])
    return tokenizer


def run_attached(p: Place, edits: Any) -> None:
    with attached(p.model, edits) as model:
        model(p.ids)


FIRST, LATER = Site("model.layers.0"), Site(SITE)

FAULTS: dict[str, Callable[[Place], Any]] = {
    "dictionary larger than the memory": lambda p: dl.AutoEncoderTopK(16, 10**12, 4),
    "the same in training": lambda p: train(p, {"dict_size": 1e12}),
    "buffer larger than the memory": lambda p: buffer(p, p.texts, n_ctxs=10**10),
    "cache larger than the disk": lambda p: dl.write_cache(p.new(), p.texts, p.model, SITE, ctx_len=CTX, n_tokens=10**13),
    "no heads": lambda p: train(p, {"n_heads": 0, "wiring": "heads"}),
    "negative auxiliary loss": lambda p: train(p, {"auxk_alpha": -1}),
    "threshold's decay": lambda p: train(p, {"threshold_beta": 2}),
    "decoder of norm 0": lambda p: train(p, {"decoder_init_norm": 0}),
    "rate that is no number": lambda p: train(p, {"encoder_lr_factor": float("nan")}),
    "p of 0": lambda p: train(p, {"trainer": "p_anneal", "p_start": 0, "k": None}),
    "k above dict_size": lambda p: train(p, {"k": 64}),
    "start from a number": lambda p: train(p, {"finetune": 5}),
    "start from nowhere": lambda p: train(p, {"finetune": "nosuch"}),
    "start from a class": lambda p: train(p, {"finetune": dl.TopKTrainer}),
    "class as an optimizer": lambda p: train(p, {"optimizer": int}),
    "schedule of words": lambda p: train(p, {"schedule": lambda step: "a"}),
    "rounds in place of a config": lambda p: dl.trainSAE(p.activations, [3], 1),
    "site that leaves": lambda p: train(p, data=[{"a": rows()}, {"a": rows()}, {"b": rows()}], steps=3),
    "sites of different length": lambda p: train(p, {"wiring": "crosscoder"}, [{"a": rows(), "b": rows(7)}]),
    "number as a site": lambda p: train(p, data=[{5: rows()}]),
    "lists of numbers": lambda p: train(p, data=[{"a": [1.0]}]),
    "sparse rows": lambda p: train(p, data=[rows().to_sparse()]),
    "rows without values": lambda p: train(p, data=[rows().to("meta")]),
    "complex rows": lambda p: train(p, data=[rows().to(torch.complex64)]),
    "whole numbers": lambda p: train(p, data=[rows().long()]),
    "width that changes": lambda p: train(p, data=[rows(), rows(8, 15)]),
    "no finite row": lambda p: train(p, data=[rows() * float("nan")] * 2),
    "no row": lambda p: train(p, data=[rows(0)] * 2),
    "no width": lambda p: train(p, data=[rows(4, 0)] * 2),
    "data that fail": lambda p: train(p, data=failing()),
    "text in place of activations": lambda p: train(p, data="some text"),
    "path in place of activations": lambda p: train(p, data=p.root / "text.txt"),
    "two wirings": lambda p: train(p, transcoder=True, activations_split_by_head=True),
    "resumed from nowhere": lambda p: train(p, save_dir=p.new(), resume="nosuch"),
    "saved nowhere": lambda p: train(p, save_steps=[1]),
    "folder that is a file": lambda p: train(p, save_dir=p.root / "text.txt"),
    "words outside the embedding": lambda p: next(
        dl.ActivationBuffer(["x1 x30 w1 w2"] * 40, dl.load_model(p.module, tokenizer=with_more_words()), SITE, **SMALL)
    ),
    "ids outside the embedding": lambda p: p.model.capture(torch.tensor([[100, 120]]), sites=SITE),
    "context longer than the text": lambda p: next(buffer(p, [""])),
    "documents that fail": lambda p: next(buffer(p, failing())),
    "no name": lambda p: as_source(" "),
    "turns without words": lambda p: list(as_source([[{"role": "user"}]])),
    "truth values": lambda p: as_source(torch.tensor([[True, False]])),
    "lone surrogate": lambda p: list(as_source(["a \ud800 b"])),
    "null": lambda p: list(as_source(["a", None])),
    "record without text": lambda p: list(as_source([{"body": "a"}])),
    "damaged Parquet": lambda p: list(as_source(flipped(p))),
    "lines that are no JSON": lambda p: list(as_source(p.root / "junk.jsonl")),
    "folder of everything": lambda p: list(as_source(p.root)),
    "objects in an array": lambda p: list(as_source(p.root / "junk.npy")),
    "no data set": lambda p: list(as_source("nobody/nothing")),
    "ids that are fractions": lambda p: list(as_source([[1.5]])),
    "negative ids": lambda p: as_token_stream([[-1, 2]], p.tokenizer, ctx_len=4).take(1),
    "ids above the vocabulary": lambda p: as_token_stream([[9999, 2]], p.tokenizer, ctx_len=4).take(1),
    "infinite share": lambda p: mix([p.texts], [float("inf")]),
    "every document held out": lambda p: as_source(p.texts).hold_out(1),
    "shuffled by a word": lambda p: as_source(p.texts).shuffled("x"),
    "the first none": lambda p: as_source(p.texts).first(0),
    "cut model": lambda p: dl.load_model(p.root / "model cut", device="cpu"),
    "model of another shape": lambda p: dl.load_model(p.root / "model of another shape", device="cpu"),
    "model without config": lambda p: dl.load_model(p.root / "model without config", device="cpu"),
    "option of no model": lambda p: dl.load_model(p.root / "model", device="cpu", nosuch=1),
    "class of a model": lambda p: dl.load_model(torch.nn.Linear),
    "number as a module": lambda p: dl.TracedModel(5),
    "one model as a set": lambda p: dl.ModelSet(a=p.model),
    "numbers as models": lambda p: dl.ModelSet(a=5, b=6),
    "server without a name": lambda p: dl.load_model(p.module, remote=True),
    "one place twice": lambda p: p.model.run(p.ids, {SITE: torch.zeros_like, Site(SITE): torch.zeros_like}),
    "list in a list of sites": lambda p: p.model.sites([[SITE]]),
    "dictionary of another width": lambda p: dl.evaluate_dictionaries(
        p.model, Candidate("a", dl.AutoEncoder(8, 16), SITE), p.texts
    ),
    "cut dictionary": lambda p: dl.load_dictionary(p.root / "dictionary cut"),
    "fact of no format": lambda p: dl.load_dictionary(p.root / "dictionary", nosuch=1),
    "dictionary of another class": lambda p: dl.AutoEncoder.from_pretrained(p.root / "dictionary"),
    "config that JSON cannot hold": lambda p: dl.save_dictionary(p.dictionary, p.new(), {"run": {1, object()}}),
    "dictionary into a file": lambda p: dl.save_dictionary(p.dictionary, p.root / "text.txt"),
    "report into a file": lambda p: dl.write_report({"title": "a"}, p.root / "text.txt"),
    "report of a number": lambda p: dl.write_report({"dictionaries": 5}, p.new()),
    "report without metrics": lambda p: dl.write_report({"dictionaries": [{"name": "a"}]}, p.new()),
    "activations of several sites": lambda p: dl.evaluate_activations(p.dictionary, [{"a": rows()}]),
    "sparse input": lambda p: p.dictionary(rows().to_sparse()),
    "number as an input": lambda p: p.dictionary(5),
    "input of no width": lambda p: p.dictionary(torch.tensor(1.0)),
    "fewer latents": lambda p: dl.expand_or_convert(p.dictionary, expansion=0.5),
    "shard of another length": lambda p: next(dl.ActivationCache(cache_with(p, shards=[{"n_rows": 5}]))),
    "shards that are a number": lambda p: dl.ActivationCache(cache_with(p, shards=5)),
    "filter that is a list": lambda p: dl.ActivationCache(cache_with(p, rule=[1])).filter,
    "index of another version": lambda p: dl.ActivationCache(cache_with(p, version="x")),
    "state of a cache edited": lambda p: continued(p, cache_with(p, state={"a": 1}, complete=False)),
    "state of no buffer": lambda p: buffer(p, p.texts).load_state_dict({"a": 1}),
    "state of no source": lambda p: as_source(p.texts).load_state_dict({"a": 1}),
    "state of no cache": lambda p: dl.ActivationCache(p.root / "cache").load_state_dict({"a": 1}),
    "state of no stream": lambda p: TokenStream(as_source(p.texts), p.tokenizer, ctx_len=4).load_state_dict({"a": 1}),
    "state that is a number": lambda p: dl.ContextStream(p.texts, p.model, SITE, ctx_len=4).load_state_dict(5),
    "graft at one site": lambda p: p.model.run(p.ids, graft_across(p.dictionary, LATER, LATER)),
    "graft before it is read": lambda p: p.model.run(p.ids, graft_across(p.dictionary, LATER, FIRST)),
    "the same attached": lambda p: run_attached(p, graft_across(p.dictionary, LATER, FIRST)),
    "latents at one site": lambda p: edit_latents_across(p.dictionary, LATER, LATER),
    "latents before they are read": lambda p: p.model.run(p.ids, edit_latents_across(p.dictionary, LATER, FIRST)),
    "the latter attached": lambda p: run_attached(p, edit_latents_across(p.dictionary, LATER, FIRST)),
    "change of another name": lambda p: edit_latents_across(p.dictionary, FIRST, LATER, foo=1),
    "changes that are a list": lambda p: latent_edits(p.model, p.dictionary, site=SITE, clamp=[1]),
    "latents that are a number": lambda p: latent_edits(p.model, p.dictionary, site=SITE, ablate=5),
    "value above float32": lambda p: edit_latents(p.dictionary, clamp={1: 1e39}),
    "strength above float32": lambda p: run_attached(p, {SITE: steer(torch.ones(tiny.DIM), 1e39)}),
    "share of no direction": lambda p: steer(torch.zeros(tiny.DIM), 1.0, unit="norm"),
    "attached site": lambda p: run_attached(p, [LATER]),
    "attached word": lambda p: run_attached(p, {SITE: "x"}),
    "attached nothing": lambda p: run_attached(p, None),
    "surrogate that is read": lambda p: read_latents(p.model, p.dictionary, "\ud800", site=SITE),
    "text without a tokenizer": lambda p: read_latents(dl.load_model(p.module), p.dictionary, "w1", site=SITE),
    "truth as ids": lambda p: read_latents(p.model, p.dictionary, torch.ones(2, 3).bool(), site=SITE),
    "name longer than a file's": lambda p: dl.load_dictionary("a" * 5000),
    "no such release": lambda p: dl.list_pretrained()[0].load("nosuch"),
}  # fmt: skip
"""What must be refused, by what is wrong with it."""
