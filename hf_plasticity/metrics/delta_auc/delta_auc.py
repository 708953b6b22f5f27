"""ΔAUC: the change of a probe's area relative to the probe after cycle 1."""

import datasets
import evaluate
import numpy as np

from .definition import delta_auc


_DESCRIPTION = """
The change of a plasticity probe's area under the loss curve relative to the probe after cycle 1, in per cent:
100 · (AUC_k / AUC_1 − 1). It is negative while transfer helps, and rises when plasticity is lost.
"""

_KWARGS_DESCRIPTION = """
Args:
    aucs (`float` or `list` of `float`): AUC_k, one or many.
    reference (`float` or `list` of `float`): AUC_1, one for all of `aucs` or one for each.
Returns:
    delta_auc (`float` or `list` of `float`): Per cent, in the shape of `aucs`.
Examples:
    >>> import evaluate
    >>> delta_auc = evaluate.load("delta_auc")
    >>> delta_auc.compute(aucs=[950.0, 1000.0, 1100.0], reference=1000.0)
    {'delta_auc': [-5.0, 0.0, 10.0]}
    >>> delta_auc.compute(aucs=950.0, reference=1000.0)
    {'delta_auc': -5.0}
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
class DeltaAUC(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        # float64: evaluate's usual float32 keeps seven digits, too few for areas that differ in the sixth.
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"aucs": number}),
            reference_urls=["https://huggingface.co/papers/2606.24752"],
        )

    def compute(self, *, aucs=None, **kwargs):
        """Compute the metric for one area or for many."""
        if aucs is None or np.ndim(aucs) > 0:
            return super().compute(aucs=aucs, **kwargs)
        return {"delta_auc": super().compute(aucs=[aucs], **kwargs)["delta_auc"][0]}

    def _compute(self, aucs, reference, **other_inputs):
        # evaluate.combine passes the inputs of all modules to each; those of other modules are ignored.
        return {"delta_auc": delta_auc(aucs, reference)}
