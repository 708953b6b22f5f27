"""The change of the AUC of a probe relative to the probe after cycle 1."""

from collections.abc import Sequence

import numpy as np


def delta_auc(aucs: float | Sequence[float], reference: float | Sequence[float]) -> float | list[float]:
    """
    The change of a probe's area relative to the probe after cycle 1, in per cent: 100 · (AUC_k / AUC_1 − 1). It is
    negative while transfer helps, and rises when plasticity is lost. Source: huggingface.co/papers/2606.24752,
    "Probe".

    Args:
        aucs (`float` or `Sequence[float]`): AUC_k, one or many.
        reference (`float` or `Sequence[float]`): AUC_1, one for all of `aucs` or one for each.

    Returns:
        `float` or `list[float]`: Per cent; a list if `aucs` or `reference` is a list.

    Raises:
        `ValueError`: A value that is not finite, a reference that is not positive, or lengths that differ.

    Example:

    ```python
    >>> delta_auc([950.0, 1000.0, 1100.0], reference=1000.0)
    [-5.0, 0.0, 10.0]
    ```
    """
    aucs, reference = np.asarray(aucs, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    for name, values in (("aucs", aucs), ("reference", reference)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: {values[~np.isfinite(values)].flat[0]} is not a finite number")
    if (reference <= 0).any():
        raise ValueError(f"reference: {reference[reference <= 0].flat[0]:g} is not a positive area")
    if aucs.ndim and reference.ndim and aucs.shape != reference.shape:
        raise ValueError(f"reference: {len(reference)} values, but aucs has {len(aucs)}; give one, or one for each")
    return (100 * (aucs - reference) / reference).tolist()
