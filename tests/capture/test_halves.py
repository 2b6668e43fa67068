"""A long pass over text is captured in two halves, and gives what the whole gives."""

import threading

import pytest
import torch

from dictionary_learning import load_model
from dictionary_learning.capture import _halves
from dictionary_learning.errors import SiteError
from tests import tiny


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    monkeypatch.setattr(_halves, "LEAST_WORK", 0)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def divided(monkeypatch):
    """Collects the numbers of examples that were captured beside each other."""
    found, original = [], _halves.side_by_side

    def counted(calls):
        found.append([call.args[1].n_examples for call in calls])
        return original(calls)

    monkeypatch.setattr(_halves, "side_by_side", counted)
    return found


def texts(n=5, ctx=7):
    return torch.randint(3, tiny.VOCAB, (n, ctx), generator=torch.Generator().manual_seed(0))


def whole(model, *arguments):
    torch.set_num_threads(1)
    try:
        return model.capture(*arguments)
    finally:
        torch.set_num_threads(2)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_halves_give_what_the_whole_gives(family, divided):
    model, ids, sites = load_model(tiny.model(family)), texts(), None
    expected = whole(model, ids, None, sites)
    assert not divided
    for _ in range(3):
        found = model.capture(ids, None, sites)
        assert list(found) == list(expected)
        for site, x in found.items():
            torch.testing.assert_close(x, expected[site], rtol=0, atol=2e-6)
    assert divided == [[2, 3]] * 3


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_divided_with_its_texts(side, divided):
    model, ids = load_model(tiny.model()), texts(4)
    mask = torch.ones_like(ids)
    mask[2, slice(0, 3) if side == "left" else slice(4, None)] = 0
    expected, found = whole(model, ids, mask), model.capture(ids, mask)
    assert divided == [[2, 2]]
    for site, x in found.items():
        torch.testing.assert_close(x[mask.bool()], expected[site][mask.bool()], rtol=0, atol=2e-6)


def test_a_changed_model_is_followed(divided):
    hf = tiny.model()
    model, ids = load_model(hf), texts()
    before = model.capture(ids)
    with torch.no_grad():
        hf.model.layers[0].mlp.down_proj.weight.mul_(3)  # inside the tensors
    hf.model.layers[1].mlp = tiny.model(seed=1).model.layers[1].mlp  # in the structure
    expected, found = whole(model, ids), model.capture(ids)
    assert len(divided) == 2
    for site, x in found.items():
        torch.testing.assert_close(x, expected[site], rtol=0, atol=2e-6)
        assert not torch.allclose(x, before[site])


def test_what_a_hook_or_another_thread_might_see_is_whole(divided):
    model = load_model(tiny.model())
    ids = texts()
    thread = threading.Thread(target=model.capture, args=(ids,))
    thread.start(), thread.join()
    model.capture(ids[:1])
    seen, hooked = [], tiny.model()
    hooked.model.layers[0].register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    load_model(hooked).capture(ids)
    assert len(ids) in seen
    assert not divided


def test_an_error_is_raised_and_the_threads_are_as_before(monkeypatch):
    model, ids = load_model(tiny.model()), texts()
    model.capture(ids)
    for tracer in (model._collector._tracer, model._collector._second):
        with monkeypatch.context() as patch:

            def fails(*_):
                raise SiteError("not reached")

            patch.setattr(tracer, "collect", fails)
            with pytest.raises(SiteError, match="not reached"):
                model.capture(ids)
        assert torch.get_num_threads() == 2
    model.capture(ids)
