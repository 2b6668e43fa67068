"""Kills a run at random moments, checks every checkpoint, and compares its end with one that was not killed.

    python benchmarks/kills.py [--kills 50] [--seed 0]

The run writes a checkpoint after every step, so most kills hit a save or its renames. About 6
seconds a kill on one core, most of which is the import of torch.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dictionary_learning._checkpoint import check_files, complete_checkpoints
from dictionary_learning.errors import CheckpointError

STEPS = 4000
RUN = f"""
import sys, torch
torch.set_num_threads(1)
from dictionary_learning import trainSAE
data = [torch.randn(64, 32, generator=torch.Generator().manual_seed(n)) for n in range({STEPS})]
configs = [{{"trainer": "top_k", "k": 3, "dict_size": 96}}, {{"trainer": "jump_relu", "dict_size": 96, "ema_decay": 0.9}}]
trainSAE(data, configs, {STEPS}, save_dir=sys.argv[1], checkpoint_steps=1 if sys.argv[2] == "kill" else 1000,
         resume="auto", log_steps=50, progress=False, device="cpu")
"""


def files(folder: Path) -> dict[str, bytes]:
    """Returns what a run leaves beside its checkpoints, without the times in its log."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.glob("trainer_*/*")}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {**found, "metrics.jsonl": json.dumps([{**line, "seconds": 0} for line in lines]).encode()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    moments, looked_at, damaged, steps = random.Random(arguments.seed), 0, 0, []
    with tempfile.TemporaryDirectory() as temporary:
        whole, parts = Path(temporary, "whole"), Path(temporary, "parts")
        subprocess.run([sys.executable, "-c", RUN, whole, "whole"], check=True)
        for kill in range(arguments.kills):
            process = subprocess.Popen([sys.executable, "-c", RUN, parts, "kill"])
            begun = newest = complete_checkpoints(parts / "checkpoints")
            while process.poll() is None and newest == begun:  # the import and the reading of the newest one
                time.sleep(0.01)
                newest = complete_checkpoints(parts / "checkpoints")
            time.sleep(moments.uniform(0, 0.4))
            process.kill()
            process.wait()
            found = complete_checkpoints(parts / "checkpoints")
            steps.append(found[-1].step if found else 0)
            for checkpoint in found:
                looked_at += 1
                try:
                    check_files(checkpoint.path)
                except CheckpointError as error:
                    damaged += 1
                    print(f"kill {kill}: {error}")
        subprocess.run([sys.executable, "-c", RUN, parts, "whole"], check=True)
        same = files(whole) == files(parts)
    print(
        f"{arguments.kills} kills at steps {min(steps)} to {max(steps)}; {looked_at} checkpoints looked at, {damaged} damaged;"
    )
    print(f"the end is {'the same bytes' if same else 'DIFFERENT'} as without a kill")
    raise SystemExit(0 if same and not damaged else 1)


if __name__ == "__main__":
    main()
