"""What a user does with the hub, in a process of its own whose client is told of the stand-in by HF_ENDPOINT."""

import json
import os
import socket
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

import torch

from dictionary_learning import AutoEncoderTopK, Sae, load_dictionary, load_from_hub, load_many, push_to_hub
from dictionary_learning.errors import CheckpointError
from tests.interop import by_hand, golden

ADDRESS = os.environ["HF_ENDPOINT"]
REPORT = {
    "model": {"name": "EleutherAI/pythia-70m"},
    "data": {"source": "held-out text", "n_tokens_scored": 1000},
    "dictionaries": [
        {
            "name": "a",
            "site": "layers.3:out",
            "class": "AutoEncoderTopK",
            "dict_size": 40,
            "metrics": {"fvu": 0.25, "l0": 4.0},
        }
    ],
}


def post(path: str) -> None:
    urllib.request.urlopen(urllib.request.Request(f"{ADDRESS}{path}", method="POST", data=b"")).read()


def stop() -> None:
    """Ends the server, and waits until it is gone."""
    post("/stop")
    where = urllib.parse.urlsplit(ADDRESS)
    for _ in range(200):
        try:
            socket.create_connection((where.hostname or "", where.port or 0), timeout=1).close()
        except OSError:
            return
        time.sleep(0.05)
    raise TimeoutError("the server does not end")


def error(*arguments: object, **options: object) -> str:
    try:
        load_dictionary(*arguments, **options)
    except CheckpointError as caught:
        return str(caught)
    return ""


def main() -> None:
    x = torch.randn(5, 12)
    first, second = (AutoEncoderTopK(12, 40, 4) for _ in range(2))
    push_to_hub(first, "owner/mine", site="layers.3", report=REPORT, config={"model": "EleutherAI/pythia-70m"})
    push_to_hub(second, "owner/mine", site="layers.3", revision="other")
    push_to_hub(second, "owner/theirs", format="sparsify")
    push_to_hub(str(golden.folder("sparsify/multi_hookpoint")), "owner/run")
    said: dict[str, object] = {}
    loaded = load_from_hub("owner/mine", "layers.3")
    said["main"] = torch.equal(loaded(x), first(x))
    said["other"] = torch.equal(load_from_hub("owner/mine", "layers.3", revision="other")(x), second(x))
    said["theirs"] = torch.equal(load_dictionary("owner/theirs")(x), second(x))
    said["inside"] = torch.equal(load_dictionary("owner/mine/layers.3")(x), first(x))
    one = Sae.load_from_hub("owner/run", hookpoint="layers.10")
    said["names"] = list(load_many("owner/run"))
    said["class"] = type(AutoEncoderTopK.from_pretrained("owner/run", site="layers.2")).__name__
    said["no site"] = error("owner/run")
    said["no such site"] = error("owner/run", site="layers.7")
    said["no repository"] = error("owner/none", site="layers.7")
    said["no revision"] = error("owner/mine", site="layers.3", revision="v9")
    said["no name"] = error("owner/bad name!", site="a")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("circuit_tracer_clt", "gemma_scope_2_clt"):
            by_hand.WRITTEN[name](Path(folder) / name)
            push_to_hub(str(Path(folder) / name), "owner/layers", site=name)
            told = [load_dictionary(f"owner/layers/{name}"), *load_many(f"owner/layers/{name}").values()]
            said[name] = [one.info.format for one in told]
    stop()
    again = Sae.load_from_hub("owner/run", hookpoint="layers.10")
    said["from the cache"] = torch.equal(again.W_enc, one.W_enc)
    said["not in the cache"] = error("owner/unknown", site="a")
    Path(sys.argv[1]).write_text(json.dumps(said))


if __name__ == "__main__":
    main()
