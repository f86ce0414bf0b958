"""The backfill: build the samples of many days, one task a day, then learn from them in one run. Started by hand, with two dates.

For a new schema, a repaired source or the very first model. Days are independent of each other, so they may be built in any order.
"""

from __future__ import annotations

from datetime import date, timedelta

import genrank_tasks as tasks
import pendulum
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, Param, task

DOC = """\
### Many days: `days` → one `build` a day → `train`, if asked for

`airflow dags trigger genrank_backfill --conf '{"from": "2026-01-01", "to": "2026-01-07", "train": true}'`

Two builds run at a time and take turns at the output folder: the second waits for the first. A day that fails doesn't stop the others; clear it alone. `train` waits until all are published. It goes on from the newest finished
run before `from`; its own run is named by `to`, and `genrank_daily` goes on from there.

"""

TRAIN = """\
{% if not params['train'] %}echo "samples only: train is false"; exit 99{% endif %}

first={{ word(params['from']) }} day={{ word(params['to']) }}
"""

with DAG(
    dag_id="genrank_backfill",
    description="Samples of many days, and one model that has learned from all of them",
    doc_md=DOC + tasks.DOC,
    schedule=None,
    start_date=pendulum.datetime(2020, 1, 1, tz="UTC"),
    max_active_runs=1,
    default_args=tasks.ARGUMENTS,
    user_defined_macros=tasks.MACROS,
    params={
        "from": Param(type="string", format="date", description="First day"),
        "to": Param(type="string", format="date", description="Last day"),
        "train": Param(False, type="boolean", description="Learn from the days once all are built"),
    },
    tags=["genrank"],
):

    @task
    def days(params: dict[str, str] | None = None) -> list[dict[str, str]]:
        """One environment a day, from the first to the last."""
        assert params is not None  # Airflow fills it in
        first, last = date.fromisoformat(params["from"]), date.fromisoformat(params["to"])
        if last < first:
            raise ValueError(f"from {first} is after to {last}")
        return [{"day": (first + timedelta(days=i)).isoformat()} for i in range((last - first).days + 1)]

    build = BashOperator.partial(
        task_id="build",
        bash_command=tasks.SETTINGS + tasks.BUILD,
        append_env=True,
        execution_timeout=timedelta(hours=8),
        max_active_tis_per_dag=2,
        map_index_template="{{ task.env['day'] }}",
    ).expand(env=days())
    train = BashOperator(
        task_id="train",
        bash_command=tasks.SETTINGS + TRAIN + tasks.EARLIER_RUN + tasks.TRAIN,
        execution_timeout=timedelta(hours=48),
    )
    build >> train
