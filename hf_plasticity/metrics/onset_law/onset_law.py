"""Onset law: the relation between the onset of plasticity loss and the size of a model."""

import datasets
import evaluate

from .definition import onset_law
from .line import LEVEL


_DESCRIPTION = """
Fits the power law T = coefficient · P^exponent between a model's non-embedding parameters P and the task instance T
at which it begins to lose plasticity, with confidence intervals, a test of sublinearity, and the leave-one-out errors
of a power, a linear, a log-linear and an exponential law. Onsets may be intervals between two
probes, or lower bounds. Seeds of a size count as one point.
"""

_KWARGS_DESCRIPTION = """
Args:
    sizes (`list` of `float`): Non-embedding parameters of each model.
    onsets (`list` of `float`): The onset of each model in task instances.
    censored (`list` of `bool`): Which onsets are lower bounds; none by default.
    between (`list` of pairs of `float`): The probes before and after each onset. Exact onsets by default.
    level (`float`): Coverage of the intervals. Defaults to 0.95.
Returns:
    coefficient (`float`), exponent (`float`): The law.
    coefficient_interval, exponent_interval (pair of `float`): None with only two sizes.
    sublinear_p_value (`float`): From the one-sided test against an exponent of 1 or more; None with only two sizes.
    loo_errors (`dict` of `float`): Mean relative leave-one-out error of "power", "linear", "log-linear" and
        "exponential"; None if a fit without one of the sizes is impossible.
Examples:
    >>> import evaluate
    >>> onset_law = evaluate.load("onset_law")
    >>> law = onset_law.compute(sizes=[5e6, 27e6, 106e6, 314e6], onsets=[4.4, 18.5, 56.0, 138.0])
    >>> round(law["exponent"], 3), law["sublinear_p_value"] < 0.01
    (0.831, True)
    >>> min(law["loo_errors"], key=law["loo_errors"].get)
    'power'
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
class OnsetLaw(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        # float64: evaluate's usual float32 keeps seven digits, too few for areas that differ in the sixth.
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"sizes": number, "onsets": number}),
            reference_urls=["https://huggingface.co/papers/2606.24752"],
        )

    def _compute(self, sizes, onsets, censored=None, between=None, level=LEVEL):
        return onset_law(sizes, onsets, censored=censored, between=between, level=level)
