import pytest

from dictionary_learning.data import Chat, TokenStream, as_source
from dictionary_learning.errors import DataError
from tests import tiny

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['role'] }} {{ m['content'] }} </s> {% endfor %}"
TALK = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}]
SYSTEM = {"role": "system", "content": "w8 w9"}


def tokenizer():
    found = tiny.tokenizer()
    found.chat_template = TEMPLATE
    return found


def contexts(data, **options) -> list[list[int]]:
    tokens = TokenStream(as_source(data, **options), tokenizer(), ctx_len=32, pack=False)
    return [ids[mask].tolist() for b in tokens.batches(4) for ids, mask in zip(*b, strict=True)]


def test_template_of_the_tokenizer_writes_conversations():
    # roles are words that the tokenizer does not know
    assert contexts([TALK]) == [[0, 3, 4, 5, 1, 3, 6, 1]]


def test_conversations_begin_with_one_bos():
    for pack in (True, False):
        tokens = TokenStream(as_source([TALK, TALK]), tokenizer(), ctx_len=64, pack=pack, bos="both")
        batch = tokens.take(2)
        assert (batch.input_ids == 0).sum() == 2


def test_other_names_for_roles_are_read():
    turns = [{"from": "human", "value": "w1 w2"}, {"from": "gpt", "value": "w3"}]
    assert contexts([turns]) == contexts([TALK])


def test_record_of_sequences_is_a_conversation_too():
    turns = {"role": ["user", "assistant"], "content": ["w1 w2", "w3"]}
    assert contexts(iter([turns])) == contexts([TALK])


def test_given_template_takes_the_place_of_the_tokenizers():
    chat = Chat(template="{% for m in messages %}{{ m['content'] }} {% endfor %}")
    assert contexts([TALK], chat=chat) == [[4, 5, 6]]


@pytest.mark.parametrize(("frequency", "least", "most"), [(0.0, 0, 0), (1.0, 40, 40), (0.5, 10, 30)])
def test_system_prompt_is_taken_out_as_often_as_asked(frequency, least, most):
    talks = [[SYSTEM, {"role": "user", "content": f"w{20 + n}"}] for n in range(40)]
    made = [contexts(talks, chat=Chat(system_prompt="w8 w9", removal_frequency=frequency)) for _ in range(2)]
    assert made[0] == made[1]
    assert least <= sum(11 not in context for context in made[0]) <= most


def test_conversations_that_cannot_be_written_are_refused():
    with pytest.raises(DataError, match="has no chat template"):
        TokenStream(as_source([TALK]), tiny.tokenizer(), ctx_len=8).take(1)
    with pytest.raises(DataError, match="The chat template cannot write a conversation with the roles user, assistant"):
        contexts([TALK], chat=Chat(template="{{ raise_exception('no') }}"))
    with pytest.raises(DataError, match="'role' and 'content' are needed"):
        next(as_source(iter([[{"who": "a"}]])))
