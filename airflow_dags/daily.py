"""The daily DAG: when a day's logs have landed, build and publish its samples, score the standing model on them, train on them.

Nothing of genrank is imported: Airflow needs neither Spark nor torch, only a `genrank` command that has them.
"""

from __future__ import annotations

from datetime import timedelta

import genrank_tasks as tasks
import pendulum
from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.sensors.bash import BashSensor
from airflow.sdk import DAG, CronDataIntervalTimetable

DOC = """\
### One day: `wait_for_inputs` → `build` → `evaluate` → `train`

| task | what it does | if it fails |
|---|---|---|
| `wait_for_inputs` | asks `genrank inputs` every five minutes whether each source's day has landed | after a day of waiting; the log names the sources that never came |
| `build` | builds the day's samples in staging, **gates** them, **publishes** them by writing the day's manifest | the day stays unpublished (or as it was); the log names the expectation and the column |
| `evaluate` | scores the day with the model of the day before, which has not seen it (progressive validation); skipped on the first day | nothing is trained on a day that can't be scored |
| `train` | goes on from the newest finished run and trains on every day since, so that the next day makes up for a failed training | the next day starts from the same checkpoint; if a day between was never built, it says so: build it with `genrank_backfill` |

Every task may be cleared and run again: publishing switches a day as a whole, and a killed training resumes.

**Days gone by**: `genrank_backfill` builds many days at once. To repeat the whole of this DAG day after day:
`airflow backfill create --dag-id genrank_daily --from-date 2026-01-01 --to-date 2026-01-07 --reprocess-behavior completed`

"""

NOT_YET = 75  # `genrank inputs`: a source's day has not landed; any other failure is one that waiting won't mend

DAY = "day={{ ds }} first={{ ds }}\n"

WAIT = """\
flags={{ setting('inputs_flags') }}
$genrank inputs --schema "$schema" --data "$data" --day "$day" $flags
"""

EVALUATE = """\
flags={{ setting('evaluate_flags') }}
if [ -z "$earlier" ]; then echo "no finished run of an earlier day under $runs: nothing to evaluate"; exit 99; fi
$genrank evaluate --run "$runs/dt=$earlier" --samples "$out" --dates "$day" --out "$runs/next-day/dt=$day.json" $flags
"""

with DAG(
    dag_id="genrank_daily",
    description="Samples of the day, the standing model's score on them, the model that has learned from them",
    doc_md=DOC + tasks.DOC,
    # `ds` is the day the data is of, and the run starts when that day is over.
    schedule=CronDataIntervalTimetable("0 0 * * *", timezone="UTC"),
    start_date=pendulum.datetime(2020, 1, 1, tz="UTC"),
    # A DAG switched on today doesn't run through the years; days gone by are asked for (see DOC).
    catchup=False,
    # A day learns from the checkpoint of the day before.
    max_active_runs=1,
    default_args=tasks.ARGUMENTS,
    user_defined_macros=tasks.MACROS,
    tags=["genrank"],
):
    wait = BashSensor(
        task_id="wait_for_inputs",
        bash_command=tasks.SETTINGS + DAY + WAIT,
        retry_exit_code=NOT_YET,
        mode="reschedule",  # no worker slot is held while the day is awaited
        poke_interval=timedelta(minutes=5),
        timeout=timedelta(hours=24),
    )
    build = BashOperator(
        task_id="build",
        bash_command=tasks.SETTINGS + DAY + tasks.BUILD,
        execution_timeout=timedelta(hours=8),
    )
    evaluate = BashOperator(
        task_id="evaluate",
        bash_command=tasks.SETTINGS + DAY + tasks.EARLIER_RUN + EVALUATE,
        execution_timeout=timedelta(hours=4),
    )
    train = BashOperator(
        task_id="train",
        bash_command=tasks.SETTINGS + DAY + tasks.EARLIER_RUN + tasks.TRAIN,
        execution_timeout=timedelta(hours=16),
        trigger_rule="none_failed",  # on the first day `evaluate` is skipped
    )
    wait >> build >> evaluate >> train
