#!/usr/bin/env bash
# The daily DAG in Airflow itself, on a small synthetic marketplace, with the genrank of .venv: one day cold, the next day going
# on from it, then both built again by the backfill. `make airflow-test` installs both environments and runs this.
# Nothing listens on a port; Airflow's SQLite database, the logs and all outputs lie in .airflow/day.
set -euo pipefail
cd "$(dirname "$0")/../.."

here=$PWD/.airflow/day
genrank=$PWD/.venv/bin/genrank
first=2026-01-02 second=2026-01-03 never=2026-02-01

rm -rf "$here"
mkdir -p "$here"
export AIRFLOW_HOME=$here/airflow AIRFLOW__CORE__DAGS_FOLDER=$PWD/airflow_dags AIRFLOW__CORE__LOAD_EXAMPLES=False
export AIRFLOW__CORE__UNIT_TEST_MODE=False PYTHONPATH='' GENRANK_RETRIES=0
export AIRFLOW_VAR_GENRANK_COMMAND=$genrank AIRFLOW_VAR_GENRANK_ROOT=$here
export AIRFLOW_VAR_GENRANK_SCHEMA=$PWD/examples/marketplace/schema.py:schema
export AIRFLOW_VAR_GENRANK_BUILD_FLAGS='--engine local'
export AIRFLOW_VAR_GENRANK_TRAIN_FLAGS='--model mtgr-tiny --device cpu'
export AIRFLOW_VAR_GENRANK_EVALUATE_FLAGS='--device cpu --bootstrap 20'

fail() {
    echo "error: $1" >&2
    exit 1
}

airflow() { # airflow LOG ARGUMENT...: Airflow's own log is long, so it goes to a file, and here on failure only
    local log=$here/$1.log
    shift
    echo "airflow $*"
    .airflow/venv/bin/airflow "$@" >"$log" 2>&1 || {
        # What the tasks' commands printed, then Airflow's last words.
        sed -nE 's/^\S+ \[[a-z]+ *\] (.*) \[airflow\.task\.(hooks|operators)\..*/    \1/p' "$log" | tail -n 40
        tail -n 5 "$log" | cut -c1-400
        fail "airflow $* failed; its whole log is $log"
    }
}

expect() { # expect WHY FILE...: each file is there and not empty
    for file in "${@:2}"; do [ -s "$file" ] || fail "$1: $file is missing or empty"; done
}

"$genrank" world --out "$here/data" --users 60 --days 3 --seed 1
airflow migrate db migrate
airflow parse dags reserialize
airflow errors dags list-import-errors
airflow dags dags list
for dag in genrank_daily genrank_backfill; do grep -q "$dag" "$here/dags.log" || fail "Airflow doesn't list $dag"; done

airflow first dags test genrank_daily $first
expect "the first day is built" "$here/out/samples/dt=$first/manifest.json"
expect "the first day is learned from" "$here/runs/dt=$first/summary.json"
[ ! -e "$here/runs/next-day/dt=$first.json" ] || fail "the first day was evaluated by a model that doesn't exist"

airflow second dags test genrank_daily $second
expect "the second day is built" "$here/out/samples/dt=$second/manifest.json"
expect "the second day is scored by the first day's model" "$here/runs/next-day/dt=$second.json"
expect "the second day is learned from" "$here/runs/dt=$second/summary.json"
grep -q "runs/dt=$first\"" "$here/runs/dt=$second/config.json" || fail "the second day's run doesn't go on from the first's"
[ -n "$(find "$here/runs/dt=$second/checkpoints" -type f -size +0 -print -quit)" ] || fail "the second day's run has no checkpoint"

status=0
"$genrank" inputs --schema "$AIRFLOW_VAR_GENRANK_SCHEMA" --data "$here/data" --day $never 2>"$here/never.log" || status=$?
[ $status = 75 ] || fail "genrank inputs exits with $status, not 75, for a day that hasn't landed"

airflow backfill dags test genrank_backfill --conf "{\"from\": \"$first\", \"to\": \"$second\"}"
echo "$first and $second: built, published, scored the next day, learned from, and built again by the backfill"
