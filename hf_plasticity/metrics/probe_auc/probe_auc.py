"""Probe AUC: how fast a model learns a new language."""

import datasets
import evaluate
import numpy as np

from .definition import probe_auc


_DESCRIPTION = """
The area under the validation-loss curve of a plasticity probe: a copy of a model is trained on a held-out
language, its validation loss is measured during this training, and the losses are integrated over the steps by the
trapezoid rule. Lower is faster adaptation.
"""

_KWARGS_DESCRIPTION = """
Args:
    steps (`list` of `float`, or a list of such lists): Probe steps at which the loss was measured, increasing. For a
        batch of curves, one list for all of them or one for each.
    losses (`list` of `float`, or a list of such lists): Validation losses in nats per token, one for each step; a
        list of such lists is a batch of curves.
    from_step (`float`, *optional*): Leave out the part of each curve before this step.
Returns:
    probe_auc (`float` or `list` of `float`): The area, in nats × steps.
    mean_loss (`float` or `list` of `float`): The area divided by the number of steps, in nats per token.
    start_loss (`float` or `list` of `float`): The first loss.
    final_loss (`float` or `list` of `float`): The last loss.
Examples:
    >>> import evaluate
    >>> probe_auc = evaluate.load("probe_auc")
    >>> probe_auc.compute(steps=[0, 10, 30], losses=[4.0, 2.0, 1.0])
    {'probe_auc': 60.0, 'mean_loss': 2.0, 'start_loss': 4.0, 'final_loss': 1.0}
    >>> probe_auc.compute(steps=[0, 10], losses=[[4.0, 2.0], [4.0, 3.0]])["probe_auc"]
    [30.0, 35.0]
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
class ProbeAUC(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        # float64: evaluate's usual float32 keeps seven digits of a loss, and neighboring areas differ in the sixth.
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=[
                datasets.Features({"steps": number, "losses": number}),
                datasets.Features({"steps": datasets.Sequence(number), "losses": datasets.Sequence(number)}),
            ],
            reference_urls=["https://huggingface.co/papers/2606.24752"],
        )

    def add_batch(self, *, steps=None, losses=None):
        """Add the points of one curve, or a batch of curves."""
        for name, values in (("steps", steps), ("losses", losses)):
            if values is None or len(values) == 0:
                raise ValueError(f"{name}: {values} has no point of a curve")
        if np.ndim(losses[0]) > 0 and np.ndim(steps[0]) == 0:
            steps = [steps] * len(losses)
        # Checked here, because after an error of its own evaluate leaves its writer open with the features of this
        # call.
        if len(steps) != len(losses):
            raise ValueError(f"losses: {len(losses)} entries, but steps has {len(steps)}; give one for each")
        super().add_batch(steps=steps, losses=losses)

    def _compute(self, steps, losses, from_step=None, **other_inputs):
        # evaluate.combine passes the inputs of all modules to each; those of other modules are ignored.
        return probe_auc(steps, losses, from_step)
