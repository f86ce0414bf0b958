#!/usr/bin/env bash
# Resolve pyproject.toml into the fully pinned locks beside this file. Run by `make lock`, which puts uv on PATH.
# Pins that still satisfy pyproject.toml stay; `make lock UPGRADE=yes` moves every pin to its newest release.
set -euo pipefail
cd "$(dirname "$0")/.."

compile() { # compile LOCK WHAT...
    uv pip compile --quiet --system-certs ${UPGRADE:+--upgrade} --python-version 3.11 --python-platform linux \
        --custom-compile-command "make lock" --output-file "requirements/$1.txt" "${@:2}" >/dev/null
    echo "requirements/$1.txt: $(grep -c == "requirements/$1.txt") packages"
}

# torchrec pins torchmetrics 1.0.3, which only its `metrics` module imports and genrank doesn't use.
unused=(torchmetrics)
# What a CPU build of torch does without. torch pins triton, so both locks hold the same one: the interpreter that
# tests the kernels is of the release that compiles them.
gpu_only=(fbgemm-gpu cuda-bindings cuda-toolkit nvidia-{cudnn-cu13,cusparselt-cu13,nccl-cu13,nvshmem-cu13})

everyone=(pyproject.toml --extra pipelines --extra train --extra serve --extra dev)
compile cuda "${everyone[@]}" --excludes <(printf '%s\n' "${unused[@]}")
compile cpu "${everyone[@]}" --extra cpu --excludes <(printf '%s\n' "${unused[@]}" "${gpu_only[@]}")
compile airflow --group airflow
