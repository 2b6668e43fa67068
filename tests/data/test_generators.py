import itertools
import json
from collections import Counter

import datasets
import pytest

from dictionary_learning import utils
from dictionary_learning.errors import ConfigError
from tests import tiny
from tests.data.kinds import lines

PLAIN = [f"w{n} w{n}" for n in range(60)]
TALKS = [[{"role": "system", "content": "w90"}, {"role": "user", "content": f"w{n}"}] for n in range(60)]


@pytest.fixture(autouse=True)
def hub(monkeypatch):
    """Serves three data sets by name."""
    there = {"plain": {"text": PLAIN}, "chat": {"conversation": TALKS}, "other": {"body": [t.upper() for t in PLAIN]}}

    def load(name, split, streaming):
        found = datasets.Dataset.from_dict(there[name])
        return found.to_iterable_dataset() if streaming else found

    monkeypatch.setattr(datasets, "load_dataset", load)


def tokenizer():
    found = tiny.tokenizer()
    found.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    return found


def mixed(**options):
    return utils.hf_mixed_dataset_to_generator(tokenizer(), "plain", "chat", **options)


def test_known_names_give_the_texts(tmp_path):
    assert list(utils.hf_dataset_to_generator("plain")) == PLAIN
    assert list(utils.hf_dataset_to_generator("plain", split="train", streaming=False)) == PLAIN
    path = lines(tmp_path / "a.jsonl.zst", [{"text": text} for text in PLAIN])
    assert list(utils.zst_to_generator(path)) == PLAIN


@pytest.mark.parametrize("streaming", [True, False])
def test_mixture_of_text_and_conversations_has_the_share_asked_for(streaming):
    texts = list(mixed(pretrain_frac=0.75, streaming=streaming))
    counts = Counter("user:" in text for text in texts)
    assert counts[True] / len(texts) == pytest.approx(0.25, abs=0.12)
    assert "system: w90\nuser: w0\n" in texts


def test_mixture_takes_the_system_prompt_out():
    texts = list(mixed(pretrain_frac=0.1, system_prompt_to_remove="system: w90\n", system_prompt_removal_freq=1.0))
    assert not any("system" in text for text in texts)
    assert "user: w3\n" in texts


def test_mixture_joins_short_texts():
    texts = list(mixed(pretrain_frac=0.5, min_chars=20))
    plain = [text for text in texts if "user" not in text]
    assert plain[0] == "</s>".join(PLAIN[:3])
    assert all(len(text) >= 20 for text in plain[:-1])
    assert all(text.count("user") == 1 for text in texts if "user" in text)


def test_mixture_resumes():
    broken = mixed(pretrain_frac=0.5, min_chars=20)
    before = list(itertools.islice(broken, 6))
    resumed = mixed(pretrain_frac=0.5, min_chars=20)
    resumed.load_state_dict(json.loads(json.dumps(broken.state_dict())))
    assert before + list(resumed) == list(mixed(pretrain_frac=0.5, min_chars=20))


def test_other_mixtures_are_known_too():
    joined = utils.hf_sequence_packing_dataset_to_generator(tokenizer(), "plain", min_chars=10)
    assert next(joined) == "</s>".join(PLAIN[:2])
    two = list(utils.simple_hf_mixed_dataset_to_generator("plain", "other", 0.5, aux_key="body"))
    assert {text[0] for text in two} == {"w", "W"}


def test_shares_outside_of_0_to_1_are_refused():
    for make in (
        mixed,
        lambda pretrain_frac: utils.simple_hf_mixed_dataset_to_generator("plain", "other", pretrain_frac),
    ):
        with pytest.raises(ConfigError, match="fraction between 0 and 1"):
            make(pretrain_frac=1.0)


def test_system_prompt_is_taken_out_of_text_at_random():
    texts = [utils.randomly_remove_system_prompt("be good. hello", 0.5, "be good. ") for _ in range(200)]
    assert 60 < texts.count("hello") < 140
    assert utils.randomly_remove_system_prompt("hello", 1.0) == "hello"
