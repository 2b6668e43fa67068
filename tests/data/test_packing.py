import itertools
import json
import logging

import numpy as np
import pytest
import torch

from dictionary_learning.data import TokenStream, as_source, pretokenize
from dictionary_learning.errors import ConfigError, DataError
from tests import tiny

DOCUMENTS = tiny.documents(30)
IDS = [[int(word[1:]) + 3 for word in document.split()] for document in DOCUMENTS]
BOS, EOS, PAD = 0, 1, 2
POLICIES = ["document", "context", "both", "none", None]


def stream(data=DOCUMENTS, ctx_len=16, **options) -> TokenStream:
    tokenizer = options.pop("tokenizer", None) or tiny.tokenizer(bos=options.pop("has_bos", True))
    source = data if hasattr(data, "hold_out") else as_source(data)
    return TokenStream(source, tokenizer, ctx_len=ctx_len, **options)


def served(tokens: TokenStream, n: int = 4) -> list[list[int]]:
    """Returns the contexts without padding."""
    return [ids[mask].tolist() for b in tokens.batches(n) for ids, mask in zip(*b, strict=True)]


def brute_force(documents: list[list[int]], ctx_len: int, at_document: bool, at_context: bool, separator: int | None):
    """Returns the contexts of documents, token by token."""
    line: list[int] = []
    for ids in documents:
        line += [BOS] * at_document + ids + ([separator] if separator is not None else [])
    contexts: list[list[int]] = []
    while line:
        lead = [BOS] if at_context and line[0] != BOS else []
        room = ctx_len - len(lead)
        contexts.append(lead + line[:room])
        line = line[room:]
    return contexts


@pytest.mark.parametrize("separator", [None, "eos", 7])
@pytest.mark.parametrize("bos", POLICIES)
def test_bos_and_separators_stand_where_they_are_asked_for(bos, separator):
    asked = EOS if separator == "eos" else separator
    wanted = brute_force(IDS, 16, bos in ("document", "both", None), bos in ("context", "both", None), asked)
    tokens = stream(bos=bos, separator=separator)
    assert served(tokens) == wanted
    assert set(tokens.special_ids) == {*([] if bos == "none" else [BOS]), *([] if asked is None else [asked])}


def test_documents_without_bos_end_with_eos_unless_nothing_is_put_in():
    assert served(stream(bos="none")) == brute_force(IDS, 16, False, False, EOS)
    assert served(stream(bos="context")) == brute_force(IDS, 16, False, True, EOS)
    assert served(stream(has_bos=False)) == brute_force(IDS, 16, False, False, EOS)
    assert served(stream(add_special_tokens=False)) == brute_force(IDS, 16, False, False, None)


def test_bos_of_a_tokenizer_without_one_is_refused():
    with pytest.raises(ConfigError, match="the tokenizer has no BOS token"):
        stream(has_bos=False, bos="both")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bos": "both", "add_special_tokens": False}, "leave one of them out"),
        ({"separator": "</none>"}, "which the tokenizer does not have"),
        ({"separator": "eos", "pack": False}, "only packed documents are separated"),
        ({"epochs": 0}, "Got epochs=0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        stream(**options)


def test_bos_and_separators_that_the_text_brings_are_not_doubled():
    documents = ["<s> w1 w2", "w3 </s>", "w4"]
    assert served(stream(documents, separator="eos", bos="document")) == [[0, 4, 5, 1, 0, 6, 1, 0, 7, 1]]


def test_documents_without_tokens_are_none():
    assert served(stream(["w1", "", "w2"])) == [[0, 4, 0, 5]]


@pytest.mark.parametrize(("bos", "pack"), [*itertools.product(POLICIES, [True]), ("context", False), (None, False)])
def test_every_token_says_whose_it_is(bos, pack):
    n_text = 0
    for batch in stream(bos=bos, pack=pack, padding_side="left").batches(3):
        for token, real, document, position in zip(
            batch.input_ids.flatten().tolist(), batch.attention_mask.flatten().tolist(),
            batch.document.flatten().tolist(), batch.position.flatten().tolist(), strict=True,
        ):  # fmt: skip
            if position >= 0:
                assert IDS[document][position] == token
                n_text += 1
            else:
                assert token == PAD if not real else token in (BOS, EOS)
                assert (document == -1) == (not real)
    assert n_text == sum(len(ids) if pack else min(len(ids), 16 - (bos == "context")) for ids in IDS)


def test_state_is_plain_data_and_resumes_exactly():
    for pack, bos in itertools.product([True, False], POLICIES):
        options = {"pack": pack, "bos": bos, "long_documents": "cut" if pack else "split", "epochs": 2}
        whole = stream(ctx_len=8, **options)
        for n in (1, 5, 2, 9):
            whole.take(n)
        resumed = stream(ctx_len=8, **options)
        resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
        for a, b in zip(whole.batches(3), resumed.batches(3), strict=True):
            for x, y in [*zip(a, b, strict=True), (a.document, b.document), (a.position, b.position)]:
                assert torch.equal(x, y)


def test_state_of_other_settings_is_refused():
    rows = [[5] * 8] * 3
    for one, other in (
        (stream(ctx_len=8), stream()),
        (stream(rows, ctx_len=8), stream(rows, ctx_len=8, rows="documents")),
    ):
        with pytest.raises(ConfigError, match="Use the same settings"):
            one.load_state_dict(other.state_dict())


def test_epochs_repeat_the_data_and_say_so(caplog):
    caplog.set_level(logging.INFO)
    once = [i for row in served(stream(epochs=1)) for i in row if i > 2]
    assert "is read again" not in caplog.text
    thrice = [i for row in served(stream(epochs=3)) for i in row if i > 2]
    assert thrice == once * 3
    assert "the list has ended after 30 documents and is read again: pass 3 of 3." in caplog.text


def test_epochs_without_end_go_on():
    tokens = stream(["w1 w2"], ctx_len=4, epochs=None)
    assert all(tokens.take(4) is not None for _ in range(5))
    assert tokens.epoch > 5


def test_epochs_of_what_is_read_once_or_is_empty_are_refused():
    with pytest.raises(ConfigError, match="can be read only once. Pass a list"):
        stream(iter(DOCUMENTS), epochs=2)
    assert stream([], epochs=None).take(1) is None


def test_epochs_of_a_shuffled_source_have_other_orders():
    tokens = stream(as_source(DOCUMENTS, shuffle_seed=0), epochs=2, bos="none", separator=None)
    text = [i for row in served(tokens) for i in row]
    half = len(text) // 2
    assert sorted(text[:half]) == sorted(text[half:])
    assert text[:half] != text[half:]


@pytest.mark.parametrize("bos", POLICIES)
def test_token_ids_are_packed_as_text_is(bos):
    assert served(stream(IDS, bos=bos, rows="documents")) == served(stream(bos=bos))


def test_rows_of_the_length_of_a_context_are_served_as_they_are(caplog):
    rows = torch.randint(3, 90, (9, 16)).tolist()
    assert served(stream(rows)) == rows
    assert "do not begin with the BOS token 0" in caplog.text  # an id that is falsy
    caplog.clear()
    with_bos = [[BOS, *row[1:]] for row in rows]
    assert served(stream(with_bos)) == with_bos
    assert not caplog.text


def test_bos_that_is_asked_for_is_put_into_ready_rows():
    rows = torch.randint(3, 90, (9, 16)).tolist()
    contexts = served(stream(rows, bos="context"))
    assert all(context[0] == BOS for context in contexts)
    assert [i for context in contexts for i in context if i > 2] == [i for row in rows for i in row]


def test_ready_row_longer_than_a_context_is_refused():
    with pytest.raises(DataError, match="Row 0 of the list has 20 tokens, and contexts have ctx_len=16"):
        stream([[5] * 20, [5] * 3], rows="contexts").take(1)


def test_one_long_text_has_no_boundary_between_its_pieces(tmp_path):
    flat = np.arange(3, 93, dtype=np.uint16)
    np.save(tmp_path / "a.npy", flat)
    source = as_source(tmp_path / "a.npy", row_len=7)
    assert served(stream(source, bos="none", separator=None)) == [
        flat[n : n + 16].tolist() for n in range(0, len(flat), 16)
    ]
    source.restart()
    assert served(stream(source)) == brute_force([flat.tolist()], 16, True, True, None)


def test_pieces_that_do_not_follow_on_are_kept_apart(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3, 93, dtype=np.uint16))
    rest, _ = as_source(tmp_path / "a.npy", row_len=9).hold_out(2)
    contexts = served(stream(rest, ctx_len=10, bos="document"))
    assert contexts == [[BOS, *range(n, n + 9)] for n in range(12, 90, 18)]


@pytest.mark.parametrize("pack", [True, False])
def test_documents_longer_than_the_tokenizers_maximum_are_read_whole(pack):
    tokenizer = tiny.tokenizer()
    tokenizer.model_max_length = 4
    document = " ".join(f"w{n}" for n in range(1, 30))
    contexts = served(stream([document], tokenizer=tokenizer, pack=pack, ctx_len=64))
    assert [i for i in contexts[0] if i != BOS] == list(range(4, 33))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_with_the_id_of_a_real_token_is_told_apart(side):
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    batch = stream(["w1 </s> w2 </s>", "w3"], tokenizer=tokenizer, pack=False, padding_side=side).take(2)
    assert batch.attention_mask.sum(-1).tolist() == [4, 1]
    assert batch.input_ids[batch.attention_mask].tolist() == [4, EOS, 5, EOS, 6]


def test_tokenizer_is_not_changed():
    tokenizer = tiny.tokenizer()
    before = (tokenizer.padding_side, tokenizer.pad_token_id, len(tokenizer), tokenizer.backend_tokenizer.to_str())
    for options in ({"padding_side": "left", "pack": False, "bos": "both"}, {"separator": "eos"}):
        list(stream(tokenizer=tokenizer, **options).batches(4))
    assert before == (
        tokenizer.padding_side,
        tokenizer.pad_token_id,
        len(tokenizer),
        tokenizer.backend_tokenizer.to_str(),
    )


def test_token_that_both_ends_and_begins_documents_stands_once():
    tokenizer = tiny.tokenizer()
    tokenizer.bos_token = tokenizer.eos_token
    contexts = served(stream(["w1", "w2 w3"], tokenizer=tokenizer, separator="eos", bos="document"))
    assert contexts == [[EOS, 4, EOS, 5, 6, EOS]]


def test_packed_documents_are_not_split():
    with pytest.raises(ConfigError, match="long_documents='split' with pack=True"):
        stream(long_documents="split")


def test_contexts_that_share_documents_are_not_called_documents(tmp_path, caplog):
    pretokenize(tiny.documents(30), tiny.tokenizer(), tmp_path / "rows", ctx_len=16)
    np.save(tmp_path / "a.npy", np.arange(3, 60, dtype=np.uint16))
    for data in (as_source(tmp_path / "rows"), as_source(tmp_path / "a.npy", row_len=9)):
        caplog.clear()
        rest, held = data.hold_out(2)
        assert ("every 2th context of" in held.name) and ("every 2th context" in rest.name)
        assert "other parts of its documents may be in training" in caplog.text
    caplog.clear()
    for data in (tiny.documents(4), [[3, 4, 5], [4, 5], [5, 6, 7]]):
        assert "every 2th document" in as_source(data).hold_out(2)[1].name
    assert not caplog.text
