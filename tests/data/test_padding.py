import pytest
import torch

from dictionary_learning import load_model
from dictionary_learning.activations._filters import TokenFilter
from dictionary_learning.data import TokenStream, as_source
from tests import tiny

BOS, EOS, PAD = 0, 1, 2
DOCUMENTS = ["w1 w2 w3 w4 w5", "w6", "w7 w8 w9"]


def framing_tokenizer():
    """Returns a tokenizer that puts BOS before each text by itself, as Llama's does."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer


def padded(documents=DOCUMENTS, tokenizer=None, ctx_len=8, **options) -> TokenStream:
    return TokenStream(as_source(documents), tokenizer or tiny.tokenizer(), ctx_len=ctx_len, pack=False, **options)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_activations_do_not_depend_on_padding(family):
    model = load_model(tiny.model(family), tokenizer=tiny.tokenizer())
    sites = model.sites([tiny.LAYER[family]])
    alone = [model.capture(*padded([d], model.tokenizer).take(1), sites)[sites[0]][0] for d in DOCUMENTS]
    for side in ("left", "right"):
        batch = padded(tokenizer=model.tokenizer, padding_side=side).take(3)
        together = model.capture(*batch, sites)[sites[0]]
        for x, mask, expected in zip(together, batch.attention_mask, alone, strict=True):
            # only the order of sums differs, in a model with weights 8 times the usual
            torch.testing.assert_close(x[mask], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_position_ids_count_real_tokens(side):
    batch = padded(padding_side=side).take(3)
    for ids, mask in zip(batch.position_ids, batch.attention_mask, strict=True):
        assert ids[mask].tolist() == list(range(int(mask.sum())))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("bos", ["document", "context", "both"])
def test_bos_is_in_every_padded_context_when_it_is_asked_for(bos, side):
    batch = padded(bos=bos, padding_side=side).take(3)
    assert [ids[mask][0].item() for ids, mask in zip(*batch, strict=True)] == [BOS] * 3
    assert (batch.input_ids == BOS).sum() == 3
    assert batch.position[batch.input_ids == BOS].tolist() == [-1] * 3


def test_bos_is_in_no_padded_context_when_none_is_asked_for():
    batch = padded(bos="none", tokenizer=framing_tokenizer()).take(3)
    assert not ((batch.input_ids == BOS) | (batch.input_ids == EOS)).any()


@pytest.mark.parametrize("bos", [None, "both"])
def test_bos_that_the_text_and_the_tokenizer_both_write_stands_once(bos):
    batch = padded(["<s> w1", "w2"], tokenizer=framing_tokenizer(), bos=bos).take(2)
    assert (batch.input_ids == BOS).sum(-1).tolist() == [1, 1]


def test_what_the_tokenizer_puts_in_counts_as_special():
    tokens = padded(tokenizer=framing_tokenizer())
    assert set(tokens.special_ids) == {BOS, EOS}
    assert tokens.take(1).position.tolist() == [[-1, 0, 1, 2, 3, 4, -1]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_filter_by_id_drops_bos_on_either_side(side):
    tokens = padded(bos="both", padding_side=side)
    batch = tokens.take(3)
    kept = TokenFilter(exclude_ids=tokens.special_ids).token_mask(batch)
    assert BOS not in batch.input_ids[kept]
    assert kept.sum() == 9


def test_cut_documents_are_counted_and_said(caplog):
    tokens = padded(["w1 " * 12, "w2 " * 9, "w3"])
    assert tokens.take(3).input_ids.shape == (3, 8)
    assert tokens.n_tokens_cut == 5
    tokens.restart()
    tokens.take(3)
    assert tokens.n_tokens_cut == 10
    assert caplog.text.count("are longer than ctx_len=8 tokens and are cut") == 1


@pytest.mark.parametrize("bos", ["none", "both"])
def test_split_documents_lose_nothing(bos):
    words = [f"w{n}" for n in range(1, 30)]
    tokens = padded([" ".join(words), "w40"], bos=bos, long_documents="split")
    batch = tokens.take(10)
    assert tokens.n_tokens_cut == 0
    text = batch.input_ids[batch.position >= 0]
    assert text.tolist() == [*range(4, 33), 43]
    assert batch.position[batch.document == 0].tolist().count(-1) == (0 if bos == "none" else 5)
    assert batch.position[(batch.document == 0) & (batch.position >= 0)].tolist() == list(range(29))
    if bos == "both":
        assert (batch.input_ids[:, 0] == BOS).all()


def test_token_ids_are_padded_as_text_is():
    ids = [[int(word[1:]) + 3 for word in document.split()] for document in DOCUMENTS]
    a, b = padded(ids).take(3), padded().take(3)
    assert torch.equal(a.input_ids, b.input_ids)
    assert torch.equal(a.position, b.position)


def test_text_needs_a_tokenizer_and_token_ids_do_not():
    batch = TokenStream(as_source([[5, 6, 7], [8, 9]]), None, ctx_len=4).take(2)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8], [9, 0, 0, 0]]
    assert batch.attention_mask.tolist() == [[True] * 4, [True, False, False, False]]
