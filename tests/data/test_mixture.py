from collections import Counter

import pytest

from dictionary_learning.data import TokenStream, as_source, mix
from dictionary_learning.errors import ConfigError, DataError
from tests import tiny

A, B, C = ([f"{name}{n}" for n in range(4000)] for name in "abc")


def shares(source, n: int) -> dict[str, float]:
    counts = Counter(next(source)[0] for _ in range(n))
    return {name: count / n for name, count in counts.items()}


def test_shares_are_the_weights():
    drawn = shares(mix([A, B, C], [6, 3, 1]), 4000)
    # 4 standard deviations of a share of 4,000 draws
    assert drawn == pytest.approx({"a": 0.6, "b": 0.3, "c": 0.1}, abs=0.032)


def test_draws_are_decided_by_the_seed_and_documents_keep_their_order():
    once, again, other = (list(mix([A, B], seed=seed)) for seed in (0, 0, 1))
    assert once == again != other
    assert [d for d in once if d[0] == "a"] == A[: sum(d[0] == "a" for d in once)]


def test_stop_ends_with_the_first_source_that_ends():
    drawn = list(mix([A[:5], B], exhausted="stop"))
    assert [d for d in drawn if d[0] == "a"] == A[:5]
    assert len(drawn) < 40


def test_continue_gives_every_document_once():
    drawn = list(mix([A[:5], B[:50], C[:9]], exhausted="continue"))
    assert sorted(drawn) == sorted(A[:5] + B[:50] + C[:9])


def test_restart_keeps_the_shares_until_all_were_read():
    drawn = list(mix([A[:5], B[:400]], exhausted="restart"))
    assert {d for d in drawn if d[0] == "b"} == set(B[:400])
    assert drawn.count("a0") > 30
    assert sum(d[0] == "a" for d in drawn) / len(drawn) == pytest.approx(0.5, abs=0.1)


def test_restarted_documents_are_never_on_both_sides_of_a_split():
    rest, held = mix([A[:10], B[:200]], exhausted="restart").hold_out(5)
    assert not set(rest) & set(held)


def test_mixture_of_text_and_token_ids_packs_both():
    text = ["w1 w2", "w3"]
    tokens = TokenStream(mix([text, [[6, 7], [8]]], exhausted="continue"), tiny.tokenizer(), ctx_len=4)
    seen = [i for b in tokens.batches(2) for i in b.input_ids[b.attention_mask].tolist() if i > 2]
    assert sorted(seen) == [4, 5, 6, 6, 7, 8]
    assert tokens.special_ids == (0, 1)


def test_mixtures_that_cannot_be_drawn_from_are_refused():
    for weights in ([1], [1, 0], [1, -1]):
        with pytest.raises(ConfigError, match="a weight above 0 for each"):
            mix([A, B], weights)
    with pytest.raises(ConfigError, match="cannot be restarted"):
        mix([A, iter(B)], exhausted="restart")
    with pytest.raises(DataError, match="holds no document"):
        list(mix([A, []], exhausted="restart"))


def test_name_says_what_is_in_it():
    assert (
        mix([as_source(A, name="books"), as_source(B, name="news")], [3, 1]).name
        == "a mixture of 0.75 books, 0.25 news"
    )
