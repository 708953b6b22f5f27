"""The area under a probe's validation-loss curve."""

from collections.abc import Sequence

import numpy as np


def probe_auc(steps: Sequence, losses: Sequence, from_step: float | None = None) -> dict[str, float | list[float]]:
    """
    Area under the validation-loss curve of a probe, by the trapezoid rule over probe steps. Lower is faster
    adaptation. Source: huggingface.co/papers/2606.24752, "Probe".

    Args:
        steps (`Sequence[float]` or `Sequence[Sequence[float]]`): Probe steps at which the loss was measured,
            increasing. For a batch of curves, one list for all of them or one for each.
        losses (`Sequence[float]` or `Sequence[Sequence[float]]`): Validation losses in nats per token, one for each
            step; a list of such lists is a batch of curves, which may differ in length.
        from_step (`float`, *optional*): Leave out the part of each curve before this step. The loss at the start of a
            probe depends on what the model was trained on last; in short probes the descent from it is a large part
            of the area.

    Returns:
        `dict`: `probe_auc` in nats × steps; `mean_loss`, the area divided by the number of steps, in nats;
        `start_loss` and `final_loss`, the ends of the curve. Floats for one curve, lists for a batch.

    Raises:
        `ValueError`: Fewer than two points (from `from_step` on), lengths that differ, a value that is not finite,
            or steps that do not increase.

    Example:

    ```python
    >>> probe_auc(steps=[0, 10, 30], losses=[4.0, 2.0, 1.0])
    {'probe_auc': 60.0, 'mean_loss': 2.0, 'start_loss': 4.0, 'final_loss': 1.0}
    ```
    """
    if len(losses) == 0 or np.ndim(losses[0]) == 0:
        return _one_curve(steps, losses, from_step)
    if len(steps) == 0 or np.ndim(steps[0]) == 0:
        steps = [steps] * len(losses)
    if len(steps) != len(losses):
        raise ValueError(
            f"losses: {len(losses)} curves, but steps has {len(steps)}; give one list of steps or as many"
        )
    curves = [_one_curve(*curve, from_step) for curve in zip(steps, losses)]
    return {name: [curve[name] for curve in curves] for name in curves[0]}


def _one_curve(steps: Sequence[float], losses: Sequence[float], from_step: float | None) -> dict[str, float]:
    steps, losses = np.asarray(steps, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if len(steps) != len(losses):
        raise ValueError(f"losses: {len(losses)} values, but steps has {len(steps)}; give one loss for each step")
    if len(steps) < 2:
        raise ValueError(f"steps: {steps.tolist()} is too short; an area requires at least two points")
    for name, values in (("steps", steps), ("losses", losses)):
        if not np.isfinite(values).all():
            position = np.flatnonzero(~np.isfinite(values))[0]
            raise ValueError(f"{name}: {values[position]} at position {position} is not a finite number")
    if (np.diff(steps) <= 0).any():
        position = np.flatnonzero(np.diff(steps) <= 0)[0]
        raise ValueError(f"steps: {steps[position + 1]:g} comes after {steps[position]:g}; steps must increase")
    if from_step is not None:
        late = steps >= from_step
        if late.sum() < 2:
            raise ValueError(f"from_step: {from_step:g} leaves {late.sum()} of {len(steps)} points; an area needs two")
        steps, losses = steps[late], losses[late]
    area = float(np.trapezoid(losses, steps))
    return {
        "probe_auc": area,
        "mean_loss": area / float(steps[-1] - steps[0]),
        "start_loss": float(losses[0]),
        "final_loss": float(losses[-1]),
    }
