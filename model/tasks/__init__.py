"""What models learn and how they are judged, one file a task (`base.Task`)."""

from __future__ import annotations

from genrank.model.tasks.base import AnyTask
from genrank.model.tasks.ranking import Ranking
from genrank.model.tasks.retrieval import Retrieval
from genrank.schemas.errors import UserError
from genrank.schemas.schema import Schema

TASKS: dict[str, type[AnyTask]] = {task.name: task for task in (Ranking, Retrieval)}
"""By name; one entry a task."""


def make_task(name: str, schema: Schema) -> AnyTask:
    """The task of a model, over samples of a schema.

    Raises:
        UserError: there is no such task.
    """
    return task_type(name)(schema)


def task_type(name: str) -> type[AnyTask]:
    """A task's class by its name.

    Raises:
        UserError: there is none.
    """
    if name not in TASKS:
        raise UserError(f"there is no task {name!r}; there are {', '.join(TASKS)} (add one to model.tasks.TASKS)")
    return TASKS[name]


__all__ = ["TASKS", "AnyTask", "make_task", "task_type"]
