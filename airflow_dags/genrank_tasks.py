"""What the DAGs share: their settings, and how a task's shell finds them. Airflow puts its DAG folder on the import path."""

from __future__ import annotations

import os
import shlex
from datetime import timedelta
from typing import Any

from airflow.sdk import Variable

BELOW_ROOT = {"schema": "schema.py:schema", "data": "data", "out": "out", "runs": "runs"}

DOC = """\
**Settings** are Airflow variables (or the environment's `AIRFLOW_VAR_...`), read when a task starts:
`genrank_command` (`genrank`), `genrank_root` (`/srv/genrank`), and below that root unless set: `genrank_schema` (`schema.py:schema`),
`genrank_data` (`data`), `genrank_out` (`out`), `genrank_runs` (`runs`); flags for a command: `genrank_inputs_flags` (`--marker _SUCCESS`),
`genrank_build_flags` (`--engine local`), `genrank_evaluate_flags`, `genrank_train_flags` (`--model mtgr-small --device cuda`).
`genrank_first_day`: where the very first run starts to learn; unset, it learns from its own days alone.
The environment's `GENRANK_RETRIES` (2) is read when the DAG is parsed.
"""


def setting(name: str) -> str:
    """A setting as one word of shell. Flags and the command may be several words: leave those unquoted where they are used."""
    default = {"command": "genrank"}.get(name, "")
    if name in BELOW_ROOT:
        default = os.path.join(Variable.get("genrank_root", default="/srv/genrank"), BELOW_ROOT[name])
    return shlex.quote(Variable.get(f"genrank_{name}", default=default))


def word(value: object) -> str:
    """A parameter of a run as one word of shell, whatever whoever triggered it gave."""
    return shlex.quote(str(value))


MACROS = {"setting": setting, "word": word}

ARGUMENTS: dict[str, Any] = {
    "owner": "genrank",
    "retries": int(os.environ.get("GENRANK_RETRIES", "2")),
    "retry_delay": timedelta(minutes=5),
    "retry_exponential_backoff": True,
}

SETTINGS = """\
set -euo pipefail
genrank={{ setting('command') }}
schema={{ setting('schema') }} data={{ setting('data') }} out={{ setting('out') }} runs={{ setting('runs') }}
"""

BUILD = """\
flags={{ setting('build_flags') }}
$genrank build --schema "$schema" --data "$data" --out "$out" --from "$day" --to "$day" $flags
"""

# `genrank train` writes summary.json when training is over. A run is named by its day and nothing else: a copy put aside
# (dt=2026-01-04.bak) is none.
EARLIER_RUN = """\
earlier=$(find "$runs" -mindepth 2 -maxdepth 2 -path '*/dt=*/summary.json' 2>/dev/null \
    | grep -oE '/dt=[0-9]{4}-[0-9]{2}-[0-9]{2}/summary[.]json$' | cut -c 5-14 | sort | awk -v day="$first" '$0 < day' | tail -n 1 || true)
"""

# A run is named by the last day it learned from. It goes on from the newest finished one and learns from every day since.
TRAIN = """\
flags={{ setting('train_flags') }}
start={{ setting('first_day') }}
if [ -n "$earlier" ]; then start=$(date --utc --date "$earlier + 1 day" +%F); fi
$genrank train --schema "$schema" --samples "$out" --dates "${start:-$first}:$day" --out "$runs/dt=$day" \
    ${earlier:+--from-checkpoint "$runs/dt=$earlier"} $flags
"""
