"""The live server: what it answers, and whom."""

import http.client
import json
import threading

import pytest
import torch

from dictionary_learning import AutoEncoderTopK, Crosscoder, DictionaryInfo, load_model
from dictionary_learning.dashboards import LiveServer
from dictionary_learning.errors import ConfigError
from dictionary_learning.interventions import edit_latents, read_latents
from tests import tiny
from tests.dashboards.fake import EVIL

SITE, TEXT = "transformer.h.1:out", "w1 w5 w9 w2"
IDS = torch.tensor([[0, 4, 8, 12, 5]])
"""After BOS, as contexts of training."""


def dictionary(seed: int = 0) -> AutoEncoderTopK:
    torch.manual_seed(seed)
    made = AutoEncoderTopK(tiny.DIM, 32, 4)
    made.info = DictionaryInfo(sites=(SITE,))
    return made


@pytest.fixture(scope="module")
def server():
    two = Crosscoder((tiny.DIM, tiny.DIM), 32, nonlinearity={"name": "top_k", "k": 4})
    two.info = DictionaryInfo(sites=("transformer.h.0:out", SITE))
    model = load_model(tiny.model("gpt2"), tokenizer=tiny.tokenizer())
    made = LiveServer(model, {"first": dictionary(), EVIL: dictionary(1), "two": two})
    thread = threading.Thread(target=made.run)
    thread.start()
    yield made
    made.close()
    thread.join(10)


def send(server, method: str, path: str, body: bytes | None = None, **headers: str):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    given = {"X-Token": server.token, **{name.replace("_", "-"): value for name, value in headers.items()}}
    try:
        connection.request(method, path, body, given)
        response = connection.getresponse()
        return response.status, response.read(), response.headers
    finally:
        connection.close()


def post(server, path: str, request) -> dict:
    status, body, _ = send(server, "POST", f"/api/{path}", json.dumps(request).encode())
    answer = json.loads(body)
    assert status == answer.get("error", {"status": 200})["status"]
    return answer


def test_latents_are_those_that_are_read(server):
    model = load_model(tiny.model("gpt2"), tokenizer=tiny.tokenizer())
    reading = read_latents(model, dictionary(), IDS)
    dense = reading.dense()[0]
    answer = post(server, "read", {"dictionary": "first", "text": TEXT, "n": 5, "latents": [31]})
    assert answer["tokens"] == ["<s>", "w1", "w5", "w9", "w2"]
    assert answer["latents"][0]["latent"] == 31
    assert [one["latent"] for one in answer["latents"][1:]] == [
        i for i in dense.abs().amax(0).topk(5).indices.tolist() if i != 31
    ]
    for one in answer["latents"]:
        torch.testing.assert_close(
            torch.tensor(one["values"], dtype=torch.float32), dense[:, one["latent"]], rtol=1e-3, atol=1e-6
        )


@pytest.mark.parametrize("way", ["clamp", "add", "scale"])
def test_generation_is_that_of_a_loop_by_hand(server, way):
    changes = [{"latent": 7, "way": way, "value": 30.0}]
    request = {"dictionary": "first", "text": TEXT, "n_tokens": 6, "changes": changes}
    answer = post(server, "generate", request)
    model, words = load_model(tiny.model("gpt2"), tokenizer=tiny.tokenizer()), tiny.tokenizer()
    for name in ("clean", "steered"):
        ids = IDS
        for _ in range(6):
            ordinary = ids > 2  # special tokens stay as they are
            edit = edit_latents(dictionary(), **{way: {7: 30.0}}, keep=ordinary)
            edits = {SITE: edit} if name == "steered" else {}
            with torch.no_grad():
                following = model.run(ids, None, edits)[0, -1].argmax()
            ids = torch.cat([ids, following.view(1, 1)], 1)
            if following == words.eos_token_id:
                break
        assert answer[name] == words.convert_ids_to_tokens(ids[0, 5:].tolist())


def test_without_changes_both_are_the_same_also_with_sampling(server):
    state = torch.get_rng_state()
    request = {"dictionary": "first", "text": TEXT, "n_tokens": 8, "temperature": 1.5, "seed": 3}
    answer = post(server, "generate", request)
    assert answer["clean"] == answer["steered"] and answer == post(server, "generate", request)
    assert answer["clean"] != post(server, "generate", {**request, "seed": 4})["clean"]
    assert torch.equal(torch.get_rng_state(), state)


CHANGE = {"latent": 1, "value": 1, "way": "add"}


@pytest.mark.parametrize(
    ("path", "request_", "message"),
    [
        ("read", [], "JSON object"),
        ("read", {"text": TEXT}, "dictionary=None"),
        ("read", {"dictionary": "nosuch", "text": TEXT}, "Unknown dictionary 'nosuch'"),
        ("read", {"dictionary": "first", "text": ""}, "text=''"),
        ("read", {"dictionary": "first", "text": "w1 " * 7000}, "1 to 20,000 characters"),
        ("read", {"dictionary": "first", "text": "w1 " * 64}, "65 tokens"),
        ("read", {"dictionary": "first", "text": "w1 \ud83d"}, "half of a UTF-16 surrogate pair"),
        ("read", {"dictionary": "\ud83d", "text": TEXT}, "Unknown dictionary"),
        ("generate", {"dictionary": "first", "text": "\udc00"}, "half of a UTF-16 surrogate pair"),
        ("read", {"dictionary": "first", "text": TEXT, "n": 0}, "n=0"),
        ("read", {"dictionary": "first", "text": TEXT, "n": True}, "n=True"),
        ("read", {"dictionary": "first", "text": TEXT, "latents": [32]}, "latent 32"),
        ("read", {"dictionary": "first", "text": TEXT, "other": 1}, "unknown field 'other'"),
        ("generate", {"dictionary": "first", "text": TEXT, "n_tokens": 10**9}, "n_tokens"),
        ("generate", {"dictionary": "first", "text": TEXT, "n_tokens": 60}, "65 tokens"),
        ("generate", {"dictionary": "first", "text": TEXT, "temperature": float("nan")}, "temperature=nan"),
        ("generate", {"dictionary": "first", "text": TEXT, "changes": [5]}, "JSON object"),
        ("generate", {"dictionary": "first", "text": TEXT, "changes": [{"latent": 32}]}, "latent=32"),
        (
            "generate",
            {"dictionary": "first", "text": TEXT, "changes": [{"latent": 1, "value": 1, "way": "x"}]},
            "way='x'",
        ),
        ("generate", {"dictionary": "two", "text": TEXT, "changes": [CHANGE]}, "which the model reaches after"),
    ],
)
def test_what_cannot_be_meant_is_said(server, path, request_, message):
    error = post(server, path, request_)["error"]
    assert error["status"] == 400 and message in error["message"] and error["type"].endswith("Error")


def test_only_the_page_of_this_machine_may_ask(server):
    body = json.dumps({}).encode()
    for headers, status in (
        ({}, 200),
        ({"X_Token": "wrong"}, 401),
        ({"X_Token": ""}, 401),
        ({"Host": f"evil.example:{server.port}"}, 403),
        ({"Host": "127.0.0.1"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": f"http://127.0.0.1:{server.port}"}, 200),
        ({"Host": f"localhost:{server.port}"}, 200),
    ):
        found, answer, _ = send(server, "POST", "/api/about", body, **headers)
        assert (found, "error" in json.loads(answer)) == (status, status != 200), headers
    assert send(server, "GET", "/", Host="evil.example")[0] == 403


def test_requests_that_are_none_are_refused(server):
    for method, path, body, status in (
        ("GET", "/nosuch", None, 404),
        ("GET", "/../_server.py", None, 404),
        ("GET", "/api/read", None, 405),
        ("POST", "/api/nosuch", b"{}", 404),
        ("POST", "/api/read", b"{", 400),
        ("POST", "/api/read", b"[" * 100_000, 400),
        ("POST", "/api/read", b"\xff", 400),
        ("POST", "/api/read", b" " * ((1 << 20) + 1), 413),
    ):
        try:
            found, answer, _ = send(server, method, path, body)
        except (BrokenPipeError, ConnectionResetError):  # it hangs up on a body that is too long
            assert status == 413
            continue
        assert found == status and json.loads(answer)["error"]["status"] == status, path
    assert send(server, "GET", "/")[0] == 200  # it goes on


def test_pages_may_load_nothing_from_elsewhere(server):
    for path in ("/", "/live.js", "/style.css", "/tokens.js", "/live.css"):
        status, body, headers = send(server, "GET", path)
        assert status == 200 and body and "default-src 'none'" in headers["Content-Security-Policy"]
        assert b"http://" not in body and b"https://" not in body


def test_server_that_cannot_be_is_refused(server):
    model = load_model(tiny.model("gpt2"), tokenizer=tiny.tokenizer())
    for arguments, message in (
        ((model, {}), "no dictionary"),
        ((load_model(tiny.model("gpt2")), {"a": dictionary()}), "no tokenizer"),
        ((model, {"a": AutoEncoderTopK(tiny.DIM, 32, 4)}), "does not know its site"),
    ):
        with pytest.raises(ConfigError, match=message):
            LiveServer(*arguments)
    with pytest.raises(ConfigError, match="Cannot listen"):
        LiveServer(model, {"a": dictionary()}, port=server.port)


@pytest.mark.xdist_group("browser")
def test_live_page_reads_and_steers(server, visits):
    page = visits.open(server.url)
    page.fill("#prompt", TEXT)
    page.wait_for_selector("text=5 tokens")
    assert page.locator("#text .token").all_inner_texts() == ["<s>", "w1", "w5", "w9", "w2"]
    page.locator("#latents li").nth(1).click()
    assert page.locator("#latents li").nth(1).get_attribute("aria-selected") == "true"
    page.locator("#latents button").first.click()
    page.fill("#n_tokens", "6")
    page.locator("#changes input[type=range]").evaluate(
        "slider => { slider.value = slider.max; slider.dispatchEvent(new Event('input'));"
        " slider.dispatchEvent(new Event('change')); }"
    )
    page.wait_for_selector("#status:has-text('token')")
    page.wait_for_selector("#steered span")
    latent = int(page.locator("#changes .number").inner_text())
    value = float(page.locator("#changes input[type=number]").input_value())
    changes = [{"latent": latent, "way": "clamp", "value": value}]
    answer = post(server, "generate", {"dictionary": "first", "text": TEXT, "n_tokens": 6, "changes": changes})
    assert page.locator("#steered").inner_text() == TEXT + "".join(answer["steered"])
    assert page.inner_text("#status").startswith(("Both texts are the same.", "The texts differ from generated token "))
    for width in (320, 400):  # with a changed latent, whose slider and number are wide
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        edges = page.locator("#changes li > *").evaluate_all(
            "all => all.map((one) => one.getBoundingClientRect().right)"
        )
        assert len(edges) == 5 and max(edges) <= width
    page.select_option("#dictionary", EVIL)
    page.wait_for_timeout(300)
    assert page.locator("img").count() == 0 and page.title() == "Live latents"
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
