"""Slices of dictionaries that each rank builds for itself: the rows that one process would have."""

import pytest
import torch

from dictionary_learning.dictionaries import WIRINGS, DictionaryShape, _initialization
from dictionary_learning.dictionaries._initialization import bounds, building_slices, set_decoder_, unit_rows
from dictionary_learning.dictionaries._latent_shares import hold_latents_
from dictionary_learning.dictionaries.nonlinearities import JumpReLU, TopK
from tests.parallel.threads import Threads


def generator(seed=3):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("rows", "columns"), [(70, 5), (64, 16), (33, 1), (16, 3), (7, 2), (200, 7)])
@pytest.mark.parametrize("chunk", [1, 100, 1 << 24])
def test_rows_drawn_in_chunks_are_those_of_one_draw(rows, columns, chunk, monkeypatch):
    monkeypatch.setattr(_initialization, "_CHUNK", chunk)
    whole, drawn = generator(), unit_rows(rows, columns, generator())
    unit_rows(rows, columns, whole)
    for number in range(3):
        own, part = bounds(rows, number, 3), generator()
        assert torch.equal(unit_rows(rows, columns, part, own), drawn[slice(*own)])
        assert torch.equal(part.get_state(), whole.get_state())  # what is drawn next is the same, too


@pytest.mark.parametrize("width", [4, 7])
def test_orthogonal_rows_are_those_of_one_draw(width):
    whole = torch.empty(30, width).normal_(generator=generator())
    wanted, norm = whole.clone(), 0.5
    set_decoder_(wanted, norm=norm, orthogonal=True, generator=generator())
    for number in range(4):
        start, stop = bounds(30, number, 4)
        part = whole[start:stop].clone()
        set_decoder_(part, norm=norm, orthogonal=True, generator=generator(), first=start, whole=30)
        torch.testing.assert_close(part, wanted[start:stop], rtol=0, atol=0)


@pytest.mark.parametrize("nonlinearity", [TopK(3), JumpReLU()])
@pytest.mark.parametrize("wiring", list(WIRINGS))
def test_a_slice_is_built_as_it_would_be_cut_out(wiring, nonlinearity):
    shape = DictionaryShape((8, 8), (8, 8), 48, 2)
    tables = {}
    for number in range(3):
        ranks = Threads((0, 1, 2), number, tables)
        cut = WIRINGS[wiring].build(shape, type(nonlinearity)(**nonlinearity.options()), generator())
        hold_latents_(cut, ranks)
        with building_slices(ranks):
            built = WIRINGS[wiring].build(shape, type(nonlinearity)(**nonlinearity.options()), generator())
        hold_latents_(built, ranks)  # changes nothing
        assert built.dict_size == cut.dict_size == 16
        for (name, one), (_, other) in zip(built.state_dict().items(), cut.state_dict().items(), strict=True):
            assert torch.equal(one, other), name
        places = [[(p.coder.dict_size, p.coder.first_latent) for p in each.coders()] for each in (built, cut)]
        assert places[0] == places[1]
    assert WIRINGS[wiring].build(shape, TopK(3), generator()).dict_size == 48  # outside of the block
