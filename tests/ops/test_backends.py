"""Which backend is used, and how a user adds one."""

import pytest
import torch

from dictionary_learning import ops
from dictionary_learning.errors import UnknownNameError
from tests.ops.test_ops import encode


def test_backend_is_chosen_by_name_and_by_variable(monkeypatch):
    """At any time, also for an encoder whose backend was asked for before."""
    encoder = ops.Encoder(torch.ones(9, 2), torch.zeros(9))
    chosen = encoder.backend
    assert chosen is encoder.backend and not isinstance(chosen, ops.ReferenceBackend)
    with ops.use_backend("reference"):
        assert isinstance(encoder.backend, ops.ReferenceBackend)
        with ops.use_backend(None):
            assert encoder.backend is chosen
    monkeypatch.setenv("DICTIONARY_LEARNING_BACKEND", "reference")
    assert isinstance(encoder.backend, ops.ReferenceBackend)
    assert ops.status(torch.device("cpu"))["encode and decode"].startswith("reference, as forced by")
    monkeypatch.setenv("DICTIONARY_LEARNING_BACKEND", "fast")
    with pytest.raises(UnknownNameError, match="Unknown backend 'fast'"):
        encode("top_k", torch.ones(1, 2), *encoder[:2], 1)
    with pytest.raises(UnknownNameError), ops.use_backend("nothing"):
        pass


def test_status_says_why_a_backend_is_not_used():
    there, elsewhere = ops.status(torch.device("cpu")), ops.status(torch.device("mps"))
    assert there["encode and decode"] == ("numba" if ops._numba.IS_INSTALLED else "sparse")
    assert any(words in there["backend sparse"] for words in ("ranked again in float32", "are not faster"))
    assert elsewhere["encode and decode"] == "reference"
    assert elsewhere["backend sparse"].startswith("not used: made for")


def test_a_backend_of_a_user_is_used_where_it_supports_the_device(monkeypatch):
    monkeypatch.setattr(ops._backend, "_backends", dict(ops._backend._backends))
    seen = []

    class Watching(ops.ReferenceBackend):
        def supports(self, device_type, dtype):
            return device_type == "cpu" and dtype != torch.float64

        def top_k(self, x, encoder, k):
            seen.append(k)
            return super().top_k(x, encoder, k)

    ops.register_backend("watching", Watching())
    from dictionary_learning.dictionaries import AutoEncoderTopK

    dictionary = AutoEncoderTopK(6, 40, 3)
    x_hat = dictionary(torch.randn(5, 6))
    assert seen == [3] and ops.status(torch.device("cpu"))["encode and decode"] == "watching"
    dictionary.double()(torch.randn(5, 6).double())
    with ops.use_backend("sparse"):
        dictionary.float()(torch.randn(5, 6))
    assert seen == [3] and x_hat.shape == (5, 6)
    ops._backend._choose_backend.cache_clear()
