"""Runs all benchmarks, one after another; each has a process of its own. `make bench` is this."""

import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    for script in ("step.py", "end_to_end.py", "quality.py"):
        print(f"\n## {script}\n", flush=True)
        subprocess.run([sys.executable, str(Path(__file__).parent / script)], check=True)
