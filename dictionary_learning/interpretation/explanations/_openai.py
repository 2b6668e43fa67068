"""Judge and embedder behind an endpoint of OpenAI's form, as servers of open models have it too."""

import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning._border import checked
from dictionary_learning._coercion import check_range
from dictionary_learning._http import Secret, Server, as_url
from dictionary_learning.errors import ConfigError, ModelError
from dictionary_learning.interpretation.explanations._prompts import Prompt

KEY = "OPENAI_API_KEY"
"""The variable of the environment that holds the key."""
OPENAI = "https://api.openai.com/v1"


class OpenAIJudge:
    """Asks a chat model behind an endpoint: OpenAI's, or one of vLLM, llama.cpp, Ollama and others.

    The key is read from the environment, and sent over HTTPS or to this machine only. Status 429
    and 5xx, time-outs and broken answers are tried again, at the times that the server asks for.

    Args:
        model: The model's name there.
        base_url: The address that ends before `/chat/completions`, as `http://localhost:8000/v1`.
        key_variable: The variable of the environment that holds the key; it may be unset.
        n_parallel: Requests at once.
        timeout: Seconds for one attempt.
        n_attempts: Attempts for each request.
        options: Further fields of a request, such as `{"max_tokens": 512}`; None leaves one out.
    """

    batch_size = 1

    @checked()
    def __init__(
        self,
        model: str,
        base_url: str = OPENAI,
        *,
        key_variable: str = KEY,
        n_parallel: int = 8,
        timeout: float = 120.0,
        n_attempts: int = 6,
        options: Mapping[str, Any] | None = None,
    ):
        self.model, self.n_parallel = model, n_parallel
        self.server = _server(base_url, key_variable, timeout, n_attempts)
        _check_positive(n_parallel=n_parallel, timeout=timeout, n_attempts=n_attempts)
        settings = {"temperature": 0, "max_tokens": 400, **(options or {})}
        self.options = {name: value for name, value in settings.items() if value is not None}
        self.name = f"openai:{model}@{_place(base_url)} {sorted(self.options.items())}"

    def complete(self, prompts: Sequence[Prompt]) -> list[str]:
        """Returns an answer to each question; empty where the model refuses to write one."""
        return [self._one(prompt) for prompt in prompts]

    def _one(self, prompt: Prompt) -> str:
        body = {"model": self.model, "messages": prompt.messages, **self.options}
        answer = self.server.post("/chat/completions", body)
        try:
            content = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise ModelError(
                f"{self.server.url} answers without choices[0].message.content. Give the address of an endpoint of "
                "OpenAI's form, which usually ends in /v1."
            ) from None
        return content if isinstance(content, str) else ""


class OpenAIEmbedder:
    """Asks an embedding model behind an endpoint of OpenAI's form.

    Args:
        model: The model's name there.
        base_url: The address that ends before `/embeddings`.
        key_variable: The variable of the environment that holds the key; it may be unset.
        n_parallel: Requests at once.
        timeout: Seconds for one attempt.
        n_attempts: Attempts for each request.
    """

    @checked()
    def __init__(
        self,
        model: str,
        base_url: str = OPENAI,
        *,
        key_variable: str = KEY,
        n_parallel: int = 8,
        timeout: float = 120.0,
        n_attempts: int = 6,
    ):
        self.model, self.n_parallel = model, n_parallel
        self.server = _server(base_url, key_variable, timeout, n_attempts)
        _check_positive(n_parallel=n_parallel, timeout=timeout, n_attempts=n_attempts)
        self.name = f"openai:{model}@{_place(base_url)}"

    def embed(self, texts: Sequence[str]) -> Float[Tensor, "n dim"]:
        """Returns the vectors, in the order of the texts."""
        answer = self.server.post("/embeddings", {"model": self.model, "input": list(texts)})
        try:
            rows = sorted(answer["data"], key=lambda row: int(row["index"]))
            vectors = torch.tensor([row["embedding"] for row in rows], dtype=torch.float32)
        except (KeyError, TypeError, ValueError):
            vectors = torch.zeros(0)
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise ModelError(f"{self.server.url} answers no vector for each text. Give the name of an embedding model.")
        return vectors


def _server(base_url: str, key_variable: str, timeout: float, n_attempts: int) -> Server:
    if not key_variable.isidentifier():
        # a key given here by mistake must not be shown
        raise ConfigError("key_variable is no name of a variable. Put the key into the environment, and name it here.")
    return Server(as_url(base_url), Secret(key_variable), timeout, n_attempts)


def _place(base_url: str) -> str:
    """Returns host and path: the same model answers over http and https."""
    parts = urllib.parse.urlsplit(base_url)
    return f"{parts.netloc}{parts.path}".rstrip("/")


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        try:
            check_range(value, {"above": 0})
        except ValueError as error:
            raise ConfigError(f"Got {name}={value}; it must be {error}.") from None
