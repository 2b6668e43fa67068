#!/usr/bin/env bash
# Trains the demo's dictionaries in one process and on several, and compares the two reports.
#
#     demo/distributed.sh [PROCESSES] [options of demo.py]
#
# By default on 2 processes, into runs/distributed (OUT). Each process traces half of the text, so
# the rows come in another order: figures are equal but for the noise of that order.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
n=${1:-2}
shift || true
out=${OUT:-runs/distributed}
python=${PYTHON:-python}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
"$python" "$here/demo.py" --save-dir "$out/one" --without-pages "$@"
"$python" -m torch.distributed.run --standalone --nproc-per-node "$n" \
    "$here/demo.py" --save-dir "$out/several" --without-pages "$@"
"$python" "$here/same_report.py" "$out/one" "$out/several"
