"""Plasticity onset: the task instance after which a model learns more slowly than before."""

import datasets
import evaluate
import numpy as np

from .definition import plasticity_onset
from .rise import LEVEL


_DESCRIPTION = """
The task instance at which a continually trained model begins to learn a held-out language more slowly than it did
before, determined from the areas of its plasticity probes by a stated rule. A curve without a detected rise is
reported as censored, with its last task as a lower bound.
"""

_KWARGS_DESCRIPTION = """
Args:
    tasks (`list` of `float`, or a list of such lists): Task instances trained before each probe, increasing, without
        the untrained model. For a batch of curves, one list for all of them or one for each.
    aucs (`list` of `float`, or a list of such lists): The area of each probe; a list of such lists is a batch.
    rule (`str`): "rise" (default): a test whether the curve rises by more than noise; if it does, the onset is the
        minimum of the smoothed curve. "turning_point": the task of the smallest AUC, if a later one is larger.
        "zero_crossing": the task at which the AUC returns to the reference after the smallest AUC, interpolated.
        "statistical": the first task after which every AUC is above the smallest earlier AUC by more than `z`
        standard errors of the difference.
    together (`bool`): Whether the curves of a batch are seeds of one configuration, with one onset. Defaults to False.
    level (`float`): For "rise": the rate of false alarms. Defaults to 0.05.
    reference (`float` or `list` of `float`): For "zero_crossing": the reference of ΔAUC; by default the curve's first.
    stderrs (`list` of `float`, or a list of such lists): For "statistical": the standard error of each AUC.
    z (`float`): For "statistical": the number of standard errors that are more than noise. Defaults to 3.
Returns:
    plasticity_onset (`float` or `list` of `float`): The onset, in task instances; the last task if censored.
    censored (`bool` or `list` of `bool`): No onset was found: the onset is a lower bound.
    at_first_probe (`bool` or `list` of `bool`): The onset is the first probed task, or earlier.
    between (pair of `float`, or a list): The probes before and after the onset.
    interval (pair of `float`, or a list): For "rise": the 95% interval of the onset; None without an onset.
    p_value (`float` or a list): For "rise": the p-value of the test.
    detectable_rise (`float` or a list): For "rise": the steady rise that is found in 80% of cases, in percent.
Examples:
    >>> import evaluate
    >>> plasticity_onset = evaluate.load("plasticity_onset")
    >>> seeds = [[100.0, 90.0, 99.0], [101.0, 91.2, 99.8]]
    >>> onset = plasticity_onset.compute(tasks=[8, 16, 24], aucs=seeds, together=True)
    >>> onset["plasticity_onset"], onset["censored"], onset["between"]
    (16.0, False, (8.0, 24.0))
    >>> plasticity_onset.compute(tasks=[8, 16, 24], aucs=[100.0, 90.0, 85.0], rule="turning_point")["censored"]
    True
"""

_CITATION = """\
@misc{hernandezgarcia2026plasticity,
    title={Can Scale Save Us From Plasticity Loss in Large Language Models?},
    author={Hernandez-Garcia and Figliolia and Millidge},
    year={2026},
    eprint={2606.24752},
    archivePrefix={arXiv}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class PlasticityOnset(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        # float64: evaluate's usual float32 keeps seven digits, too few for areas that differ in the sixth.
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=[
                datasets.Features({"tasks": number, "aucs": number}),
                datasets.Features({"tasks": datasets.Sequence(number), "aucs": datasets.Sequence(number)}),
            ],
            reference_urls=["https://huggingface.co/papers/2606.24752"],
        )

    def add_batch(self, *, tasks=None, aucs=None):
        """Add the points of one curve, or a batch of curves."""
        for name, values in (("tasks", tasks), ("aucs", aucs)):
            if values is None or len(values) == 0:
                raise ValueError(f"{name}: {values} has no point of a curve")
        if np.ndim(aucs[0]) > 0 and np.ndim(tasks[0]) == 0:
            tasks = [tasks] * len(aucs)
        # Checked here, because after an error of its own evaluate leaves its writer open with the features of this
        # call.
        if len(tasks) != len(aucs):
            raise ValueError(f"aucs: {len(aucs)} entries, but tasks has {len(tasks)}; give one for each")
        super().add_batch(tasks=tasks, aucs=aucs)

    def _compute(self, tasks, aucs, rule="rise", together=False, level=LEVEL, reference=None, stderrs=None, z=3.0):
        return plasticity_onset(tasks, aucs, rule, together, level, reference, stderrs, z)
