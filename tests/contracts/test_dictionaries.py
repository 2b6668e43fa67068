"""What every dictionary promises: all wirings with all nonlinearities, and the classes by name."""

import copy

import pytest
import torch
from torch import Tensor

from dictionary_learning import ops
from dictionary_learning.dictionaries import DICTIONARIES, WIRINGS, Coder, Dictionary, Shape, Trainable
from dictionary_learning.dictionaries.blocks import Blocks
from dictionary_learning.dictionaries.nonlinearities import NONLINEARITIES, MatchingPursuit, Selects
from dictionary_learning.dictionaries.normalized import Normalized
from dictionary_learning.dictionaries.serialization import load_dictionary, save_dictionary
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import SparseLatents, to_dense
from dictionary_learning.ops import chosen
from dictionary_learning.trainers import TRAINERS

OPTIONS = {"relu": {}, "gated": {}, "jump_relu": {"initial_threshold": 0.3, "bandwidth": 0.4}}
"""What a nonlinearity is built with that keeps no set number."""
SHAPES = {
    "autoencoder": Shape((12,), (12,), 40),
    "transcoder": Shape((12,), (10,), 40),
    "skip_transcoder": Shape((12,), (10,), 40),
    "crosscoder": Shape((7, 5), (7, 5), 40),
    "cross_layer_transcoder": Shape((7, 5), (6, 4), 40),
    "heads": Shape((12,), (12,), 40, n_heads=2),
}
KINDS = [name for name, _ in NONLINEARITIES.items()]
PAIRS = [(w, n) for w in WIRINGS for n in KINDS if (w, n) != ("cross_layer_transcoder", "matching_pursuit")]
"""One matrix for encoder and decoder is not to be had where a layer writes several."""
NAMED = {
    "MatryoshkaBatchTopKSAE": {"k": 3, "group_sizes": [10, 30]},
    "JumpReluAutoEncoder": {"initial_threshold": 0.3, "bandwidth": 0.4, "apply_b_dec_to_input": True},
    "AutoEncoderNew": {},
    "AutoEncoder": {"apply_b_dec_to_input": False},
    "GatedAutoEncoder": {},
    "BatchTopKSAE": {"k": 3, "rank_by_norm": True},
    **{name: {"k": 3} for name in ("AutoEncoderTopK", "GroupMaxSAE", "AbsTopKSAE", "MatchingPursuitSAE")},
}
ANY = [*PAIRS, *NAMED, "IdentityDict", "Normalized"]
SELECTING = [name for name in KINDS if issubclass(NONLINEARITIES[name], Selects)]
X = torch.randn(24, 12, generator=torch.Generator().manual_seed(1))


def kind(name: str):
    return NONLINEARITIES[name](**OPTIONS.get(name, {"k": 3}))


def wired(wiring: str, name: str, **options) -> Trainable:
    """Returns a dictionary with no tensor at its initial value."""
    shape = SHAPES[wiring]
    if NONLINEARITIES[name].is_tied:
        shape = Shape(shape.inputs, shape.inputs, shape.dict_size, shape.n_heads)
    return moved(WIRINGS[wiring].build(shape, kind(name), None, **options))


def build(case: tuple[str, str] | str) -> Dictionary:
    if not isinstance(case, str):
        return wired(*case)
    if case == "IdentityDict":
        return DICTIONARIES[case](12)  # type: ignore[call-arg]
    if case == "Normalized":
        return Normalized(build("AutoEncoderTopK"), "layer_norm", site_dims=[7, 5], scales=[0.5, 3.0])
    return moved(DICTIONARIES[case](12, 40, **NAMED[case]))  # type: ignore[arg-type]


def moved(built: Trainable) -> Trainable:
    with torch.no_grad():
        for name, p in built.named_parameters():
            p.add_(torch.rand_like(p) if name.endswith("threshold") else 0.3 * torch.randn_like(p))
        for buffer in built.buffers():
            buffer.fill_(0.5)
        for part in built.coders():
            if part.coder.is_tied:
                part.coder.W_dec.copy_(torch.nn.functional.normalize(part.coder.W_dec, dim=1))
    return built


def decoded(built: Dictionary, latents: Tensor, x: Tensor) -> Tensor:
    return built.decode(latents, x) if isinstance(built, Coder | Normalized) else built.decode(latents)


def close(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Compares with a tolerance relative to the largest value of each: sums of terms of that size may cancel to anything."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        error = (got[name].double() - value.double()).abs().max()
        # thresholds and their gradients stay float32
        rounding = max(tolerance, 1e-6) if got[name].dtype == torch.float32 else tolerance
        assert error <= rounding * max(float(value.abs().max()), 1.0), f"{name}: {error:.1e}"


def objective(built: Trainable, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns a loss that reaches everything that is learnt, and what it is made of."""
    latents, pre = built.encode_latents(x)
    x_hat = built.decode_latents(latents, x)
    dense = to_dense(latents)
    loss = x_hat.sin().sum() + 0.1 * dense.pow(2).sum()
    seen = {"latents": dense.detach(), "x_hat": x_hat.detach()}
    for method in ("gate", "fires"):
        if pre is not None and all(hasattr(part.coder.nonlinearity, method) for part in built.coders()):
            made = to_dense(built.pointwise(method, pre))
            weights = torch.linspace(-1, 1, built.dict_size, dtype=x.dtype)
            loss = loss + (made * weights).sum()
            seen[method] = made.detach()
    return loss, seen


def with_gradients(built: Trainable, x: Tensor, backend: str | None = "reference") -> dict[str, Tensor]:
    built, x = copy.deepcopy(built), x.clone().requires_grad_()
    with ops.use_backend(backend):
        loss, seen = objective(built, x)
        loss.backward()
    assert x.grad is not None
    gradients = {f"gradient of {name}": p.grad for name, p in built.named_parameters() if p.grad is not None}
    return {**seen, "gradient of x": x.grad, **gradients}


def test_every_wiring_and_class_is_tested():
    assert set(SHAPES) == set(WIRINGS)
    wirings = {type(wired(name, "relu")) for name in WIRINGS}
    assert wirings | {DICTIONARIES[name] for name in [*NAMED, "IdentityDict", "Normalized"]} == {
        DICTIONARIES[n] for n in DICTIONARIES
    }


@pytest.mark.parametrize("case", ANY, ids=str)
@pytest.mark.parametrize("lead", [(24,), (4, 6), (2, 3, 4), (0,), (2, 0), ()], ids=str)
def test_leading_dimensions_do_not_matter(case, lead):
    built = build(case)
    n = torch.Size(lead).numel()
    flat, x = X[:n], X[:n].view(*lead, 12)
    latents = built.encode(x)
    assert latents.shape == (*lead, built.dict_size)
    torch.testing.assert_close(latents.view(n, built.dict_size), built.encode(flat))
    x_hat = built(x)
    assert x_hat.shape == (*lead, built.output_dim) == decoded(built, latents, x).shape
    torch.testing.assert_close(x_hat.view(n, built.output_dim), built(flat))


@pytest.mark.parametrize("case", ANY, ids=str)
def test_all_ways_give_the_same(case):
    built = build(case)
    latents = built.encode(X)
    expected = decoded(built, latents, X)
    torch.testing.assert_close(built(X), expected)
    x_hat, shown = built(X, output_features=True)
    torch.testing.assert_close(x_hat, expected)
    if case == "AutoEncoderNew":
        latents = latents * built.decoder_norms()
    torch.testing.assert_close(shown, latents)
    whole = built.reconstruct(X)
    torch.testing.assert_close(whole.outputs, expected)
    torch.testing.assert_close(to_dense(whole.latents), built.encode(X))
    if whole.pre_activations is not None:
        assert isinstance(whole.pre_activations, SparseLatents) == isinstance(whole.latents, SparseLatents)


@pytest.mark.parametrize("case", [*PAIRS, *NAMED], ids=str)
def test_training_latents_are_those_of_inference(case):
    built = build(case)
    latents, _ = built.encode_latents(X)
    by_batch = any(c.coder.nonlinearity.__class__.__name__ == "BatchTopK" for c in built.coders())
    if by_batch:  # a threshold takes the place of the batch's cut
        assert (to_dense(latents) != 0).sum() == 24 * 3 * len(list(built.coders()))
        assert not torch.equal(to_dense(latents), built.encode(X))
    else:
        torch.testing.assert_close(to_dense(latents), built.encode(X))
    torch.testing.assert_close(built.decode_latents(latents, X), decoded(built, to_dense(latents), X))
    frozen = built.decode_latents(latents, X, frozen=True)
    assert torch.equal(frozen, built.decode_latents(latents, X))
    reached = torch.autograd.grad(frozen.sum(), [p for _, p in built.named_parameters()], allow_unused=True)
    written = [n for (n, _), g in zip(built.named_parameters(), reached, strict=True) if g is not None]
    tied = any(part.coder.is_tied for part in built.coders())
    assert tied or not any(n.endswith(("W_dec", "W_skip")) for n in written)


@pytest.mark.parametrize("density", ["many", "few", "mixed"])
@pytest.mark.parametrize("case", PAIRS, ids=str)
def test_backends_agree_in_values_and_every_gradient(case, density, monkeypatch):
    """With few latents the sparse forms are used; where only one of several parts has few, forms are mixed."""
    monkeypatch.setattr(chosen, "_DENSE_FROM", 1 / 8)  # of so few latents one is a large share
    built = build(case)
    with torch.no_grad():
        for part in list(built.coders())[: {"many": 0, "few": None, "mixed": 1}[density]]:
            nonlinearity = part.coder.nonlinearity
            for bias in (part.coder.b_enc, getattr(nonlinearity, "gate_bias", None)):
                if bias is not None:
                    bias.sub_(3)
                    bias[0] = 0.3  # one that is often on, and near its threshold where it is not
            if case[1] == "jump_relu":
                nonlinearity.threshold[0] = 0.1
    with ops.use_backend("sparse"):
        form = built.encode_latents(X)[0]
    if case[1] in OPTIONS:
        assert isinstance(form, SparseLatents) == (density != "many")
    expected = with_gradients(copy.deepcopy(built).double(), X.double())
    close(with_gradients(copy.deepcopy(built).double(), X.double(), "sparse"), expected, 1e-12)
    close(with_gradients(built, X, "sparse"), expected, 2e-5)  # float32 rounds at 6e-8 of each of some hundred terms


@pytest.mark.parametrize("case", [*PAIRS, *NAMED], ids=str)
def test_gradients_are_those_of_finite_differences_and_reach_every_parameter(case):
    built = build(case).double()
    found = with_gradients(built, X.double(), None)
    generator = torch.Generator().manual_seed(2)
    for name, p in built.named_parameters():
        gradient = found[f"gradient of {name}"]
        assert gradient.abs().sum() > 0, name
        if name.endswith("threshold") or "gate_bias" in name:
            continue  # estimated (tests/ops/test_straight_through.py); passes by the gate through the auxiliary loss only
        direction = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        losses = []
        with torch.no_grad():
            for step in (1e-6, -2e-6, 1e-6):
                p.add_(direction, alpha=step)
                losses.append(float(objective(built, X.double())[0]))
        slope = (losses[0] - losses[1]) / 2e-6
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("case", ANY, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_is_the_same_to_the_bit(case, dtype, tmp_path):
    built = build(case).to(dtype)
    loaded, _ = load_dictionary(save_dictionary(built, tmp_path / "d"))
    assert type(loaded) is type(built) and loaded.options() == built.options() and loaded.dtype == built.dtype
    for name, tensor in built.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor) and loaded.state_dict()[name].dtype == tensor.dtype
    assert torch.equal(loaded(X), built(X))
    if isinstance(built, Trainable):
        ours, theirs = (to_dense(d.encode_latents(X)[0]) for d in (built, loaded))
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("case", [*PAIRS, *NAMED], ids=str)
def test_scaling_turns_a_dictionary_of_scaled_activations_into_one_of_raw(case):
    built = build(case)
    x_hat, latents = built(X / 2.5, output_features=True)
    norms = built.decoder_norms()
    one_scale = any(part.coder.centered or part.coder.is_tied for part in built.coders())
    if one_scale:
        before = copy.deepcopy(built.state_dict())
        with pytest.raises(ConfigError, match="has one scale"):
            built.scale_(2.5, 0.7)
        assert all(torch.equal(before[name], tensor) for name, tensor in built.state_dict().items())
    outputs = 2.5 if one_scale else 0.7
    built.scale_(2.5, None if one_scale else outputs)
    again, scaled = built(X, output_features=True)
    torch.testing.assert_close(again, x_hat * outputs)
    torch.testing.assert_close(scaled, latents * (outputs if case == "AutoEncoderNew" else 2.5))
    torch.testing.assert_close(built.decoder_norms(), norms * outputs / 2.5)


@pytest.mark.parametrize("case", PAIRS, ids=str)
def test_thresholds_stay_float32(case):
    built = build(case)
    before = {name: t.clone() for name, t in built.state_dict().items()}
    built.to(torch.bfloat16)
    assert built.dtype == torch.bfloat16
    for name, tensor in built.state_dict().items():
        if name.endswith("threshold"):
            assert torch.equal(tensor, before[name])
        else:
            assert tensor.dtype == torch.bfloat16
    assert built(X).dtype == torch.float32 and built(X).isfinite().all()


@pytest.mark.parametrize("case", ANY, ids=str)
def test_a_copy_is_the_same_and_apart(case):
    built = build(case)
    other = copy.deepcopy(built)
    expected = built(X)
    assert torch.equal(other(X), expected)
    with torch.no_grad():
        for p in other.parameters():
            p.fill_(7.0)
    assert torch.equal(built(X), expected)


@pytest.mark.parametrize("case", ANY, ids=str)
def test_tokens_do_not_influence_each_other_at_inference(case):
    built = build(case)
    others = 30 * torch.randn(24, 12)
    others[5] = X[5]
    torch.testing.assert_close(built.encode(others)[5], built.encode(X)[5])
    torch.testing.assert_close(built(others)[5], built(X)[5])


@pytest.mark.parametrize("case", PAIRS, ids=str)
def test_an_empty_batch_has_zero_gradients(case):
    built = build(case)
    objective(built, X[:0])[0].backward()
    assert next(built.coders()).coder.W_dec.grad is not None
    assert all(p.grad is None or not p.grad.count_nonzero() for p in built.parameters())


@pytest.mark.parametrize("wiring", list(WIRINGS))
@pytest.mark.parametrize("name", SELECTING)
def test_more_latents_than_there_are_cannot_be_kept(wiring, name):
    shape = SHAPES[wiring]
    with pytest.raises(ConfigError, match=r"cannot keep k=41 of dict_size|has one matrix for both"):
        WIRINGS[wiring].build(shape, NONLINEARITIES[name](k=41), None)


@pytest.mark.parametrize("wiring", list(WIRINGS))
def test_batch_top_k_without_a_threshold_is_never_dense(wiring):
    built = WIRINGS[wiring].build(SHAPES[wiring], kind("batch_top_k"), None)
    for attempt in (built.encode, built, built.reconstruct):
        with pytest.raises(ConfigError, match="no learnt threshold"):
            attempt(X)
    assert (to_dense(built.encode_latents(X)[0]) != 0).sum() <= 24 * 3 * len(list(built.coders()))


@pytest.mark.parametrize("lead", [(24,), (4, 6), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("name", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_batch_top_k_keeps_k_for_each_token_of_all_dimensions(name, lead):
    built = build(name)
    norms = built.decoder_norms() if built.rank_by_norm else torch.ones(40)
    latents = built.encode(X.view(*lead, 12), use_threshold=False)
    ranks = (built.pre_activations(X).relu() * norms).flatten()
    cut = ranks.sort(descending=True).values[24 * 3 - 1]
    expected = built.pre_activations(X).flatten() * (ranks >= cut)
    torch.testing.assert_close(latents.flatten(), expected)
    assert (latents > 0).sum() == 24 * 3


def kept_by_loops(name: str, pre: Tensor, k: int) -> Tensor:
    """Returns a mask of the latents that a nonlinearity keeps, found one by one."""
    mask = torch.zeros_like(pre, dtype=torch.bool)
    order = sorted(((float(v), n, i) for n, row in enumerate(pre) for i, v in enumerate(row)), reverse=True)
    if name == "batch_top_k":
        for _, n, i in order[: k * len(pre)]:
            mask[n, i] = True
    for n, row in enumerate(pre):
        if name in ("top_k", "abs_top_k"):
            sizes = row.abs() if name == "abs_top_k" else row
            for i in sorted(range(len(row)), key=lambda i, sizes=sizes: -float(sizes[i]))[:k]:
                mask[n, i] = True
        if name == "group_max":
            start = 0
            for group in range(k):
                stop = start + len(row) // k + (group < len(row) % k)
                mask[n, max(range(start, stop), key=lambda i, row=row: float(row[i]))] = True
                start = stop
            assert start == len(row)
    return mask if name == "abs_top_k" else mask & (pre > 0)


@pytest.mark.parametrize("backend", ["reference", "sparse"])
@pytest.mark.parametrize("ranked", [False, True])
@pytest.mark.parametrize("k", [1, 3, 7, 39, 40])
@pytest.mark.parametrize("name", ["top_k", "batch_top_k", "group_max", "abs_top_k"])
def test_what_is_kept_is_found_by_loops(name, k, ranked, backend):
    """The values and gradients are those of plain pre-activations, whatever they are ranked by."""
    built = moved(WIRINGS["crosscoder"].build(SHAPES["crosscoder"], NONLINEARITIES[name](k), None, rank_by_norm=ranked))
    built = built.double()
    norms = sum(d.norm(dim=1) for d in built.site_decoders) if ranked else torch.ones(40)
    pre = built.pre_activations(X[:6].double())
    mask = kept_by_loops(name, (pre * norms).detach(), k)
    with ops.use_backend(backend):
        latents = to_dense(built.encode_latents(X[:6].double())[0])
    torch.testing.assert_close(latents, pre * mask)
    weights = torch.randn_like(pre)
    wanted = [built.W_enc, built.b_enc]
    got, expected = (torch.autograd.grad((v * weights).sum(), wanted) for v in (latents, pre * mask))
    torch.testing.assert_close(got, expected)
    if name == "abs_top_k" and k > 1:
        assert (latents < 0).any() and (latents > 0).any()


@pytest.mark.parametrize(("k", "dict_size"), [(1, 7), (3, 7), (6, 7), (7, 7), (4, 10), (5, 40)])
def test_group_max_takes_any_number_of_groups(k, dict_size):
    nonlinearity = NONLINEARITIES["group_max"](k)
    nonlinearity.setup(dict_size)
    pre = torch.randn(2, 4, dict_size)
    expected = pre * kept_by_loops("group_max", pre.view(8, -1), k).view_as(pre)
    assert torch.equal(nonlinearity(pre), expected)


@pytest.mark.parametrize("name", ["top_k", "batch_top_k", "group_max", "abs_top_k"])
def test_latents_that_write_nothing_yet_are_ranked_as_they_are(name):
    plain, ranked = (wired("transcoder", name, rank_by_norm=ranked) for ranked in (False, True))
    ranked.load_state_dict(plain.state_dict())
    ranked.W_dec.data.zero_()
    ours, theirs = (to_dense(d.encode_latents(X)[0]) for d in (plain, ranked))
    torch.testing.assert_close(ours, theirs)
    assert ranked(X).isfinite().all()


@pytest.mark.parametrize("n_tokens", [4, 24])  # with products of rows with each other, or without
@pytest.mark.parametrize("k", [1, 3, 20])
@pytest.mark.parametrize("wiring", ["autoencoder", "crosscoder"])
def test_matching_pursuit_is_what_a_loop_finds(wiring, k, n_tokens):
    built = moved(WIRINGS[wiring].build(SHAPES[wiring], MatchingPursuit(k), None)).double()
    D, x = built.W_dec, X[:n_tokens].double()
    rows = []
    for token in x:
        rest = token - built.b_dec if built.centered else token
        taken, latents = [], torch.zeros(40, dtype=torch.float64)
        for _ in range(k):
            i = max((i for i in range(40) if i not in taken), key=lambda i, rest=rest: float((rest @ D[i]).detach()))
            value = (rest @ D[i]).relu()
            latents = latents + value * torch.nn.functional.one_hot(torch.tensor(i), 40)
            rest = rest - value * D[i]
            taken.append(i)
        rows.append(latents)
    expected, got = torch.stack(rows), built.encode(x)
    torch.testing.assert_close(got, expected)
    weights = torch.randn_like(got)
    ours, theirs = (torch.autograd.grad((v * weights).sum(), D)[0] for v in (got, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", [n for n in KINDS if n != "matching_pursuit"])
def test_cross_layer_transcoder_is_a_double_loop(name):
    built = moved(WIRINGS["cross_layer_transcoder"].build(Shape((4, 6, 2), (3, 5, 4), 36), kind(name), None))
    latents = built.encode(X).split(12, dim=1)
    starts = [0, 3, 8, 12]
    for layer in range(3):
        expected = built.b_dec[starts[layer] : starts[layer + 1]].expand(24, -1)
        for source in range(layer + 1):
            first = starts[layer] - starts[source]
            width = starts[layer + 1] - starts[layer]
            expected = expected + latents[source] @ built.parts[source].W_dec[:, first : first + width]
        torch.testing.assert_close(built(X)[:, starts[layer] : starts[layer + 1]], expected)
    sources = torch.autograd.grad(built(X)[:, :3].sum(), built.parts[1].W_dec, allow_unused=True)
    assert sources[0].count_nonzero() == 0  # no layer writes what comes before it


@pytest.mark.parametrize("name", KINDS)
def test_heads_are_separate_autoencoders(name):
    built = wired("heads", name)
    for head in range(2):
        alone = WIRINGS["autoencoder"].build(Shape((6,), (6,), 20), kind(name), None)
        alone.load_state_dict(built.parts[head].state_dict())
        own = slice(6 * head, 6 * head + 6)
        torch.testing.assert_close(built(X)[:, own], alone(X[:, own]))
        torch.testing.assert_close(built.encode(X)[:, 20 * head : 20 * head + 20], alone.encode(X[:, own]))
        torch.testing.assert_close(built.decoder_norms()[20 * head : 20 * head + 20], alone.decoder_norms())


def test_skip_transcoder_needs_what_it_read():
    built = wired("skip_transcoder", "relu")
    latents = built.encode(X)
    with pytest.raises(ConfigError, match="give x too"):
        built.decode(latents)
    expected = latents @ built.W_dec + built.b_dec + X @ built.W_skip.T
    torch.testing.assert_close(built.decode(latents, X), expected)
    torch.testing.assert_close(built(X), expected)


def test_crosscoder_norms_are_summed_over_sites():
    built = wired("crosscoder", "relu")
    expected = built.W_dec[:, :7].norm(dim=1) + built.W_dec[:, 7:].norm(dim=1)
    torch.testing.assert_close(built.decoder_norms(), expected)


@pytest.mark.parametrize("wiring", list(WIRINGS))
def test_decode_among_takes_the_largest_of_the_candidates(wiring):
    built = wired(wiring, "relu")
    candidates = torch.tensor([1, 3, 8, 17, 19, 20, 22, 31, 39])
    pre = built.pre_activations(X)
    share = 4 // (len(built.parts) if isinstance(built, Blocks) else 1)
    expected = torch.zeros(24, built.output_dim)
    for part in built.coders():
        own = [int(i) for i in candidates if part.latents.start <= i < part.latents.stop]
        values, order = pre[:, own].relu().topk(share)
        for n in range(24):
            for value, place in zip(values[n], order[n], strict=True):
                row = part.coder.W_dec[own[int(place)] - part.latents.start]
                expected[n, part.writes] += value * row
    torch.testing.assert_close(built.decode_among(X, candidates, 4), expected)


class TestMatryoshka:
    @pytest.fixture
    def trainer(self):
        config = {"activation_dim": 12, "dict_size": 40, "k": 3, "steps": 10, "device": "cpu"}
        built = TRAINERS["matryoshka_batch_top_k"](**config, group_fractions=(0.1, 0.2, 0.7))
        moved(built.dictionary).double()
        return built

    def test_prefixes_are_as_many_dense_decodes(self, trainer):
        dictionary = trainer.dictionary
        latents, _ = dictionary.encode_latents(X.double())
        assert trainer.group_sizes == [4, 8, 28]
        got = trainer.decode_prefixes(latents)
        expected = [to_dense(latents)[:, :end] @ dictionary.W_dec[:end] for end in (4, 12, 40)]
        torch.testing.assert_close(list(got), expected)
        weights = [torch.randn_like(prefix) for prefix in got]
        wanted = [dictionary.W_enc, dictionary.W_dec, dictionary.b_enc, dictionary.b_dec]
        ours, theirs = (
            torch.autograd.grad(
                sum((w * p.sin()).sum() for w, p in zip(weights, prefixes, strict=True)), wanted, retain_graph=True
            )
            for prefixes in (got, expected)
        )
        torch.testing.assert_close(ours, theirs)

    def test_fewer_groups_are_a_smaller_dictionary(self):
        built = build("MatryoshkaBatchTopKSAE")
        whole = built.encode(X)
        built.active_groups = 1
        assert torch.equal(built.encode(X)[:, :10], whole[:, :10]) and not built.encode(X)[:, 10:].any()
        expected = whole[:, :10] @ built.W_dec[:10] + built.b_dec
        torch.testing.assert_close(built(X), expected)
        torch.testing.assert_close(built.decode(whole), expected)
