#!/usr/bin/env bash
# Makes a virtual environment for each peer under $PEERS (.cache/peers), from the package index alone.
# usage: setup.sh [sparsify] [saelens] [dl] [circuit-tracer]
set -euo pipefail
cd "$(dirname "$0")/../.."
PEERS=${PEERS:-.cache/peers}
TORCH=${TORCH:-torch==2.13.0}
for peer in "${@:-sparsify}"; do
    python3 -m venv "$PEERS/$peer"
    pip="$PEERS/$peer/bin/python -m pip install --quiet --disable-pip-version-check"
    $pip "$TORCH"
    case $peer in
        sparsify) $pip eai-sparsify==1.3.3 zstandard ;;
        circuit-tracer) $pip circuit-tracer==0.5.0 nnsight==0.6.1 'transformer-lens>=2.16,<3' ;;
        saelens) $pip sae-lens==6.54.12 ;;
        dl)
            $pip nnsight==0.8.1 einops datasets transformers zstandard wandb pandas plotly tqdm
            $pip --no-deps dictionary-learning==0.1.0 circuitsvis
            ;;
    esac
done
