"""A pass over text keeps what a search through all latents of all tokens finds."""

import html
import json
import os
import re
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file

from dictionary_learning import TokenFilter, load_model, save_dictionary
from dictionary_learning.data import as_source
from dictionary_learning.dictionaries import (
    AutoEncoder,
    AutoEncoderTopK,
    Crosscoder,
    CrossLayerTranscoder,
    HeadAutoencoders,
    JumpReluAutoEncoder,
    Transcoder,
)
from dictionary_learning.dictionaries._info import DictionaryInfo
from dictionary_learning.errors import ConfigError, DataError, DictionaryLearningError, Stopped
from dictionary_learning.interpretation import ContextStore, collect_contexts
from dictionary_learning.interpretation._pass import LatentPass
from tests import tiny
from tests.interpretation.brute import CTX, activations, contexts, dense_latents, usual_keep, window

SITE, OTHER = "model.layers.1", "model.layers.0"
TEXTS = tiny.documents(60)
N = 700
SMALL = {"n_tokens": N, "ctx_len": CTX, "batch_size": 4, "window": (4, 2), "n_top": 5, "per_quantile": 3, "n_quiet": 4}
TOP_K = {"name": "top_k", "k": 6}


@pytest.fixture(scope="module")
def model():
    return load_model(tiny.model(), tokenizer=tiny.tokenizer())


def made(name: str):
    """Returns a dictionary, and the sites that it reads."""
    generator = torch.Generator().manual_seed(1)
    two = (tiny.DIM, tiny.DIM)
    dictionary, sites = {
        "top_k": lambda: (AutoEncoderTopK(tiny.DIM, 64, k=6), [SITE]),
        "relu": lambda: (AutoEncoder(tiny.DIM, 40), [OTHER]),
        "jump_relu": lambda: (JumpReluAutoEncoder(tiny.DIM, 40), [SITE]),
        "transcoder": lambda: (Transcoder(tiny.DIM, 48, TOP_K, generator=generator), [f"{SITE}.mlp:in"]),
        "crosscoder": lambda: (Crosscoder(two, 48, TOP_K, generator=generator), [OTHER, SITE]),
        "cross_layer": lambda: (CrossLayerTranscoder(two, 48, TOP_K, generator=generator), [f"{OTHER}.mlp:in", f"{SITE}.mlp:in"]),
        "heads": lambda: (HeadAutoencoders(tiny.DIM, 48, TOP_K, n_heads=2, generator=generator), [f"{SITE}.self_attn.o_proj:in"]),
    }[name]()  # fmt: skip
    if name == "jump_relu":
        dictionary.nonlinearity.threshold.data.fill_(0.3)
    dictionary.info = DictionaryInfo(sites=tuple(sites))
    return dictionary


def latents_of(model, name: str, dictionary, tokens, keep):
    sites = [site.rpartition(":") if ":" in site else (site, "", "out") for site in dictionary.info.sites]
    x = torch.cat([activations(model._original, path, tokens, side) for path, _, side in sites], dim=-1)
    return dense_latents(dictionary, x, keep)


ALL = ["top_k", "relu", "jump_relu", "transcoder", "crosscoder", "cross_layer", "heads"]


@pytest.fixture(scope="module")
def collected(model, tmp_path_factory):
    torch.manual_seed(0)
    dictionaries = {name: made(name) for name in ALL}
    store = collect_contexts(model, dictionaries, TEXTS, tmp_path_factory.mktemp("all"), **SMALL)
    tokens = contexts(TEXTS, N)
    keep = usual_keep(tokens)
    return store, tokens, keep, {name: latents_of(model, name, d, tokens, keep) for name, d in dictionaries.items()}


@pytest.mark.parametrize("name", ALL)
def test_statistics_are_exact(collected, name):
    store, _, keep, dense = collected
    found, rows = store[name].statistics, dense[name][keep]  # (n, dict_size)
    active = rows > 0
    assert found.n_tokens == len(rows) == int(keep.sum())
    torch.testing.assert_close(found.density, active.float().mean(0))
    torch.testing.assert_close(found.mean, rows.sum(0) / active.sum(0).clamp_min(1))
    torch.testing.assert_close(found.maximum, rows.amax(0))
    assert torch.equal(found.histogram.sum(1), active.sum(0))
    for latent in range(rows.shape[1]):
        values, upper = rows[active[:, latent], latent], float(found.upper[latent])
        if len(values):
            assert values.max() < upper <= 2 * values.max() and torch.tensor(upper).log2() % 1 == 0
        expected = torch.histc(values, 64, 0, upper) if len(values) else torch.zeros(64)
        # a value may lie within rounding of an edge
        assert (found.histogram[latent] - expected).abs().sum() <= 2


@pytest.mark.parametrize("name", ALL)
def test_top_examples_are_the_largest_of_different_contexts(collected, name):
    store, tokens, _, dense = collected
    latents = dense[name]
    for latent in range(latents.shape[2]):
        best = latents[..., latent].amax(dim=1)
        n = min(5, int((best > 0).sum()))
        top = store[name].contexts(latent).top
        assert len(top) == n
        expected = best.topk(n)
        torch.testing.assert_close(torch.tensor([float(e.activations[e.peak]) for e in top]), expected.values)
        rows = []
        for example in top:  # of equal ones, any may come first
            row, at = places(example, tokens)
            check_window(example, tokens, latents[..., latent], row, at)
            torch.testing.assert_close(float(latents[row, at, latent]), float(best[row]))
            rows.append(row)
        assert len(set(rows)) == n


def check_window(example, tokens, latents, row, column):
    """Checks a window against all latents of one dictionary (contexts, ctx)."""
    ids, values = window(tokens, latents, row, column, 4, 2)
    assert torch.equal(example.token_ids, ids)
    torch.testing.assert_close(example.activations, values)
    assert example.document == int(tokens.document[row, column])
    assert example.position == int(tokens.position[row, column])
    assert int(example.token_ids[example.peak]) == int(tokens.input_ids[row, column])


def places(example, tokens):
    """Returns the row and the column of an example's token."""
    found = (tokens.document == example.document) & (tokens.position == example.position) & tokens.attention_mask
    return found.nonzero().tolist()[0]


@pytest.mark.parametrize("name", ALL)
def test_quantiles_are_groups_of_equal_size_of_active_tokens(collected, name):
    store, tokens, _, dense = collected
    n_few = 0
    for latent in range(dense[name].shape[2]):
        latents = dense[name][..., latent]
        values = latents[latents > 0].sort(descending=True).values
        groups = store[name].contexts(latent).quantiles
        assert len(groups) == 5
        seen = []
        for number, group in enumerate(groups):
            peaks = [float(e.activations[e.peak]) for e in group]
            assert peaks == sorted(peaks, reverse=True) and (min(len(values), 30) < 15 or len(peaks) == 3)
            for example in group:
                row, column = places(example, tokens)
                check_window(example, tokens, latents, row, column)
                seen.append((row, column))
            if len(values) <= 30 and peaks:  # all active tokens are known, so the groups are exact
                n_few += 1
                edges = [-(-g * len(values) // 5) for g in (number, number + 1)]
                whole = values[edges[0] : edges[1]]
                assert all(whole.min() - 1e-5 <= peak <= whole.max() + 1e-5 for peak in peaks)
        assert len(set(seen)) == len(seen)
    assert n_few > 0 or name not in ("top_k", "transcoder", "crosscoder")


def test_sampled_quantiles_are_near_the_true_ones(model, tmp_path):
    texts = tiny.documents(150, seed=3)
    options = {**SMALL, "n_tokens": 3000, "n_quantiles": 4, "per_quantile": 40}
    dictionary = made("relu")
    store = collect_contexts(model, {"relu": dictionary}, texts, tmp_path / "store", **options)
    tokens = contexts(texts, 3000)
    dense = latents_of(model, "relu", dictionary, tokens, usual_keep(tokens))
    found = store["relu"]
    errors = []
    for latent in found.statistics.density.topk(10).indices.tolist():
        values = dense[..., latent][dense[..., latent] > 0]
        assert len(values) > 4 * 40 * 2
        for number, group in enumerate(found.contexts(latent).quantiles):
            shares = torch.tensor([float((values > e.activations[e.peak]).float().mean()) for e in group])
            errors.append(float(shares.mean()) - (number + 0.5) / 4)
    # of 320 tokens, a quarter's mean place is known to about 0.025
    assert max(map(abs, errors)) < 0.09 and abs(sum(errors) / len(errors)) < 0.03


@pytest.mark.parametrize("name", ALL)
def test_quiet_windows_are_quiet(collected, name):
    store, tokens, keep, dense = collected
    for latent in range(dense[name].shape[2]):
        latents = dense[name][..., latent]
        quiet = store[name].contexts(latent).quiet
        seen = {tuple(places(e, tokens)) for e in quiet}
        assert len(seen) == len(quiet)
        for example in quiet:
            row, column = places(example, tokens)
            assert keep[row, column]
            ids, values = window(tokens, latents, row, column, 4, 2)
            assert torch.equal(example.token_ids, ids) and not values.any() and not example.activations.any()
        possible = sum(
            not window(tokens, latents, r, c, 4, 2)[1].any() for r, c in keep.nonzero().tolist()
        ) if len(quiet) < 4 else 4  # fmt: skip
        # 256 of some 650 windows are drawn
        assert len(quiet) == 4 or possible < 40


def test_samples_do_not_depend_on_batches_and_other_dictionaries(model, collected, tmp_path):
    store = collected[0]
    alone = collect_contexts(
        model, {"relu": made_again("relu")}, TEXTS, tmp_path / "alone", **{**SMALL, "batch_size": 11}
    )
    assert alone.data["n_tokens_read"] == store.data["n_tokens_read"]
    for one, other in zip(store["relu"], alone["relu"], strict=True):
        for a, b in zip((*one.quiet, *sum(one.quantiles, ())), (*other.quiet, *sum(other.quantiles, ())), strict=True):
            assert torch.equal(a.token_ids, b.token_ids) and a.peak == b.peak
            torch.testing.assert_close(a.activations, b.activations)
        peaks = [[float(e.activations[e.peak]) for e in each.top] for each in (one, other)]
        assert peaks[0] == pytest.approx(peaks[1])  # of equal ones, any is kept


def made_again(name):
    torch.manual_seed(0)
    return {each: made(each) for each in ALL}[name]


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("after", [2, 5, 9])
def test_killed_and_resumed_writes_the_same_bytes(model, tmp_path, monkeypatch, after):
    options = {**SMALL, "checkpoint_every": 3}
    dictionaries = {"a": made("top_k"), "b": made("relu")}
    collect_contexts(model, dictionaries, TEXTS, tmp_path / "whole", **options)
    read, n = LatentPass._read, 0

    def killed(self, tokens):
        nonlocal n
        n += 1
        if n > after:
            raise SystemExit
        return read(self, tokens)

    with monkeypatch.context() as patch:
        patch.setattr(LatentPass, "_read", killed)
        with pytest.raises(SystemExit):
            collect_contexts(model, dictionaries, TEXTS, tmp_path / "killed", **options)
        with pytest.raises(DataError, match="unfinished"):
            ContextStore.open(tmp_path / "killed")
    if after == 5:
        with pytest.raises(ConfigError, match="seed: 0, now 1"):
            collect_contexts(model, dictionaries, TEXTS, tmp_path / "killed", **options, seed=1)
    n_before, calls = n, []
    monkeypatch.setattr(LatentPass, "_read", lambda self, tokens: calls.append(1) or read(self, tokens))
    collect_contexts(model, dictionaries, TEXTS, tmp_path / "killed", **options)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert len(calls) < 11 or n_before <= 3


def test_signal_leaves_a_checkpoint(model, tmp_path, monkeypatch):
    read, n, dictionaries = LatentPass._read, [], {"a": made("top_k")}

    def stopped(self, tokens):
        n.append(1)
        if len(n) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(self, tokens)

    with monkeypatch.context() as patch:
        patch.setattr(LatentPass, "_read", stopped)
        with pytest.raises(Stopped, match="Stopped by SIGTERM after"):
            collect_contexts(model, dictionaries, TEXTS, tmp_path, **SMALL)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_4"]
    monkeypatch.setattr(LatentPass, "_read", lambda self, tokens: n.append(1) or read(self, tokens))
    collect_contexts(model, dictionaries, TEXTS, tmp_path, **SMALL)
    assert len(n) == 11 and not (tmp_path / "checkpoints").exists() and not list(tmp_path.glob(".*"))


def test_finished_folder_is_opened_again(model, tmp_path, monkeypatch):
    dictionaries = {"a": made("top_k")}
    collect_contexts(model, dictionaries, TEXTS, tmp_path, **SMALL)
    monkeypatch.setattr(LatentPass, "_read", None)  # nothing is read
    assert collect_contexts(model, dictionaries, TEXTS, tmp_path, **SMALL).names == ["a"]
    with pytest.raises(ConfigError, match="n_top: 5, now 6"):
        collect_contexts(model, dictionaries, TEXTS, tmp_path, **{**SMALL, "n_top": 6})
    other = made("top_k")
    other.W_enc.data[0, 0] += 1
    with pytest.raises(ConfigError, match="weights"):
        collect_contexts(model, {"a": other}, TEXTS, tmp_path, **SMALL)
    with pytest.raises(ConfigError, match="there already"):
        collect_contexts(model, dictionaries, TEXTS, tmp_path, **SMALL, resume="never")
    with pytest.raises(ConfigError, match="contents.documents"):
        collect_contexts(model, dictionaries, [*TEXTS[:-1], "w1 w2"], tmp_path, **SMALL)
    other_model = load_model(tiny.model(seed=5), tokenizer=tiny.tokenizer())
    with pytest.raises(ConfigError, match="contents.model"):
        collect_contexts(other_model, dictionaries, TEXTS, tmp_path, **SMALL)


def test_saved_filter_of_each_dictionary_decides(model, tmp_path):
    """One has norm limits of two sites, one excludes ids, one has no filter of its own."""
    tokens = contexts(TEXTS, N)
    norms = {site: activations(model._original, site, tokens).norm(dim=-1) for site in (SITE, OTHER)}
    limits = {f"{site}:out": float(norm[usual_keep(tokens)].quantile(0.8)) for site, norm in norms.items()}
    ids = tuple(tokens.input_ids.unique().tolist()[5:15])
    saved = {
        "limited": {**TokenFilter(exclude_first=True, max_norm_multiple=3.0).to_dict(), "norm_limits": limits},
        "ids": TokenFilter(exclude_ids=ids).to_dict(),
        "default": {},
    }
    dictionaries = {}
    for name, rule in saved.items():
        dictionaries[name] = made("top_k")
        config = {"site": SITE, "buffer": {"filter": rule} if rule else {}}
        save_dictionary(dictionaries[name], tmp_path / name, config)
    store = collect_contexts(model, {name: tmp_path / name for name in saved}, TEXTS, tmp_path / "store", **SMALL)
    expected = {
        "limited": TokenFilter(exclude_first=True).token_mask(tokens)
        & torch.stack([norm <= limits[f"{site}:out"] for site, norm in norms.items()]).all(0),
        "ids": TokenFilter(exclude_ids=ids).token_mask(tokens),
        "default": usual_keep(tokens),
    }
    for name, keep in expected.items():
        dense = latents_of(model, name, made_loaded(tmp_path / name), tokens, keep)
        assert store[name].statistics.n_tokens == int(keep.sum())
        torch.testing.assert_close(store[name].statistics.density, (dense[keep] > 0).float().mean(0))
    everything = collect_contexts(
        model, tmp_path / "default", TEXTS, tmp_path / "own", **SMALL, token_filter=TokenFilter()
    )
    assert everything[everything.names[0]].statistics.n_tokens == int(tokens.attention_mask.sum())


def made_loaded(path):
    from dictionary_learning import load_dictionary

    return load_dictionary(path)


def test_limits_that_no_file_has_come_from_the_first_batch(model, tmp_path):
    rule = TokenFilter(exclude_first=True, max_norm_multiple=1.0)
    store = collect_contexts(model, {"a": made("top_k")}, TEXTS, tmp_path, **SMALL, token_filter=rule)
    tokens = contexts(TEXTS, N)
    keep, norm = rule.token_mask(tokens), activations(model._original, SITE, tokens).norm(dim=-1)
    limit = norm[:4][keep[:4]].median()
    assert store["a"].statistics.n_tokens == int((keep & (norm <= limit)).sum())


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_documents_have_windows_without_padding(tmp_path, side):
    tokenizer = tiny.tokenizer(padding_side=side)
    model = load_model(tiny.model(), tokenizer=tokenizer)
    torch.manual_seed(0)
    dictionary = made("top_k")
    store = collect_contexts(model, {"a": dictionary}, TEXTS, tmp_path, **SMALL, pack=False)
    for latents in list(store["a"])[:20]:
        for example in (*latents.top, *latents.quiet):
            words = TEXTS[example.document].split()
            at = example.position
            assert [w for w in store.token_text(example.token_ids) if w != "<s>"] == words[
                max(at - 4, 0) : min(at + 3, CTX)
            ]


def test_tokens_have_their_texts_without_a_model(collected):
    store = collected[0]
    assert store.token_text(torch.tensor([0, 3, 40, 10**6])) == ["<s>", "w0", "w37", str(10**6)]
    assert store["relu"].token_text([5]) == ["w2"]


@pytest.mark.parametrize("name", ALL)
def test_view_of_a_latent_has_its_strongest_contexts(collected, name):
    store, latents = collected[0], collected[0][name]
    latent = int(latents.statistics.density.argmax())
    top = latents.contexts(latent).top
    rows = latents.show(latent, n=2).html.split('<div class="row">')[1:]
    assert (
        len(rows) == min(2, len(top)) == len(latents.show(latent).html.split('<div class="row">')) - 1 - len(top[2:8])
    )
    largest = float(top[0].activations.max())
    for row, one in zip(rows, top, strict=False):
        assert f'<span class="number">{float(one.activations.max()):.4g}</span>' in row
        shown = re.findall(r'tabindex="0"(?: style="background:rgb\([\d ]+/([\d.]+)\)")?>([^<]*)', row)
        shares = torch.tensor([float(share or 0) / 0.75 for share, _ in shown])
        torch.testing.assert_close(shares, one.activations / largest, atol=1e-3, rtol=0)  # written with three digits
        assert [html.unescape(text) for _, text in shown] == store.window_text(one.token_ids)


def test_view_of_a_latent_that_is_not_there_is_refused(collected):
    latents = collected[0]["top_k"]
    dead = latents.statistics.density == 0
    if dead.any():
        assert "active on 0 % of tokens" in latents.show(int(dead.long().argmax())).html
    for wrong in ((latents.dict_size,), (-1,), (0, 0)):
        with pytest.raises(ConfigError):
            latents.show(*wrong)


def test_opening_reads_no_examples_and_a_latent_only_its_file(collected, tmp_path, monkeypatch):
    monkeypatch.setattr("dictionary_learning.interpretation._writing.SHARD_SIZE", 16)
    model, folder = load_model(tiny.model(), tokenizer=tiny.tokenizer()), tmp_path / "store"
    collect_contexts(model, {"a": made("top_k"), "b": made("relu")}, TEXTS, folder, **SMALL)
    shards = sorted(path.name for path in (folder / "0").glob("latents_*"))
    assert len(shards) == 4
    for path in [*folder.glob("*/latents_*"), folder / "1/statistics.safetensors", folder / "tokens.json"]:
        if path != folder / "0" / shards[1]:
            path.write_bytes(b"damaged")
    store = ContextStore.open(folder)
    assert (
        store["a"].dict_size == 64 and store["b"].site == f"{OTHER}:out" and store["a"].class_name == "AutoEncoderTopK"
    )
    for latent in range(16, 32):
        assert store["a"].contexts(latent).quiet
    for read in (lambda: store["a"].contexts(0), lambda: store["b"].statistics, lambda: store.token_text([1])):
        with pytest.raises(DataError, match="damaged"):
            read()


def test_figures_widen_without_losing_a_count(tmp_path):
    from dictionary_learning.interpretation._active import ActivePairs
    from dictionary_learning.interpretation._figures import LatentFigures

    generator = torch.Generator().manual_seed(0)
    values = 10 ** (8 * torch.rand(4000, generator=generator) - 4)
    latents = torch.randint(3, (4000,), generator=generator)
    figures = LatentFigures(4, torch.device("cpu"))
    for part in torch.arange(4000).split(37):
        order = part[latents[part].sort(stable=True).indices]
        figures.add(ActivePairs(latents[order], order, values[order]), 37)
    found = figures.result()
    for latent in range(3):
        own, upper = values[latents == latent], float(found.upper[latent])
        bins = (own.double() * 64 / upper).long()
        assert torch.equal(found.histogram[latent], torch.bincount(bins, minlength=64))
        assert own.max() < upper <= 2 * own.max()
    assert found.upper[3] == 0 and found.mean[3] == 0 and not found.histogram[3].any()


def test_one_very_dense_latent_does_not_widen_the_others():
    from dictionary_learning.interpretation._kept import KeptExamples

    kept = KeptExamples(1000, 4, 3, torch.device("cpu"))
    latents = torch.cat([torch.zeros(5000, dtype=torch.long), torch.arange(1, 1000)])
    keys = torch.rand(len(latents), generator=torch.Generator().manual_seed(0)) + 0.1
    chosen, slots = kept.choose(latents, keys)
    assert len(chosen) == len(slots) == 4 + 999 and len(slots.unique()) == len(slots)
    assert torch.equal(keys[chosen][latents[chosen] == 0].sort().values, keys[:5000].sort().values[-4:])


def bad(**changes):
    return {"dictionaries": {"a": made("top_k")}, "data": TEXTS, **SMALL, **changes}


UNKNOWN = AutoEncoderTopK(tiny.DIM, 32, k=4)
WRONG = {
    "no dictionary": lambda: bad(dictionaries={}),
    "no site": lambda: bad(dictionaries={"a": UNKNOWN}),
    "wrong site": lambda: bad(dictionaries={"a": UNKNOWN}, sites={"a": "model.layers.99"}),
    "wrong width": lambda: bad(dictionaries={"a": AutoEncoderTopK(8, 32, k=4)}, sites={"a": SITE}),
    "site of another": lambda: bad(sites={"b": SITE}),
    "not a dictionary": lambda: bad(dictionaries={"a": torch.nn.Linear(2, 2)}),
    "no folder": lambda: bad(dictionaries={"a": "/nowhere/at/all"}),
    "a number as name": lambda: bad(dictionaries={3: made("top_k")}),
    "no text": lambda: bad(data=[]),
    "no token that counts": lambda: bad(token_filter=TokenFilter(exclude_ids=tuple(range(tiny.VOCAB)))),
    "no top": lambda: bad(n_top=0),
    "negative quiet": lambda: bad(n_quiet=-1),
    "no quantile": lambda: bad(n_quantiles=0),
    "no window": lambda: bad(window=(-1, 2)),
    "half a window": lambda: bad(window=(4,)),
    "no batch": lambda: bad(batch_size=0),
    "no checkpoint": lambda: bad(checkpoint_every=0),
    "unknown resume": lambda: bad(resume="maybe"),
    "seed": lambda: bad(seed="x"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_argument_is_our_error(model, tmp_path, case):
    with pytest.raises(DictionaryLearningError, match=r"[.;:,] "):
        collect_contexts(model, save_dir=tmp_path / "store", **WRONG[case]())
    assert not (tmp_path / "store/index.json").exists()


def test_wrong_store_is_our_error(collected, tmp_path):
    store = collected[0]
    for latent in (-1, 64, "x", None, 1.5):
        with pytest.raises(ConfigError, match="latent"):
            store["top_k"].contexts(latent)
    with pytest.raises(ConfigError, match="Did you mean 'top_k'"):
        store["topk"]
    with pytest.raises(DataError, match="no contexts"):
        ContextStore.open(tmp_path / "nothing")
    shutil.copytree(store.folder, tmp_path / "copy")
    for damage in ("{", "{}", '{"format_version": 99, "request": {}, "dictionaries": [], "shard_size": 1}'):
        (tmp_path / "copy/index.json").write_text(damage)
        with pytest.raises(DataError, match=r"damaged|Upgrade"):
            ContextStore.open(tmp_path / "copy")


def test_data_may_be_a_source_a_stream_or_ids(model, tmp_path):
    tokens = contexts(TEXTS, N)
    ids = tokens.input_ids
    whole = collect_contexts(model, {"a": made_again("top_k")}, as_source(TEXTS), tmp_path / "source", **SMALL)
    by_ids = collect_contexts(model, {"a": made_again("top_k")}, ids, tmp_path / "ids", **SMALL)
    assert torch.equal(whole["a"].statistics.maximum, by_ids["a"].statistics.maximum)


INDEX_FAULTS = {
    "a size that is text": lambda index: index.update(ctx_len="16"),
    "no size": lambda index: index.update(shard_size=0),
    "half a window": lambda index: index.update(window=[4]),
    "a negative window": lambda index: index.update(window=[-4, 2]),
    "dictionaries that are a word": lambda index: index.update(dictionaries="top_k"),
    "a dictionary that is a word": lambda index: index.update(dictionaries=["top_k"]),
    "a folder elsewhere": lambda index: index["dictionaries"][0].update(folder="../elsewhere"),
    "a file elsewhere": lambda index: index["files"].update({"../x": {"size": 1, "sha256": "0"}}),
    "sites that are numbers": lambda index: index["dictionaries"][0].update(sites=[3]),
    "no model": lambda index: index["request"].update(model=None),
    "no quantiles": lambda index: index["request"].update(n_quantiles=True),
    "no files": lambda index: index.pop("files"),
    "a file without a size": lambda index: index["files"].update({"tokens.json": 5}),
}


@pytest.mark.parametrize("fault", INDEX_FAULTS)
def test_damaged_index_is_our_error(collected, tmp_path, fault):
    shutil.copytree(collected[0].folder, tmp_path / "copy")
    path = tmp_path / "copy" / "index.json"
    index = json.loads(path.read_text())
    INDEX_FAULTS[fault](index)
    path.write_text(json.dumps(index))
    with pytest.raises(DataError, match="damaged"):
        ContextStore.open(tmp_path / "copy")


@pytest.mark.parametrize("text", ["{}", "[1]", '"words"', "[", '["a", "b"]'])
def test_token_texts_of_another_form_are_our_error(collected, tmp_path, text):
    shutil.copytree(collected[0].folder, tmp_path / "copy")
    (tmp_path / "copy" / "tokens.json").write_text(text)
    with pytest.raises(DataError, match=r"tokens\.json.*damaged"):
        ContextStore.open(tmp_path / "copy").token_text([3])


def test_flipped_bytes_are_found_on_demand(collected, tmp_path):
    shutil.copytree(collected[0].folder, tmp_path / "copy")
    store = ContextStore.open(tmp_path / "copy")
    store.verify()
    written = sorted(p.relative_to(store.folder).as_posix() for p in store.folder.rglob("*.*"))
    assert sorted([*store.index["files"], "index.json"]) == written
    for name in store.index["files"]:
        path = store.folder / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(DataError, match=name):
            store.verify()
        path.unlink()
        with pytest.raises(DataError, match=name):
            store.verify()
        path.write_bytes(whole)
    store.verify()


def test_tokens_of_no_context_are_our_error(collected, tmp_path):
    shutil.copytree(collected[0].folder, tmp_path / "copy")
    path = tmp_path / "copy" / "0" / "latents_00000.safetensors"
    shard = load_file(path)
    shard["top_tokens"][shard["top_tokens"] >= 0] += 10**9
    save_file(shard, path)
    store, latent = ContextStore.open(tmp_path / "copy"), int(collected[0]["top_k"].statistics.density.argmax())
    with pytest.raises(DataError, match="damaged"):
        store["top_k"].contexts(latent)
