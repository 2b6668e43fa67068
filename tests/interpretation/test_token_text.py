"""Characters that a vocabulary cuts into tokens are shown as characters, wherever tokens are shown."""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dictionary_learning import AutoEncoderTopK, load_model
from dictionary_learning.exports._facts import Shown
from dictionary_learning.exports._picture import _pieces
from dictionary_learning.interpretation import collect_contexts, test_prompt as answer_of, token_predictions
from dictionary_learning.interpretation._token_text import pieces_of, texts_alone, texts_of, texts_together
from dictionary_learning.interpretation.explanations._examples import _window
from tests import tiny

TEXT = "a 你好, é مرحبا 🙂!"


def byte_level() -> PreTrainedTokenizerFast:
    """Returns a tokenizer as GPT-2's: letters stand for bytes; two pairs of bytes are merged."""
    pairs = [("ä", "½"), ("å", "¥")]
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in pairs)]
    made = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=pairs))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")


def byte_fallback() -> PreTrainedTokenizerFast:
    """Returns a tokenizer as Llama 2's: letters are tokens, and what is unknown is bytes."""
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz,!"]
    vocabulary = {name: i for i, name in enumerate(names)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")


def model_of_bytes():
    module = tiny.model("gpt2")
    module.resize_token_embeddings(300)
    return load_model(module, tokenizer=byte_level())


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_a_window_reads_as_its_text(make):
    tokenizer = make()
    ids = tokenizer(TEXT)["input_ids"]
    texts = texts_of(tokenizer, ids)
    assert "".join(texts) == TEXT == tokenizer.decode(ids)
    assert [text for text in texts if text] == list(TEXT)
    if make is byte_fallback:  # a token for each byte: a character is at the last of its own
        assert texts == [text for c in TEXT for text in [*[""] * (len(c.encode()) - 1), c]]


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_bytes_that_are_no_character_are_named(make):
    tokenizer = make()
    ids = tokenizer("你a")["input_ids"]
    assert "".join(texts_of(tokenizer, ids[1:])).endswith(">a")
    assert "".join(texts_of(tokenizer, [ids[0], ids[-1]])) in ("<0xE4><0xBD>a", "<0xE4>a")
    assert "".join(texts_alone(pieces_of(tokenizer, ids))) == "<0xE4><0xBD><0xA0>a"
    assert texts_of(tokenizer, tokenizer("a\ufffd")["input_ids"])[-1] == "\ufffd"  # a character, too


def test_pieces_are_kept_in_files():
    tokenizer = byte_level()
    pieces = pieces_of(tokenizer, tokenizer(TEXT)["input_ids"])
    assert texts_together(json.loads(json.dumps(pieces))) == texts_together(pieces)
    assert texts_together([]) == [] and pieces_of(None, [3]) == ["3"]


def test_the_letters_of_bytes_are_those_of_the_package():
    """All 256, in the order of transformers' own table."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    from dictionary_learning.interpretation._token_text import _alphabet

    assert _alphabet() == {letter: byte for byte, letter in bytes_to_unicode().items()}


def test_a_store_decodes_windows_together_and_others_alone(tmp_path):
    model = model_of_bytes()
    dictionary = {"a": AutoEncoderTopK(tiny.DIM, 24, k=4)}
    options = {"n_tokens": 200, "ctx_len": 32, "window": (8, 4)}
    store = collect_contexts(model, dictionary, [TEXT] * 9, tmp_path, sites={"a": "transformer.h.1"}, **options)
    ids = torch.tensor(model.tokenizer("你好")["input_ids"])
    assert "".join(store["a"].window_text(ids)) == "你好"
    assert store["a"].token_text(ids) == ["<0xE4><0xBD>", "<0xA0>", "<0xE5><0xA5>", "<0xBD>"]
    shown = ["".join(store.window_text(one.token_ids)) for latent in store["a"] for one in latent.top]
    assert any("你好" in text for text in shown) and not any("ä" in text for text in shown)


def test_judges_see_a_character_as_one_token():
    window = _window(["a", "", "", "你", " b"], [0.0, 3.0, 1.0, 2.0, 0.5])
    assert window.tokens == ("a", "你", " b") and window.activations == (0.0, 3.0, 0.5)
    assert _window(["a", ""], [1.0, 2.0]).activations == (1.0, 2.0)  # of other contexts than a store's


def test_pictures_color_a_character_by_its_strongest_part():
    assert _pieces(Shown(["a", "", "é", "b"], [0.0, 4.0, 1.0, 0.0], 1), 4.0) == [(0, "a", 0), (1, "é", 1), (2, "b", 0)]


def test_predictions_show_text():
    model = model_of_bytes()
    assert "".join(token_predictions(model, "你好").tokens).endswith("你好")
    assert "Answer: ' 你', probability" in str(answer_of(model, "a", "你"))
