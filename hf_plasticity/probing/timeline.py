"""Points of a training: steps, and the task instances and cycles that they make up."""

from dataclasses import dataclass

from ..errors import PlasticityError


UNITS = ("steps", "tasks", "cycles")


@dataclass
class Timeline:
    """
    Where in a training a number of optimizer steps lies.

    Args:
        task_steps (`int`, *optional*): Optimizer steps of a task instance, where training has them.
        tasks_per_cycle (`int`, *optional*): Task instances of a cycle, where training has them.
        tokens_per_step (`int`, *optional*): Training tokens in an optimizer step over all processes.
    """

    task_steps: int | None = None
    tasks_per_cycle: int | None = None
    tokens_per_step: int | None = None

    def position(self, step: int) -> dict[str, int | None]:
        """`cycle`, `task`, `step` and `tokens` after `step` optimizer steps; `None` for what there is none of."""
        task = step // self.task_steps if self.task_steps else None
        whole_cycle = task is not None and self.tasks_per_cycle and task % self.tasks_per_cycle == 0
        return {
            "cycle": task // self.tasks_per_cycle if whole_cycle else None,
            "task": task,
            "step": step,
            "tokens": step * self.tokens_per_step if self.tokens_per_step else None,
        }

    def describe(self, step: int) -> str:
        """`"cycle 3"`, or `"step 1000"` where training has no cycles."""
        cycle = self.position(step)["cycle"]
        return f"step {step}" if cycle is None else f"cycle {cycle}"

    def steps_between(self, every: int, unit: str) -> int:
        """
        Optimizer steps between two points.

        Args:
            every (`int`): How many units lie between them.
            unit (`str`): `"steps"`, `"tasks"` or `"cycles"`.

        Raises:
            [`PlasticityError`]: An unknown unit, a number that is not positive, or a training without such units.
        """
        if unit not in UNITS:
            raise PlasticityError(f"unit: '{unit}' is unknown; choose one of {', '.join(UNITS)}")
        if every < 1:
            raise PlasticityError(f"every: {every} is not a positive number of {unit}")
        if unit == "steps":
            return every
        if self.task_steps is None:
            raise PlasticityError(f"task_steps: needed to probe every {every} {unit}")
        if unit == "tasks":
            return every * self.task_steps
        if self.tasks_per_cycle is None:
            raise PlasticityError(f"tasks_per_cycle: needed to probe every {every} cycles")
        return every * self.task_steps * self.tasks_per_cycle
