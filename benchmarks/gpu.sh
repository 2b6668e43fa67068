#!/usr/bin/env bash
# All that a GPU is asked: the tests there, the step beside one product and beside peers, and a whole job. About 5 minutes.
#
# usage: benchmarks/gpu.sh [WHEELS]
#
# Needs a Python ($PYTHON, python3) with PyTorch for CUDA and Triton. WHEELS is a folder of wheels for a machine without
# a package index: *.whl what this package needs and lacks there, sparsify/*.whl and dl/*.whl the peers.
# $PARTS names what is run: "ops cuda step job".
# Without a GPU all of it runs in small on the CPU, by Triton's interpreter: to know that the script works.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
PARTS=${PARTS:-ops cuda step job}
WHEELS=${1:-}
SITE=$(mktemp -d)
trap 'rm -rf "$SITE"' EXIT
export PYTHONPATH=$SITE/own:$PWD PYTHONUNBUFFERED=1 PEERS=${PEERS:-$SITE/peers}
OPS_TESTS=tests/ops JOB=
if "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    export TEST_DEVICE=${TEST_DEVICE:-cuda}
else
    export TEST_DEVICE=cpu TRITON_INTERPRET=1
    OPS_TESTS=tests/ops/test_triton.py JOB="--tokens 4096 --batch 512"
fi
put() { "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --disable-pip-version-check --target "$1" "${@:2}"; }

if [ -n "$WHEELS" ]; then
    put "$SITE/own" "$WHEELS"/*.whl || exit
    packages=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    for peer in sparsify dl; do
        [ -d "$WHEELS/$peer" ] || continue
        "$PYTHON" -m venv --without-pip "$PEERS/$peer"
        its=$("$PEERS/$peer/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
        put "$its" "$WHEELS/$peer"/*.whl
        # what the peer's wheels lack comes from ours, then from the machine's
        printf '%s\n' "$SITE/own" "$packages" > "$its/beside.pth"
    done
fi
failed=0
for part in $PARTS; do
    start=$SECONDS
    case $part in
        ops) timeout 150 "$PYTHON" -m pytest -q -n 8 -p no:cacheprovider -p no:benchmark $OPS_TESTS ;;
        cuda) timeout 200 "$PYTHON" -m pytest -q -n 8 -p no:cacheprovider -p no:benchmark tests/test_cuda.py tests/test_replay.py ;;
        step) timeout 240 "$PYTHON" benchmarks/step_cuda.py ;;
        job) timeout 120 "$PYTHON" benchmarks/job_cuda.py $JOB ;;
    esac || { failed=1; echo "gpu.sh: $part failed"; }
    echo "gpu.sh: $part took $((SECONDS - start)) s"
done
exit $failed
