"""
The metrics of the study as `evaluate` modules, each in a folder with the layout of a Space on the Hub.

A folder `<name>` has `definition.py`, the definition in NumPy (and SciPy) that the rest of this package uses, and
`<name>.py`, the `evaluate.Metric` around it. They are separate files because importing `evaluate` imports Transformers
and torch, which are not required to read records.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import PlasticityError


if TYPE_CHECKING:
    from evaluate import EvaluationModule


METRICS = ("probe_auc", "delta_auc", "bits_per_byte", "plasticity_onset", "onset_law")


def load(name: str) -> "EvaluationModule":
    """
    Load a metric of this package. Nothing is downloaded. Inputs are kept in memory, because the cache file of
    `evaluate` is shared by all processes of a user, and its lock makes a second process wait (seen in evaluate 0.4.6).

    Args:
        name (`str`): One of `METRICS`.

    Returns:
        `evaluate.EvaluationModule`: Ready for `compute`, `add`, `add_batch` and `evaluate.combine`.

    Raises:
        [`PlasticityError`]: There is no such metric.

    Example:

    ```python
    >>> from hf_plasticity.metrics import load

    >>> load("delta_auc").compute(aucs=[950.0, 1100.0], reference=1000.0)["delta_auc"]
    [-5.0, 10.0]
    ```
    """
    if name not in METRICS:
        raise PlasticityError(f"metric: '{name}' is not a metric of this package; choose one of {', '.join(METRICS)}")
    import evaluate

    return evaluate.load(str(Path(__file__).with_name(name)), keep_in_memory=True)
