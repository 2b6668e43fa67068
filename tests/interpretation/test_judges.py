"""Judges behind an endpoint and on this machine: what goes wrong there, and keys that are shown nowhere."""

import datetime
import email.utils
import json
import logging
import threading
import time

import pytest
import torch

from dictionary_learning import _http
from dictionary_learning._http import Refused
from dictionary_learning.errors import ConfigError, DictionaryLearningError, ModelError
from dictionary_learning.interpretation.explanations import (
    Baseline,
    LocalEmbedder,
    LocalJudge,
    OpenAIEmbedder,
    OpenAIJudge,
    WordCounts,
    embedder_of,
    explain,
    judge_of,
)
from dictionary_learning.interpretation.explanations._judges import Comparing
from dictionary_learning.interpretation.explanations._prompts import Marked, Prompt
from tests import tiny
from tests.interpretation.planted import PlantedContexts
from tests.stub_server import Reply, Request, serving

SECRET = "sk-very-secret-1234567890"
PROMPT = Prompt("detection", 3, (Marked((" a", " b"), (0, 0)), Marked((" c",), (0,))), (1.0, 0.0), "cats")


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """The seconds that are waited, without waiting; and a key in the environment."""
    found: list[float] = []
    monkeypatch.setattr(_http, "_sleep", found.append)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return found


def chat(content) -> Reply:
    return Reply({"choices": [{"message": {"role": "assistant", "content": content}}]})


def test_judge_sends_the_question_and_returns_the_answer():
    with serving(lambda request, n: chat("[1, 0]")) as stub:
        judge = OpenAIJudge("some-model", stub.url, options={"max_tokens": 7, "temperature": None, "seed": 3})
        assert judge.complete([PROMPT]) == ["[1, 0]"]
    (request,) = stub.requests
    assert request.path == "/v1/chat/completions" and request.headers["Authorization"] == f"Bearer {SECRET}"
    assert request.body == {"model": "some-model", "messages": PROMPT.messages, "max_tokens": 7, "seed": 3}


def test_no_key_is_sent_where_there_is_none(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with serving(lambda request, n: chat("[1, 0]")) as stub:
        OpenAIJudge("m", stub.url).complete([PROMPT])
    assert "Authorization" not in stub.requests[0].headers


@pytest.mark.parametrize("status", [429, 500, 503, 529])
def test_busy_server_is_asked_again_at_the_time_it_says(waits, status):
    replies = [Reply({}, status), Reply({}, status, {"Retry-After": "7"}), Reply(b"{broken"), chat("[0, 1]")]
    with serving(lambda request, n: replies[n]) as stub:
        assert OpenAIJudge("m", stub.url).complete([PROMPT]) == ["[0, 1]"]
    assert 0.5 <= waits[0] <= 1 and waits[1] == 7 and 2 <= waits[2] <= 4


@pytest.mark.parametrize(
    ("given", "wait"),
    [
        ("1e9", 120), ("-5", None), ("soon", None), ("nan", None), ("inf", None),
        ("in a minute", 60),
        ("Thu, 01 Jan 1970 00:00:00 GMT", None),
    ],
)  # fmt: skip
def test_every_form_of_retry_after(waits, given, wait):
    if given == "in a minute":
        then = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=60)
        given = email.utils.format_datetime(then)
    with serving(lambda request, n: chat("") if n else Reply({}, 429, {"Retry-After": given})) as stub:
        OpenAIJudge("m", stub.url).complete([PROMPT])
    assert waits[0] == pytest.approx(wait, abs=3) if wait else 0.5 <= waits[0] <= 1


def test_server_that_stays_busy_is_an_error(waits):
    busy = Reply({"error": {"message": "too many"}}, 429)
    with (
        serving(lambda request, n: busy) as stub,
        pytest.raises(ModelError, match=r"3 times: status 429: too many\. Check"),
    ):
        OpenAIJudge("m", stub.url, n_attempts=3).complete([PROMPT])
    assert len(stub.requests) == 3 and len(waits) == 2


def test_slow_server_is_asked_again():
    def answer(request: Request, n: int) -> Reply:
        time.sleep(0 if n else 0.5)
        return chat("[1, 1]")

    with serving(answer) as stub:
        assert OpenAIJudge("m", stub.url, timeout=0.1).complete([PROMPT]) == ["[1, 1]"]


def test_no_server_is_an_error():
    with serving(lambda request, n: chat("")) as stub:
        pass
    with pytest.raises(ModelError, match="failed 2 times"):
        OpenAIJudge("m", stub.url, n_attempts=2).complete([PROMPT])


@pytest.mark.parametrize("body", [[], {}, {"choices": []}, {"choices": [{"message": None}]}, "x", None, 5])
def test_answer_of_another_form_is_an_error(body):
    with serving(lambda request, n: Reply(body)) as stub, pytest.raises(ModelError, match=r"choices\[0\]"):
        OpenAIJudge("m", stub.url).complete([PROMPT])


@pytest.mark.parametrize("content", [None, 5, [{"text": "x"}]])
def test_content_that_is_no_text_is_an_empty_answer(content):
    with serving(lambda request, n: chat(content)) as stub:
        assert OpenAIJudge("m", stub.url).complete([PROMPT]) == [""]


def test_wrong_key_is_an_error_that_does_not_show_it(waits):
    said = {"error": {"message": f"Incorrect API key provided: {SECRET}"}}
    with (
        serving(lambda request, n: Reply(said, 401)) as stub,
        pytest.raises(ModelError, match=r"status 401: Incorrect API key provided: \(key\).*OPENAI_API_KEY") as found,
    ):
        OpenAIJudge("m", stub.url).complete([PROMPT])
    assert len(stub.requests) == 1 and not waits and found.value.__cause__ is None


def test_key_is_in_no_file_log_or_repr(tmp_path, caplog):
    def answer(request: Request, n: int) -> Reply:
        if n == 3:
            return Reply({"error": {"message": f"no {SECRET}"}}, 400)
        return Reply({"error": SECRET}, 500) if n == 1 else chat("EXPLANATION: cats")

    with serving(answer) as stub, caplog.at_level(logging.DEBUG):
        judge = OpenAIJudge("m", stub.url)
        explain(PlantedContexts(), [1, 2], judge, folder=tmp_path)
    shown = caplog.text + repr(judge) + repr(vars(judge)) + judge.name
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 2 and SECRET not in shown + "".join(path.read_text() for path in written)


def test_redirection_is_not_followed():
    with serving(lambda request, n: chat("")) as other:
        where = {"Location": f"{other.url}/chat/completions"}
        with serving(lambda request, n: Reply({}, 302, where)) as stub, pytest.raises(ModelError, match="302"):
            OpenAIJudge("m", stub.url).complete([PROMPT])
    assert other.requests == []


def test_key_is_not_sent_in_the_clear_to_another_machine(caplog):
    assert _http._is_private("https://example.org/v1") and _http._is_private("http://localhost:1/v1")
    assert _http._is_private("http://[::1]:8/v1") and not caplog.text
    assert not _http._is_private("http://example.org/v1") and "no key is sent" in caplog.text


def test_refused_request_does_not_stop_the_others(caplog):
    def answer(request: Request, n: int) -> Reply:
        user = request.body["messages"][1]["content"]
        if "ACTIVE" in user and "<< word1>>" in user:
            return Reply({"error": {"message": "too long"}}, 400)
        return chat("EXPLANATION: words" if "ACTIVE" in user else "[1, 1, 0, 0, 1]")

    with serving(answer) as stub:
        made = explain(PlantedContexts(), [1, 2], OpenAIJudge("m", stub.url))
    assert list(made) == [2] and "too long" in caplog.text and "explain (refused): 1" in caplog.text


def test_all_refused_is_an_error():
    with serving(lambda request, n: Reply({}, 422)) as stub:
        with pytest.raises(ModelError, match="Every question was refused"):
            explain(PlantedContexts(), [1, 2], OpenAIJudge("m", stub.url))
        with pytest.raises(Refused):
            OpenAIJudge("m", stub.url).complete([PROMPT])


def test_no_more_requests_at_once_than_allowed():
    running, most, lock = [0], [0], threading.Lock()

    def answer(request: Request, n: int) -> Reply:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.01)
        with lock:
            running[0] -= 1
        return chat("EXPLANATION: cats")

    with serving(answer) as stub:
        explain(PlantedContexts(), range(6), OpenAIJudge("m", stub.url, n_parallel=3))
    assert 2 <= most[0] <= 3


def test_embedder_keeps_the_order_of_texts():
    def answer(request: Request, n: int) -> Reply:
        texts = request.body["input"]
        rows = [{"index": i, "embedding": [float(len(text)), 1.0]} for i, text in enumerate(texts)]
        return Reply({"data": rows[::-1]})

    with serving(answer) as stub:
        embedder = OpenAIEmbedder("e", stub.url)
        assert embedder.embed(["a", "bbb"]).tolist() == [[1.0, 1.0], [3.0, 1.0]]
        assert stub.requests[0].path == "/v1/embeddings"
        prompt = PROMPT._replace(kind="embedding")
        (found,) = Comparing(embedder).complete([prompt])
    vectors = torch.tensor([[4.0, 1.0], [4.0, 1.0], [2.0, 1.0]])
    cosines = torch.nn.functional.cosine_similarity(vectors[:1], vectors[1:])
    assert torch.allclose(torch.tensor(json.loads(found)), cosines, atol=1e-5)


@pytest.mark.parametrize("body", [{}, {"data": []}, {"data": [{"index": 0, "embedding": ["x"]}]}, {"data": None}])
def test_embedder_of_another_form_is_an_error(body):
    with serving(lambda request, n: Reply(body)) as stub, pytest.raises(ModelError, match="embedding model"):
        OpenAIEmbedder("e", stub.url).embed(["a"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_url": "localhost:8000"}, {"base_url": "ftp://a/v1"}, {"base_url": "https://user:pass@host/v1"},
        {"key_variable": SECRET}, {"n_parallel": 0}, {"timeout": 0.0}, {"n_attempts": 0}, {"model": 5},
        {"options": [1]},
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ConfigError) as found:
        OpenAIJudge(**{"model": "m", **wrong})
    assert "pass@" not in str(found.value)


def test_key_of_odd_characters_is_refused(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1\nX-Evil: 1")
    with serving(lambda request, n: chat("")) as stub, pytest.raises(ConfigError, match="OPENAI_API_KEY") as found:
        OpenAIJudge("m", stub.url).complete([PROMPT])
    assert "Evil" not in str(found.value) and not stub.requests


@pytest.fixture(scope="module")
def local():
    return tiny.model("llama").eval(), tiny.tokenizer()


def small_prompt(n: int) -> Prompt:
    return PROMPT._replace(texts=tuple(Marked((f" w{i}",), (0,)) for i in range(n)), truth=(1.0,) * n)


def test_local_answers_do_not_depend_on_the_batch(monkeypatch):
    torch.manual_seed(0)
    model, tokenizer = tiny.model("llama").eval(), tiny.tokenizer()
    model.config.max_position_embeddings = 1000
    judge = LocalJudge(model, tokenizer, max_new_tokens=5)
    # of different lengths, so that one is padded
    prompts = [small_prompt(1), small_prompt(4)]
    together = judge.complete(prompts)
    assert together == [judge.complete([prompt])[0] for prompt in prompts]
    assert all(isinstance(answer, str) for answer in together)


@pytest.mark.parametrize("knows_system", [True, False])
def test_chat_template_is_used(knows_system):
    model, tokenizer = tiny.model("llama").eval(), tiny.tokenizer()
    model.config.max_position_embeddings = 1000
    refuses = "" if knows_system else "{% if message.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    tokenizer.chat_template = (
        "{% for message in messages %}" + refuses + "w1 {{ message.role }} {{ message.content }} {% endfor %}"
        "{% if add_generation_prompt %}w9{% endif %}"
    )
    ids = LocalJudge(model, tokenizer)._ids(PROMPT)
    assert ids[-1] == tokenizer.convert_tokens_to_ids("w9")
    assert ids.count(tokenizer.convert_tokens_to_ids("w1")) == (2 if knows_system else 1)


def test_local_judge_refuses_what_it_cannot_read(local):
    model, tokenizer = tiny.model("llama"), tiny.tokenizer()
    with pytest.raises(ModelError, match="texts_per_prompt"):
        LocalJudge(model, tokenizer).complete([small_prompt(40)])


def test_local_embedder_is_the_mean_of_hidden_states(local):
    model, tokenizer = local
    found = LocalEmbedder(model, tokenizer).embed(["w1 w2 w3", ""])
    ids = torch.tensor([tokenizer("w1 w2 w3")["input_ids"]])
    expected = model(ids, output_hidden_states=True).hidden_states[-1][0].mean(0)
    assert found.shape == (2, tiny.DIM) and torch.allclose(found[0], expected, atol=1e-4)


def test_word_counts_compare_words():
    vectors = WordCounts().embed(["Cats, dogs", "cats dogs", "birds", ""])
    assert torch.equal(vectors[0], vectors[1]) and float(vectors[0] @ vectors[2]) == 0 and not vectors[3].any()


def test_baseline_scores_the_words_of_others():
    answers = Baseline().complete([PROMPT._replace(texts=(Marked((" the", " Cats"), (0, 0)), Marked((" is",), (0,))))])
    assert answers == ["[1, 0]"]


def test_judges_by_a_word(tmp_path, local):
    model, tokenizer = local
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert isinstance(judge_of("baseline"), Baseline) and isinstance(embedder_of("baseline"), WordCounts)
    judge = judge_of("openai:org/model:tag@http://localhost:8000/v1", n_parallel=2)
    assert isinstance(judge, OpenAIJudge) and judge.model == "org/model:tag" and judge.n_parallel == 2
    assert judge.server.url == "http://localhost:8000/v1" and judge.name.startswith(
        "openai:org/model:tag@localhost:8000/v1"
    )
    assert judge_of("openai:m").server.url == "https://api.openai.com/v1"
    assert isinstance(judge_of(f"local:{tmp_path}"), LocalJudge)
    assert isinstance(embedder_of(f"local:{tmp_path}"), LocalEmbedder)
    for word in ("", "nosuch", "openai", "openai:", "local:", "baseline:x", "openai:m@nothing", f"local:{tmp_path}/x"):
        for read in (judge_of, embedder_of):
            with pytest.raises(DictionaryLearningError):
                read(word)
