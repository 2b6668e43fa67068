import pytest
import torch

from dictionary_learning.data import TokenStream, as_text_source
from dictionary_learning.errors import ConfigError, DataError
from tests import tiny

DOCUMENTS = tiny.documents(30)


def stream(documents=DOCUMENTS, ctx_len=16, **options) -> TokenStream:
    tokenizer = options.pop("tokenizer", None) or tiny.tokenizer(bos=options.pop("bos", True))
    return TokenStream(as_text_source(documents), tokenizer, ctx_len=ctx_len, **options)


def text_tokens(documents=DOCUMENTS) -> list[int]:
    return [int(word[1:]) + 3 for document in documents for word in document.split()]


def test_packing_serves_every_token_exactly_once():
    batches = list(stream().batches(4))
    served = torch.cat([b.input_ids[b.attention_mask] for b in batches]).tolist()
    assert [i for i in served if i > 2] == text_tokens()


def test_packed_contexts_are_full_but_the_last():
    batches = list(stream().batches(4))
    masks = torch.cat([b.attention_mask for b in batches])
    assert masks[:-1].all()
    assert masks[-1].any()
    assert not (~masks[-1]).cumsum(0)[masks[-1]].any()  # padding only behind


def test_each_document_and_context_begins_with_one_bos():
    ids = torch.cat([b.input_ids for b in stream().batches(4)])
    assert (ids[:, 0] == 0).all()
    assert not ((ids[:, 1:] == 0) & (ids[:, :-1] == 0)).any()


def test_without_bos_documents_end_with_eos():
    tokens = stream(bos=False)
    batches = list(tokens.batches(4))
    served = torch.cat([b.input_ids[b.attention_mask] for b in batches]).tolist()
    assert served.count(1) == len(DOCUMENTS)
    assert 0 not in served
    assert tokens.special_ids == (1,)


def test_without_special_tokens_there_is_only_text():
    batches = list(stream(add_special_tokens=False).batches(4))
    assert torch.cat([b.input_ids[b.attention_mask] for b in batches]).tolist() == text_tokens()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_on_the_tokenizers_side(side):
    batch = stream(["w1 w2 w3", "w4"], pack=False, tokenizer=tiny.tokenizer(padding_side=side)).take(2)
    assert batch is not None
    expected = [[4, 5, 6], [2, 2, 7]] if side == "left" else [[4, 5, 6], [7, 2, 2]]
    assert batch.input_ids.tolist() == expected
    assert batch.attention_mask.tolist() == (batch.input_ids != 2).tolist()


def test_padded_documents_are_cut():
    batch = stream([" ".join(["w1"] * 50)], pack=False, ctx_len=8).take(1)
    assert batch is not None
    assert batch.input_ids.shape == (1, 8)


@pytest.mark.parametrize("pack", [True, False])
def test_stream_resumes_where_it_was(pack):
    whole = stream(pack=pack)
    for _ in range(3):
        whole.take(2)
    resumed = stream(pack=pack)
    resumed.load_state_dict(whole.state_dict())
    for a, b in zip(whole.batches(2), resumed.batches(2), strict=True):
        assert torch.equal(a.input_ids, b.input_ids)
        assert torch.equal(a.attention_mask, b.attention_mask)


def test_bad_arguments_are_refused():
    with pytest.raises(ConfigError, match="at least 2 tokens"):
        stream(ctx_len=1)
    with pytest.raises(DataError, match="no tokenizer"):
        TokenStream(as_text_source(DOCUMENTS), None, ctx_len=8)
