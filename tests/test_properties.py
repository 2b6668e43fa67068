"""What holds for every site, text, place in a stream and shape: on examples that hypothesis draws."""

import itertools

import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from dictionary_learning import ActivationBuffer, load_dictionary, load_model
from dictionary_learning.data import TokenStream, as_source
from dictionary_learning.dictionaries import AutoEncoder, AutoEncoderTopK, BatchTopKSAE, JumpReluAutoEncoder
from dictionary_learning.interop import write_dictionary
from dictionary_learning.sites import Site
from tests import tiny

few = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
MODEL = load_model(tiny.model(), tokenizer=tiny.tokenizer())
NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,6}|[0-9]{1,2}", fullmatch=True)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(".".join)
DOCUMENTS = st.lists(st.lists(st.integers(5, 95), min_size=1, max_size=40), min_size=1, max_size=12)


@few
@given(path=PATHS, side=st.sampled_from(["in", "out"]), index=st.integers(0, 9), call=st.none() | st.integers(0, 3))
def test_a_site_is_what_its_name_says(path, side, index, call):
    site = Site(path, side, index=index, call=call)
    assert Site.parse(str(site)) == site and hash(Site.parse(str(site))) == hash(site)


def taken(stream, n=3):
    """Returns the batches that are left."""
    return list(iter(lambda: stream.take(n), None))


def stream_of(documents, ctx_len, pack, long_documents):
    options = {"ctx_len": ctx_len, "pack": pack, "add_special_tokens": False, "long_documents": long_documents}
    return TokenStream(as_source(documents), None, **options)


@few
@given(documents=DOCUMENTS, ctx_len=st.integers(2, 17), pack=st.booleans())
def test_every_token_of_a_text_is_once_in_its_contexts(documents, ctx_len, pack):
    batches = taken(stream_of(documents, ctx_len, pack, "cut" if pack else "split"))
    found = [
        (int(document), int(position), int(token))
        for batch in batches
        for document, position, token, real in zip(
            batch.document.flatten(), batch.position.flatten(), batch.input_ids.flatten(),
            batch.attention_mask.flatten(), strict=True,
        )
        if real and document >= 0
    ]  # fmt: skip
    told = [(d, p, token) for d, document in enumerate(documents) for p, token in enumerate(document)]
    assert len(set(found)) == len(found)
    missing = set(told) - set(found)
    # the end of a packed text that fills no context is left out
    assert set(found) <= set(told) and (not missing or (pack and len(missing) < ctx_len))
    assert all(batch.input_ids.shape[1] <= ctx_len for batch in batches)


@few
@given(documents=DOCUMENTS, ctx_len=st.integers(2, 17), pack=st.booleans(), n=st.integers(0, 8))
def test_a_stream_goes_on_from_any_place(documents, ctx_len, pack, n):
    one, other = (stream_of(documents, ctx_len, pack, "cut") for _ in range(2))
    for _ in range(n):
        one.take(2)
    other.load_state_dict(one.state_dict())
    for a, b in itertools.zip_longest(taken(one), taken(other)):
        assert torch.equal(a.input_ids, b.input_ids) and torch.equal(a.document, b.document)


@settings(few, max_examples=8)
@given(n=st.integers(0, 12), batch=st.integers(1, 40), n_ctxs=st.integers(4, 12), seed=st.integers(0, 3))
def test_a_buffer_goes_on_from_any_batch(n, batch, n_ctxs, seed):
    def buffer():
        options = {"n_ctxs": n_ctxs, "ctx_len": 10, "refresh_batch_size": 2, "out_batch_size": batch, "seed": seed}
        return ActivationBuffer(tiny.documents(8), MODEL, "model.layers.0", **options)

    one, other = buffer(), buffer()
    list(itertools.islice(one, n))
    other.load_state_dict(one.state_dict())
    for a, b in itertools.zip_longest(one, other):
        assert torch.equal(a, b)


CLASSES = {
    "relu": (lambda d, f, k: AutoEncoder(d, f), ("own", "dictionary_learning", "sae_lens")),
    "top_k": (AutoEncoderTopK, ("own", "dictionary_learning", "sae_lens", "sparsify")),
    "batch_top_k": (BatchTopKSAE, ("own", "dictionary_learning")),
    "jump_relu": (lambda d, f, k: JumpReluAutoEncoder(d, f, 0.1), ("own", "dictionary_learning", "sae_lens")),
}


@few
@given(
    kind=st.sampled_from(sorted(CLASSES)), dim=st.integers(1, 9), dict_size=st.integers(1, 30), k=st.integers(1, 9),
    seed=st.integers(0, 9), data=st.data(),
)  # fmt: skip
def test_a_dictionary_of_any_shape_survives_every_format(tmp_path_factory, kind, dim, dict_size, k, seed, data):
    build, formats = CLASSES[kind]
    torch.manual_seed(seed)
    dictionary = build(dim, dict_size, min(k, dict_size)).requires_grad_(False)
    for name, tensor in dictionary.state_dict().items():
        if name.endswith("threshold"):
            tensor.fill_(0.1)  # as training finds one
    to = data.draw(st.sampled_from(formats))
    again = load_dictionary(write_dictionary(dictionary, tmp_path_factory.mktemp("d") / "d", to))
    x = torch.randn(5, dim)
    assert torch.equal(again.encode(x), dictionary.encode(x)) and torch.equal(again(x), dictionary(x))
