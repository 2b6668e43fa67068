"""Tiny models and dictionaries with a known answer: latents at the embedding, which say one word each."""

import functools

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dictionary_learning import AutoEncoder, load_model
from tests import tiny

SITE = "model.embed_tokens"


@functools.cache
def model():
    """Returns a model that no test changes."""
    return load_model(tiny.model(), tokenizer=tiny.tokenizer())


def loud_words(traced, n: int) -> list[str]:
    """Returns words whose embedding no other word has more of than they have themselves."""
    rows = traced.module.model.embed_tokens.weight.detach()
    units = rows / rows.norm(dim=1, keepdim=True)
    own = (units @ rows.T).argmax(1) == torch.arange(len(rows))
    return [tiny.WORDS[i - 3] for i in own.nonzero().squeeze(1).tolist() if i >= 5][:n]  # not w0 and w1


def speller(traced, words: list[str], width: int = 32) -> AutoEncoder:
    """Returns a dictionary whose latent n is active on word n alone, and adds its whole embedding."""
    rows = traced.module.model.embed_tokens.weight.detach()
    made = AutoEncoder(tiny.DIM, width)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
        made.b_enc.fill_(-1)
        for n, word in enumerate(words):
            own = rows[tiny.WORDS.index(word) + 3]
            unit = own / own.norm()
            others = (rows @ unit).sort().values[-2]
            made.W_enc[n], made.b_enc[n] = unit, -(others + own.norm()) / 2
            made.W_dec[n] = own / (own.norm() - others) * 2
    return made


def texts_with(words: list[str], n: int, seed: int, longest: int = 12) -> list[str]:
    """Returns texts without the words."""
    return [
        " ".join(w for w in text.split() if w not in words) + " w0" for text in tiny.documents(n, longest, seed=seed)
    ]


LETTERS, PER_LETTER, N_ABSORBED = "abcd", 23, 8


@functools.cache
def letter_model():
    """Returns a model with words of four letters, whose embeddings are the letter's and, of some, their own."""
    words = [f"{letter}{chr(97 + n)}" for letter in LETTERS for n in range(PER_LETTER)]
    vocabulary = {"<s>": 0, "</s>": 1, "<pad>": 2, **{word: n for n, word in enumerate(words, 3)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="aa"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    built = tiny.model()
    absorbed = words[:N_ABSORBED]
    with torch.no_grad():
        rows = built.model.embed_tokens.weight
        rows.zero_()
        for n, word in enumerate(words, 3):
            rows[n, LETTERS.index(word[0])] = 4
            if word in absorbed:
                rows[n, 4 + absorbed.index(word)] = 4
    return load_model(built, tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)), absorbed


def absorbing_dictionary() -> AutoEncoder:
    """Returns one latent for each letter, silent on the words that eight others have absorbed."""
    made = AutoEncoder(tiny.DIM, 4 + N_ABSORBED)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
        for n in range(4):
            made.W_enc[n, n] = made.W_dec[n, n] = 1
        for n in range(N_ABSORBED):
            made.W_enc[0, 4 + n] = -2  # "a" is silent where an absorber fires
            made.W_enc[4 + n, 4 + n] = 1
            made.W_dec[4 + n, 0] = made.W_dec[4 + n, 4 + n] = 1
    return made
