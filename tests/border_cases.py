"""Public functions with arguments that work, and what may be given wrongly in place of each argument."""

import functools
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import dictionary_learning as dl
from dictionary_learning import Candidate, DictionaryInfo, EvaluationConfig, Site, TokenFilter, Transcoder
from dictionary_learning.attribution import (
    attribute,
    attribution_graph,
    circuit,
    edges,
    faithfulness,
    logit_difference,
    mean_latents,
    prune,
)
from dictionary_learning.dashboards import LiveServer, pages_of, write_dashboard
from dictionary_learning.data import Chat, ExampleStream, TokenStream, as_source, as_token_stream, mix, pretokenize
from dictionary_learning.evaluation.downstream import (
    ContextConfig,
    ProbingConfig,
    as_probe_tasks,
    context_sensitivity,
    probe_latents,
)
from dictionary_learning.exports import (
    LatentFacts,
    control_direction,
    write_attribution_graph,
    write_circuit_tracer,
    write_control_vector,
    write_latent_picture,
    write_neuronpedia,
    write_sae_dashboard,
)
from dictionary_learning.interp import examine_dimension, feature_effect
from dictionary_learning.interpretation import (
    ContextStore,
    Explanation,
    ablation_effects,
    coactivation,
    collect_contexts,
    latent_map,
    latent_view,
    logit_lens,
    nearest_latents,
    show_tokens,
    test_prompt as answer_of,
    token_predictions,
)
from dictionary_learning.interpretation.explanations import (
    Baseline,
    estimate_cost,
    explain,
    load_explanations,
    save_explanations,
)
from dictionary_learning.interventions import (
    ablate,
    attached,
    combine,
    edit_latents,
    edit_latents_across,
    generate,
    graft,
    graft_across,
    latent_edits,
    latent_edits_for,
    put,
    read_latents,
    steer,
)
from dictionary_learning.ops import use_backend
from dictionary_learning.synthetic import SyntheticActivations, SyntheticConfig, ground_truth
from dictionary_learning.trainers import TrainerTopK
from tests import tiny
from tests.dashboards import fake

SITE, CTX = "model.layers.1", 16
FEATURES = SyntheticConfig(
    n_features=16, activation_dim=8, n_roots=1, branching=2, depth=1, correlation_rank=2, batch_size=16
)
_SHORT = {"n_tokens": 64, "ctx_len": CTX, "batch_size": 2}
READING = {"ctx_len": CTX, "refresh_batch_size": 2, "device": "cpu"}


class Place:
    """What calls need: a small model and dictionary, as objects and on disk, and damaged files."""

    def __init__(self, root: Path):
        self.root, self.n = root, 0
        self.tokenizer = tiny.tokenizer()
        self.module = tiny.model("llama")
        self.model = dl.load_model(self.module, tokenizer=self.tokenizer)
        self.texts = tiny.documents(12)
        self.dictionary = dl.AutoEncoderTopK(tiny.DIM, 32, 4)
        self.two = [dl.AutoEncoderTopK(tiny.DIM, 32, 4) for _ in range(2)]
        for n, one in enumerate(self.two):
            one.info = DictionaryInfo(sites=(f"model.layers.{n}",))
        self.labelled = [{"words": text, "kind": n % 2} for n, text in enumerate(self.texts)]
        self.metric = logit_difference(3, 4)
        self.effects = attribute(self.model, self.two, self.texts[0], self.metric, method="gradient")
        self.transcoder = Transcoder(tiny.DIM, 32, {"name": "relu"})
        self.transcoder.info = DictionaryInfo(sites=("model.layers.1.mlp:in",), target_sites=("model.layers.1.mlp",))
        self.graph = attribution_graph(self.model, self.transcoder, self.texts[0], max_latents=3)
        self.activations = [tiny.Planted(tiny.DIM).batch(64) for _ in range(2)]
        self.ids = torch.arange(3, 21).view(2, 9)
        self.module.save_pretrained(root / "model")
        self.tokenizer.save_pretrained(root / "model")
        for name in ("dictionary", "other dictionary"):
            dl.save_dictionary(self.dictionary, root / name)
        dl.write_cache(root / "cache", self.texts, self.model, SITE, ctx_len=CTX, refresh_batch_size=2)
        dl.interpretation.collect_contexts(
            self.model, {"a": self.dictionary}, self.texts, root / "store", sites={"a": SITE}, n_tokens=64, ctx_len=CTX
        )
        save_explanations(root / "explained", {3: Explanation("cats", "somebody", {})})
        (root / "text.txt").write_text("\n".join(self.texts))
        for name in ("junk.txt", "junk.parquet", "junk.jsonl", "junk.npy", "junk.json", "junk.safetensors", "junk.pt"):
            (root / name).write_bytes(bytes(range(128, 256)) * 4)
        (root / "empty").mkdir()
        (root / "empty.txt").touch()
        for name, source, file in (
            ("model cut", "model", "model.safetensors"),
            ("dictionary cut", "dictionary", "dictionary.safetensors"),
            ("model without config", "model", "config.json"),
        ):
            (root / name).mkdir()
            for path in (root / source).iterdir():
                kept = path.read_bytes()
                (root / name / path.name).write_bytes(kept[: len(kept) // 3] if path.name == file else kept)
        other = json.loads((root / "model" / "config.json").read_text())
        (root / "model of another shape").mkdir()
        for path in (root / "model").iterdir():
            (root / "model of another shape" / path.name).write_bytes(path.read_bytes())
        (root / "model of another shape" / "config.json").write_text(json.dumps({**other, "hidden_size": 24}))

    def facts(self) -> LatentFacts:
        """Returns what is known of the latents of the dictionary."""
        return LatentFacts.of_store(ContextStore.open(self.root / "store")["a"])

    def buffer(self) -> dl.ActivationBuffer:
        """Returns a buffer that was not read from."""
        return dl.ActivationBuffer(self.texts, self.model, SITE, n_ctxs=4, out_batch_size=8, **READING)

    def contexts(self) -> dl.ContextStream:
        """Returns a stream of contexts that was not read from."""
        return dl.ContextStream(self.texts, self.model, SITE, ctx_len=CTX, batch_size=2)

    def mixture(self) -> dl.ActivationMixture:
        """Returns a mixture of two caches."""
        return dl.ActivationMixture([dl.ActivationCache(self.root / "cache") for _ in "ab"], out_batch_size=8)

    def stream(self) -> TokenStream:
        """Returns contexts of tokens."""
        return TokenStream(as_source(self.texts), self.tokenizer, ctx_len=CTX)

    def examples(self) -> ExampleStream:
        """Returns examples that are no text."""
        return ExampleStream([torch.ones(3)] * 4, torch.stack, ctx_len=3)

    def new(self) -> Path:
        """Returns a path that does not exist."""
        self.n += 1
        return self.root / "new" / str(self.n)


def _used(function: Callable[..., Any], use: Callable[[Any], Any]) -> Callable[..., Any]:
    """Returns a function of the same arguments that also uses what comes out."""
    return functools.wraps(function)(lambda *args, **given: use(function(*args, **given)))


def _opened(place: Place) -> Any:
    return collect_contexts(
        place.model,
        {"a": place.dictionary},
        place.texts,
        place.root / "contexts of pages",
        sites={"a": SITE},
        n_tokens=32,
        ctx_len=CTX,
    )


def _first(stream: Any) -> Any:
    return next(iter(stream))


def _inside(block: Any, place: Place) -> None:
    with block as model:
        model(place.ids)


def _state(made: Any) -> dict[str, Any]:
    return {"state": made.state_dict()}


def _methods(name: str, make: Callable[[Place], Any], **methods: Any) -> dict[str, Any]:
    """Returns calls of an object's methods: each with arguments, or with what gives these for the object."""

    def call(method: str, place: Place) -> tuple[Callable[..., Any], dict[str, Any]]:
        made, given = make(place), methods[method]
        return getattr(made, method), given(made) if callable(given) else given

    return {f"{name}.{method}": functools.partial(call, method) for method in methods}


CALLS: dict[str, Callable[[Place], tuple[Callable[..., Any], dict[str, Any]]]] = {
    "trainSAE": lambda p: (
        dl.trainSAE,
        {
            "data": p.activations, "trainer_configs": [{"trainer": "top_k", "k": 4, "dict_size": 32}], "steps": 1,
            "save_dir": p.new(), "progress": False, "device": "cpu",
        },
    ),
    "benchmark_synthetic": lambda p: (
        dl.benchmark_synthetic,
        {"methods": {"trainer": "top_k", "k": 2, "dict_size": 8}, "save_dir": p.new(), "case": FEATURES, "seeds": (0,),
         "n_tokens": 32, "n_eval_tokens": 16, "device": "cpu", "progress": False},
    ),
    "ground_truth": lambda p: (
        ground_truth,
        {"dictionary": dl.AutoEncoderTopK(8, 8, 2), "data": SyntheticActivations(FEATURES), "n_tokens": 16},
    ),
    "run_sweep": lambda p: (
        dl.run_sweep,
        {
            "config": {"methods": {"top_k": {"k": 4, "dict_size": 32}}}, "data": p.activations, "steps": 1, "save_dir": p.new(),
            "evaluation_data": p.activations, "progress": False, "device": "cpu", "memory_gb": 1.0,
        },
    ),
    "SweepConfig": lambda p: (dl.SweepConfig, {"methods": {"top_k": {"k": 4}}}),
    "ActivationBuffer": lambda p: (
        dl.ActivationBuffer,
        {"data": p.texts, "model": p.model, "submodule": SITE, "n_ctxs": 4, "out_batch_size": 8, **READING},
    ),
    "ContextStream": lambda p: (
        dl.ContextStream, {"data": p.texts, "model": p.model, "submodule": SITE, "ctx_len": CTX, "batch_size": 2},
    ),
    **_methods(
        "ActivationBuffer", lambda p: p.buffer(), expect={"n_batches": 3}, sample={"n": 3}, reseed={"seed": 3},
        tokenized_batch={"batch_size": 2}, share={"number": 0, "of": 2}, load_state_dict=_state,
        set_norm_limits={"limits": {SITE: 9.0}},
    ),
    **_methods(
        "ActivationCache", lambda p: dl.ActivationCache(p.root / "cache"), sample={"n": 3}, reseed={"seed": 3},
        load_state_dict=_state,
    ),
    **_methods(
        "ContextStream", lambda p: p.contexts(), expect={"n_batches": 3}, sample={"n": 3},
        share={"number": 0, "of": 2}, load_state_dict=_state,
    ),
    **_methods(
        "ActivationMixture", lambda p: p.mixture(), expect={"n_batches": 3}, sample={"n": 3}, load_state_dict=_state,
    ),
    **_methods(
        "TokenStream", lambda p: p.stream(), take={"n": 2}, take_rows={"n": 2}, batches={"n": 2},
        share={"number": 0, "of": 2}, load_state_dict=_state, release=_state,
    ),
    **_methods(
        "Source", lambda p: as_source(p.texts), first={"n": 2}, hold_out={"every": 3}, shuffled={"seed": 3},
        share={"number": 0, "of": 2}, load_state_dict=_state, release=_state,
    ),
    **_methods("ExampleStream", lambda p: p.examples(), take={"n": 2}, batches={"n": 2}, load_state_dict=_state, release=_state),
    "ExampleStream": lambda p: (
        ExampleStream, {"data": [torch.ones(3)] * 4, "collate": torch.stack, "ctx_len": 3},
    ),
    "load_model": lambda p: (dl.load_model, {"model": p.root / "model", "device": "cpu", "dtype": "float32"}),
    "load_dictionary": lambda p: (dl.load_dictionary, {"path": p.root / "dictionary"}),
    "load_from_hub": lambda p: (dl.load_from_hub, {"name": p.root / "dictionary"}),
    "load_many": lambda p: (dl.load_many, {"path": p.root / "dictionary"}),
    "list_pretrained": lambda p: (dl.list_pretrained, {"name": "gemma"}),
    "save_dictionary": lambda p: (dl.save_dictionary, {"dictionary": p.dictionary, "path": p.new()}),
    "write_dictionary": lambda p: (dl.write_dictionary, {"dictionary": p.dictionary, "path": p.new()}),
    "convert": lambda p: (dl.convert, {"source": p.root / "dictionary", "destination": p.new()}),
    "push_to_hub": lambda p: (dl.push_to_hub, {"dictionary": p.dictionary, "repository": "nobody/nothing"}),
    "as_custom_sae": lambda p: (dl.as_custom_sae, {"dictionary": p.dictionary, "model_name": "m", "hook_name": "blocks.1.hook_resid_post", "hook_layer": 1}),
    "write_cache": lambda p: (
        dl.write_cache,
        {"path": p.new(), "data": p.texts, "model": p.model, "submodule": SITE, "ctx_len": CTX, "refresh_batch_size": 2},
    ),
    "ActivationCache": lambda p: (dl.ActivationCache, {"path": p.root / "cache", "out_batch_size": 8}),
    "ActivationMixture": lambda p: (
        dl.ActivationMixture, {"sources": [dl.ActivationCache(p.root / "cache") for _ in "ab"], "out_batch_size": 8},
    ),
    "evaluate_dictionaries": lambda p: (
        dl.evaluate_dictionaries,
        {
            "model": p.model, "candidates": Candidate("a", p.dictionary, SITE), "text": p.texts,
            "config": EvaluationConfig(n_tokens=32, n_fidelity_tokens=0, ctx_len=CTX, batch_size=2),
        },
    ),
    "as_probe_tasks": lambda p: (as_probe_tasks, {"tasks": p.labelled, "text": "words", "label": "kind"}),
    "probe_latents": lambda p: (
        probe_latents,
        {
            "model": p.model, "candidates": Candidate("a", p.dictionary, SITE), "tasks": {"text": p.texts, "label": [0, 1] * 6},
            "config": ProbingConfig(n_resamples=0, ks=(1,), strengths=(1.0,)),
        },
    ),
    "context_sensitivity": lambda p: (
        context_sensitivity,
        {
            "model": p.model, "candidates": Candidate("a", p.dictionary, SITE), "text": p.texts,
            "config": ContextConfig(n_tokens=4, ctx_len=4, windows=(1,), n_resamples=0),
        },
    ),
    "Candidate": lambda p: (
        _used(
            Candidate,
            lambda one: dl.evaluate_dictionaries(p.model, one, p.texts, EvaluationConfig(n_tokens=32, n_fidelity_tokens=0)),
        ),
        {"name": "a", "dictionary": p.dictionary, "site": SITE},
    ),
    "evaluate_activations": lambda p: (
        dl.evaluate_activations, {"dictionary": p.dictionary, "activations": p.activations},
    ),
    "evaluate": lambda p: (dl.evaluate, {"dictionary": p.dictionary, "activations": p.activations}),
    "loss_recovered": lambda p: (
        dl.loss_recovered,
        {"text": p.texts[:2], "model": p.model, "submodule": SITE, "dictionary": p.dictionary, "max_len": 8},
    ),
    "write_report": lambda p: (dl.write_report, {"report": {"title": "a"}, "folder": p.new(), "formats": ["json"]}),
    "calibrate": lambda p: (
        dl.calibrate, {"dictionary": p.dictionary, "activations": p.activations, "n_tokens": 64},
    ),
    "expand_or_convert": lambda p: (dl.expand_or_convert, {"dictionary": p.dictionary, "expansion": 2}),
    "fold_decoder_norm_": lambda p: (dl.fold_decoder_norm_, {"dictionary": dl.AutoEncoder(tiny.DIM, 32)}),
    "leave_one_out": lambda p: (
        dl.leave_one_out, {"dictionary": p.dictionary, "activations": p.activations, "n_tokens": 64},
    ),
    "gradient_pursuit": lambda p: (
        dl.gradient_pursuit, {"x": p.activations[0][:4], "W_dec": p.dictionary.W_dec, "target_l0": 2},
    ),
    "Site": lambda p: (Site, {"path": SITE}),
    "Site.parse": lambda p: (Site.parse, {"text": SITE}),
    "TokenFilter": lambda p: (TokenFilter, {"exclude_ids": (0,)}),
    "EvaluationConfig": lambda p: (EvaluationConfig, {"n_tokens": 32}),
    "as_source": lambda p: (_used(as_source, _first), {"data": p.texts}),
    "as_token_stream": lambda p: (
        _used(as_token_stream, lambda stream: stream.take(1)), {"data": p.texts, "tokenizer": p.tokenizer, "ctx_len": CTX},
    ),
    "TokenStream": lambda p: (
        _used(TokenStream, lambda stream: stream.take(1)),
        {"source": as_source(p.texts), "tokenizer": p.tokenizer, "ctx_len": CTX},
    ),
    "mix": lambda p: (_used(mix, _first), {"sources": [p.texts, p.texts], "weights": [1.0, 2.0]}),
    "pretokenize": lambda p: (
        pretokenize, {"data": p.texts, "tokenizer": p.tokenizer, "out": p.new(), "ctx_len": CTX},
    ),
    "Chat": lambda p: (Chat, {"template": "{{ messages }}"}),
    "capture": lambda p: (p.model.capture, {"inputs": p.ids, "sites": SITE}),
    "run": lambda p: (p.model.run, {"inputs": p.ids, "edits": {SITE: ablate()}}),
    "sites": lambda p: (p.model.sites, {"submodules": SITE}),
    "layers": lambda p: (p.model.layers, {"layers": [0]}),
    "widths": lambda p: (p.model.widths, {"sites": SITE}),
    "graft": lambda p: (_used(graft, lambda edit: p.model.run(p.ids, {SITE: edit})), {"dictionary": p.dictionary}),
    "graft_across": lambda p: (
        _used(graft_across, lambda edits: p.model.run(p.ids, edits)),
        {"dictionary": p.dictionary, "read": Site("model.layers.0"), "write": Site(SITE)},
    ),
    "put": lambda p: (_used(put, lambda edit: p.model.run(p.ids, {SITE: edit})), {"value": torch.zeros(2, 9, tiny.DIM)}),
    "ablate": lambda p: (_used(ablate, lambda edit: p.model.run(p.ids, {SITE: edit})), {"value": 0.0}),
    "steer": lambda p: (
        _used(steer, lambda edit: p.model.run(p.ids, {SITE: edit})), {"direction": torch.ones(tiny.DIM), "scale": 2.0},
    ),
    "attached": lambda p: (
        _used(attached, lambda block: _inside(block, p)), {"model": p.model, "edits": {SITE: ablate()}},
    ),
    "combine": lambda p: (lambda edits: p.model.run(p.ids, combine(edits)), {"edits": {SITE: ablate()}}),
    "edit_latents": lambda p: (
        _used(edit_latents, lambda edit: p.model.run(p.ids, {SITE: edit})),
        {"dictionary": p.dictionary},
    ),
    "edit_latents_across": lambda p: (
        _used(edit_latents_across, lambda edits: p.model.run(p.ids, edits)),
        {"dictionary": p.dictionary, "read": Site("model.layers.0"), "write": Site(SITE), "ablate": [1]},
    ),
    "read_latents": lambda p: (
        read_latents, {"model": p.model, "dictionary": p.dictionary, "inputs": p.texts[0], "site": SITE},
    ),
    "Crosscoder": lambda p: (dl.Crosscoder, {"site_dims": [4, 4], "dict_size": 8, "nonlinearity": {"name": "relu"}}),
    "CrossLayerTranscoder": lambda p: (
        dl.CrossLayerTranscoder, {"site_dims": [4, 4], "dict_size": 8, "nonlinearity": {"name": "relu"}, "output_dims": [4, 4]},
    ),
    "latent_edits": lambda p: (
        _used(latent_edits, lambda edits: p.model.run(p.ids, edits)), {"model": p.model, "dictionary": p.dictionary, "site": SITE},
    ),
    "latent_edits_for": lambda p: (
        _used(latent_edits_for, lambda made: p.model.run(*made)),
        {"model": p.model, "dictionary": p.dictionary, "inputs": p.ids, "site": SITE},
    ),
    "generate": lambda p: (generate, {"model": p.model, "prompts": p.ids, "edits": {SITE: ablate()}, "max_new_tokens": 1}),
    "attribute": lambda p: (
        attribute, {"model": p.model, "dictionaries": p.two, "inputs": p.ids, "metric": p.metric, "n_steps": 1},
    ),
    "edges": lambda p: (
        edges,
        {
            "model": p.model, "dictionaries": p.two, "attribution": p.effects, "upstream": "model.layers.0",
            "downstream": SITE, "chosen": [0],
        },
    ),
    "attribution_graph": lambda p: (
        attribution_graph, {"model": p.model, "transcoders": p.transcoder, "prompt": p.texts[0], "max_latents": 3},
    ),
    "prune": lambda p: (prune, {"graph": p.graph}),
    "circuit": lambda p: (circuit, {"attribution": p.effects, "n_nodes": 3}),
    "mean_latents": lambda p: (mean_latents, {"model": p.model, "dictionaries": p.two, "inputs": p.ids}),
    "faithfulness": lambda p: (
        faithfulness,
        {
            "model": p.model, "dictionaries": p.two, "inputs": p.ids, "metric": p.metric,
            "circuit": circuit(p.effects, n_nodes=3),
        },
    ),
    "show_tokens": lambda p: (show_tokens, {"tokens": ["a", "b"], "values": [1.0, 2.0]}),
    "token_predictions": lambda p: (token_predictions, {"model": p.model, "text": p.texts[0], "n": 3}),
    "latent_view": lambda p: (
        latent_view, {"model": p.model, "dictionary": p.dictionary, "text": p.texts[0], "latents": [3], "site": SITE},
    ),
    "test_prompt": lambda p: (answer_of, {"model": p.model, "prompt": p.texts[0], "answer": "w1", "n": 3}),
    "write_dashboard": lambda p: (write_dashboard, {"pages": [fake.page(size=4)], "folder": p.new(), "title": "a"}),
    "pages_of": lambda p: (pages_of, {"store": _opened(p), "dictionaries": {"a": p.dictionary}, "n": 3, "map_method": "pca"}),
    "LiveServer": lambda p: (
        _used(LiveServer, lambda server: server.discard()),
        {"model": p.model, "dictionaries": {"a": p.dictionary}, "sites": {"a": SITE}, "port": 0},
    ),
    "use_backend": lambda p: (_used(use_backend, lambda context: context.__enter__()), {"name": "reference"}),
    "trainer": lambda p: (TrainerTopK, {"activation_dim": tiny.DIM, "dict_size": 32, "k": 4, "steps": 3, "device": "cpu"}),
    "AutoEncoderTopK": lambda p: (dl.AutoEncoderTopK, {"activation_dim": tiny.DIM, "dict_size": 32, "k": 4}),
    "SparseAutoencoder": lambda p: (
        dl.SparseAutoencoder, {"activation_dim": tiny.DIM, "dict_size": 32, "nonlinearity": {"name": "top_k", "k": 4}},
    ),
    "encode": lambda p: (p.dictionary.encode, {"x": p.activations[0]}),
    "decode": lambda p: (p.dictionary.decode, {"latents": torch.zeros(4, 32)}),
    "config": lambda p: (TrainerTopK.Config, {"k": 4}),
    "collect_contexts": lambda p: (
        collect_contexts,
        {
            "model": p.model, "dictionaries": {"a": p.dictionary}, "data": p.texts, "save_dir": p.new(), "sites": {"a": SITE},
            "n_tokens": 64, "ctx_len": CTX, "batch_size": 2, "window": (3, 2),
        },
    ),
    "ContextStore.open": lambda p: (ContextStore.open, {"path": _store(p)}),
    "show": lambda p: (ContextStore.open(p.root / "store")["a"].show, {"latent": 1, "n": 2}),
    "logit_lens": lambda p: (logit_lens, {"model": p.model, "dictionary": p.dictionary, "n": 3, "site": SITE}),
    "nearest_latents": lambda p: (nearest_latents, {"dictionary": p.dictionary, "n": 3}),
    "latent_map": lambda p: (latent_map, {"dictionary": p.dictionary, "method": "pca"}),
    "coactivation": lambda p: (
        coactivation, {"model": p.model, "dictionary": p.dictionary, "data": p.texts, "latents": [1, 2], "site": SITE, **_SHORT},
    ),
    "ablation_effects": lambda p: (
        ablation_effects,
        {"model": p.model, "dictionary": p.dictionary, "data": p.texts, "latents": [1, 2], "n": 3, "site": SITE, **_SHORT},
    ),
    "feature_effect": lambda p: (
        feature_effect, {"model": p.model, "submodule": SITE, "dictionary": p.dictionary, "feature": 1, "inputs": "w1 w2"},
    ),
    "examine_dimension": lambda p: (
        examine_dimension,
        {
            "model": p.model, "submodule": SITE, "dictionary": p.dictionary, "n_inputs": 2, "dim_idx": 1, "k": 2,
            "buffer": dl.ActivationBuffer(p.texts, p.model, SITE, n_ctxs=4, out_batch_size=8, **READING),
        },
    ),
    "explain": lambda p: (
        explain, {"contexts": ContextStore.open(p.root / "store")["a"], "latents": [1, 2], "judge": Baseline()},
    ),
    "estimate_cost": lambda p: (
        estimate_cost, {"contexts": ContextStore.open(p.root / "store")["a"], "latents": [1, 2], "judge": Baseline()},
    ),
    "save_explanations": lambda p: (
        save_explanations, {"path": p.new(), "explanations": {3: Explanation("cats", "somebody", {})}},
    ),
    "load_explanations": lambda p: (load_explanations, {"path": p.root / "explained"}),
    "write_neuronpedia": lambda p: (
        write_neuronpedia, {"facts": p.facts(), "path": p.new(), "model_id": "m1", "layer": 1, "source_set": "a", "latents": [1]},
    ),
    "write_sae_dashboard": lambda p: (
        write_sae_dashboard, {"facts": p.facts(), "path": p.new(), "latents": [1], "model_id": "tiny"},
    ),
    "write_latent_picture": lambda p: (write_latent_picture, {"facts": p.facts(), "latent": 1, "path": p.new()}),
    "control_direction": lambda p: (control_direction, {"dictionary": p.dictionary, "strengths": {3: 1.0}, "layer": 1}),
    "write_control_vector": lambda p: (
        write_control_vector, {"directions": {1: torch.ones(tiny.DIM)}, "path": p.new() / "a.gguf"},
    ),
    "write_attribution_graph": lambda p: (
        write_attribution_graph, {"graph": p.graph, "path": p.new(), "slug": "a", "model_id": "tiny"},
    ),
    "write_circuit_tracer": lambda p: (
        write_circuit_tracer,
        {
            "transcoders": Transcoder(tiny.DIM, 32, {"name": "relu"}), "path": p.new(),
            "feature_input_hook": "mlp.hook_in", "feature_output_hook": "mlp.hook_out", "model_name": "tiny",
        },
    ),
}  # fmt: skip
"""Each public function, with arguments that work, by name; data are read as far as the first batch."""

_NO_TYPE = [5, None, "nothing", [3]]
_COUNT = [0, -1, 2.5, "x", float("nan"), float("inf"), None, [3], True, 10**30]
_CHANGE = [5, [1], "x", {1: "5"}, {1: True}, {1: 1e39}, {1: float("nan")}, {1: None}, {"x": 1.0}, {32: 1.0}]
_WIDTHS = [0, "x", [4, "x"], [4, -4], [4.5, 4], [], torch.tensor(4)]
_FLAG = ["yes", None, 5, [True]]
_NUMBER = ["x", float("nan"), float("inf"), None, [1.0]]
_WORD = [5, ["x"], b"x"]
_PATHS = [5, None, "", "a\0b", ["a"]]
_SITES = [5, None, "", "nothing", [3], [], f"{SITE}:side", "model.layers.9", torch.nn.Linear(2, 2)]
_TEXTS = [5, None, 2.5, "", [5], [None], [[-1, 3]], [[3, 5000]], [[2.5]], torch.rand(2, 9), b"text"]
_MODELS = [5, None, "", ["model"], "a\0b"]
_DEVICES = ["nosuch", "cuda:77", "meta", 5.5, [3]]
_DTYPES = ["nosuch", torch.int32, 5, [3]]
_MASKS = [5, "x", torch.ones(3, 3).bool(), torch.full((2, 9), 0.5), [True]]
_TENSORS = [5, None, "x", torch.ones(3), torch.ones(4, 7), torch.ones(4, 16).to_sparse()]

WRONG: dict[str, list[Any]] = {
    **dict.fromkeys(("steps", "log_steps", "n_ctxs", "ctx_len", "refresh_batch_size", "out_batch_size"), _COUNT),
    **dict.fromkeys(("batch_size", "n_tokens", "shard_size", "window", "n_batches", "target_l0", "candidates"), _COUNT),
    **dict.fromkeys(("activation_dim", "dict_size", "k", "max_len", "checkpoint_steps", "backup_steps"), _COUNT),
    **dict.fromkeys(("keep_checkpoints", "max_examples", "row_len", "shuffle_buffer", "layer_stride", "epochs"), _COUNT),
    **dict.fromkeys(("d_submodule", "vocab_size", "n_embeddings", "hook_layer", "n_fidelity_tokens"), _COUNT),
    **{n: [2.5, "x", float("nan"), [3], 2**70] for n in ("seed", "shuffle_seed", "separator_id")},
    **{n: [2.5, "x", float("nan"), [3], 2**70, torch.zeros(0), torch.zeros(2)] for n in ("index", "call")},
    "prefetch": [-1, 2.5, "x", [3]],
    "save_steps": [5, "x", [-1], [2.5], ["x"], [99]],
    **{n: [0.0, -1.0, *_NUMBER[:3], [1.0]] for n in ("max_activation_norm_multiple", "max_norm_multiple")},
    **{n: [*_NUMBER, -1.0] for n in ("expansion", "scale", "lr", "auxk_alpha", "threshold_beta")},
    "weights": [5, "x", [1.0], [0.0, 1.0], [-1.0, 1.0], [float("nan"), 1.0], ["x", "y"]],
    **dict.fromkeys(("path", "source", "folder", "save_dir", "name", "out", "destination"), _PATHS),
    "submodule": _SITES, "submodules": _SITES, "sites": _SITES, "site": _SITES, "target": _SITES[:1] + _SITES[2:],
    "data": _TEXTS, "text": _TEXTS, "model": _MODELS, "dictionary": [*_NO_TYPE, TrainerTopK, torch.nn.Linear(2, 2)],
    "device": _DEVICES, "dtype": _DTYPES, "autocast_dtype": ["bfloat16", 5, None], "use_wandb": _FLAG,
    "trainer_configs": [5, None, [], [None], ["top_k"], {"k": 4}, [{"trainer": 5}], [{"trainer": "nosuch"}], {}],
    "run_cfg": [5, "x", [3], {"a": object()}], "config": [5, "x", [3], {"a": {object()}}], "io": [5, "x", None, ["in"]],
    "seqpos_slice": [5, "x", (5, 2), (1, 2, 3, 4), ("a",), (0,)], "end_of_data": [5, "x", None],
    "resume": [5, None, "nosuch"], "loggers": [5, "x", [5]], "normalize_activations": [5, "nosuch", [3]],
    "allow_changed": [5], "tokenizer": [5, "nosuch", ["x"]], "channels": [5, "x"], "format": [5, "nosuch", ["x"]],
    "to": [5, None, "nosuch"], "report": [5, None, [3], "x"], "formats": [5, ["nosuch"], [5]],
    "activations": [5, None, torch.tensor(1.0), [], ["x"], [torch.ones(3)], [torch.ones(4, 7)], [torch.full((4, 16), float("nan"))]],
    "nonlinearity": [5, "nosuch", {"name": "nosuch"}, {"name": "top_k", "k": 0}, {"name": "top_k", "n": 1}, {}],
    "candidates": [5, None, torch.tensor(1.0), [], "x", [3], TrainerTopK], "token_filter": [5, "x", {"a": 1}], "generator": [5, "x"],
    "norm_limits": [5, "x", {"nothing": 1.0}, {SITE: "x"}, {SITE: float("nan")}], "match": [5, "nosuch", None],
    "x": _TENSORS, "W_dec": _TENSORS, "latents": _TENSORS[:5], "value": ["x", [1.0], torch.ones(3), torch.tensor(float("nan")), torch.full((2, 9, 16), 1e300, dtype=torch.float64)],
    "direction": [*_TENSORS[:5], torch.tensor(1.0), torch.full((16,), float("inf")), torch.ones(16).cfloat()],
    "keep": [*_MASKS, torch.full((2, 9), 2), torch.ones(2, 9).cfloat()], "attention_mask": _MASKS, "read": [5, "nothing", None],
    "write": [5, "nothing", None], "inputs": [5, "w1", "\ud800", None, torch.tensor([3]), torch.tensor([[3, 999]]), torch.rand(2, 9)],
    "edits": [5, "x", {SITE: 5}, {SITE: None}, {"nothing": ablate()}, {5: ablate()}, {SITE: lambda x: 5}],
    "ablate": [5, "1", [32], [-1], [0.5], [True], ["x"]],
    **dict.fromkeys(("clamp", "add"), _CHANGE), **dict.fromkeys(("site_dims", "output_dims"), _WIDTHS),
    "special_tokens": _FLAG, "keep_error": _FLAG, "when": [5, None, "x"],
    "layers": [5, "1", ["1"], [99], [-99], [0.5]], "side": [5, "x", None], "sources": [5, None, [], [5]],
    "parts": [5, None, [], [5, 5]], "chat": [5, "x"], "data_args": [5, "x"], "on_bad_document": [5, "x", None],
    "exclude_tokens": [5, None, [10**9], [-1], [0.5], [True], ["\ud800"]], "exhausted": [5, "x"], "bos": [5, "x"], "separator": [5000, "nosuch", 2.5], "padding_side": [5, "x"],
    "long_documents": [5, "x", None], "rows": [5, "x", None], "compression": [5, "x"], "options": [5],
    "exclude_ids": [5, "x", [2.5], ["x"]], "template": [5, ["x"]], "expected_class": _WORD, "repository": [5, None, "", "a/b/c/d"],
    "optimizer": [5, "nosuch"],
    **dict.fromkeys(("n_top", "n_quantiles", "per_quantile", "checkpoint_every", "n_contexts", "n_inputs", "n"), _COUNT),
    "n_quiet": [-1, 2.5, "x", [3]], "dictionaries": [5, None, {}, {"a": 5}, {3: 5}, [5], [], TrainerTopK], "buffer": [5, None, [3]],
    "feature": [99, -1, 2.5, "x", [99]], "dim_idx": [99, -1, 2.5, "x"], "max_length": _COUNT,
    "by": [5, None, "nosuch"], "method": [5, None, "nosuch"], "other": [5, "nothing"],
    "facts": [5, None, "x", [3]], "latent": [-1, 32, 2.5, "x", None, [3]], "layer": [-1, 2.5, "x", [3]],
    "source_set": [5, "", "A", "a--b"], "strengths": [5, None, {}, {99: 1.0}, {3: "x"}, {3: float("nan")}], "model_hint": _WORD,
    "directions": [5, None, {}, {0: torch.ones(4)}, {1: 5}, {"x": torch.ones(4)}], "url": [5, "", "nothing", "ftp://a"],
    "transcoders": [5, None, [], "x", [3]], "contexts": [5, None, "x"],
    "explanations": [5, None, "x", {3: 5}, {-1: None}],
    "prompts": [5, None, 2.5, "", [], [5], torch.rand(2, 9)], "max_new_tokens": _COUNT, "n_steps": _COUNT,
    "n_nodes": _COUNT, "threshold": _NUMBER,
    "prompt": [5, None, "", ["w1", "w2"], torch.rand(2, 9)], "answers": [5, "x", [], [-1], [10**6], [3, 3], [0.5]],
    "n_logits": _COUNT, "max_latents": [0, -1, 2.5, "x", [3]], "graph": [5, None, "x"],
    **{n: [-0.1, 1.5, *_NUMBER] for n in ("logit_share", "node_threshold", "edge_threshold")},
    "slug": [5, None, "", "a/b", "a b", ".."], "scan": [5, "", ["x"]],
    "metric": [5, None, "x", torch.ones(3), lambda logits: 5, lambda logits: logits],
    "baseline": [5, [], "", "w1", torch.rand(2, 9)], "attribution": [5, None, "x"], "upstream": [5, None, "nothing", SITE],
    "downstream": [5, None, "nothing", "model.layers.0"], "chosen": [5, None, "x", [-1], [10**6], [0, 0], [0.5]],
    "stop_at": [5, "nothing", SITE], "circuit": [5, None, "x"], "means": [5, "x", {"a": 1}], "onto": [5, "x", None],
    "evaluate_every": _COUNT, "evaluation": [5, "x", {"n_tokens": 5}],
    "evaluation_data": [5, None, [], "x", [3], [torch.ones(4, 7)]], "save_format": [5, "nosuch"], "save_best": [5, "nosuch", {"l0": "nosuch"}, ["fvu"]],
    "memory_gb": [0.0, -1.0, *_NUMBER[:3], [1.0]], "methods": [5, None, {}, "x", {"nosuch": {}}, {"top_k": 5}],
    **{n: [-1, 2.5, "x", [3], True] for n in ("number", "of")}, "every": [0, 1, -1, 2.5, "x", [3]],
    "state": [5, None, "x", {}, {"nothing": 1}], "limits": [5, None, "x", {}, {"nothing": 1.0}, {5: 1.0}, {SITE: -1.0}, {SITE: float("nan")}, {SITE: "x"}],
    "collate": [5, None, "x"],
    "grid": [5, None, "x", {"nosuch": 1}, {"k": []}],
}  # fmt: skip
"""What may be given wrongly, by the parameter; what is not here, by its annotation."""


MEANT = {
    ("as_custom_sae", "hook_layer"): ("0",), ("as_custom_sae", "config"): ("5", "'x'"), ("calibrate", "target_l0"): ("2.5",), ("leave_one_out", "target_l0"): ("2.5",),
    ("EvaluationConfig", "n_fidelity_tokens"): ("0",), ("steer", "scale"): ("-1.0",), ("capture", "sites"): ("None",),
    ("config", "max_grad_norm"): ("None",), ("gradient_pursuit", "candidates"): ("5",), ("Chat", "seed"): (str(2**70),),
    ("trainer", "k"): ("None",), ("trainer", "dict_size"): ("None",), ("config", "k"): ("None",), ("use_backend", "name"): ("None",),
    **{(name, "submodule"): ("''",) for name in ("loss_recovered", "feature_effect", "examine_dimension")}, ("trainer", "config"): ("5", "'x'", "[3]"), ("push_to_hub", "site"): ("''", "'nothing'", "'model.layers.9'"),
    **{(name, part): ("None",) for name in ("collect_contexts", "logit_lens", "coactivation", "ablation_effects")
       for part in ("sites", "site", "token_filter", "target")},
    ("coactivation", "latents"): ("None",), ("feature_effect", "inputs"): ("'w1'", "tensor([3])"), **{(name, "dictionary"): ("None",) for name in ("feature_effect", "examine_dimension")},
    ("pages_of", "dictionaries"): ("{}",), ("write_circuit_tracer", "repository"): ("'a/b/c/d'",), ("explain", "latents"): ("[]",),
    **{(name, "inputs"): ("'w1'", "tensor([3])") for name in ("latent_edits_for", "read_latents", "attribute", "mean_latents", "faithfulness")},
    ("latent_view", "latents"): ("5",), ("generate", "prompts"): ("[5]",), **{(name, "text"): ("[5]",) for name in ("latent_view", "token_predictions")}, ("test_prompt", "answer"): ("['x']",),
    **{(f"{name}.expect", "n_batches"): ("0", "None") for name in ("ActivationBuffer", "ContextStream", "ActivationMixture")},
    ("TokenStream", "epochs"): ("None",), ("loss_recovered", "max_len"): ("None",), ("trainSAE", "save_dir"): ("None",),
}  # fmt: skip
"""What is wrong elsewhere, and is meant here."""


def _store(place: Place) -> Path:
    """Returns the folder of contexts."""
    made = place.root / "contexts"
    collect_contexts(place.model, {"a": place.dictionary}, place.texts, made, sites={"a": SITE}, **_SHORT)
    return made


def _by_annotation(parameter: inspect.Parameter) -> list[Any]:
    hint = str(parameter.annotation)
    kinds = {"bool": _FLAG, "Literal": [5, "nosuch"], "float": _NUMBER, "int": [2.5, "x", [3]], "str": _WORD}
    return next((values for kind, values in kinds.items() if kind in hint), [] if "Any" in hint else [object()])


def wrong_arguments(place: Place, name: str) -> list[tuple[str, Any]]:
    """Returns each parameter of a function with a value that cannot be meant."""
    function, good = CALLS[name](place)
    known = dict(inspect.signature(function).parameters)
    known = {n: p for n, p in known.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    known = {n: inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY) for n in good} | known
    found = [(n, value) for n, p in known.items() for value in WRONG.get(n) or _by_annotation(p)]
    found = [(n, v) for n, v in found if not (v is None and known[n].default is None)]
    # named tuples are called by Python itself
    unknown = [] if name in ("Site", "Site.parse", "Candidate", "combine") else [("no_such_argument", 1)]
    return [*((n, v) for n, v in found if repr(v) not in MEANT.get((name, n), ())), *unknown]
