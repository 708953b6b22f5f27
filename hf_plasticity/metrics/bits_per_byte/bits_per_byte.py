"""Bits per byte: the loss of a language model, independent of its tokenizer."""

import datasets
import evaluate
import numpy as np

from .definition import bits_per_byte


_DESCRIPTION = """
The bits per UTF-8 byte of a text that a language model requires, from its loss in nats per token:
loss · tokens / (ln 2 · bytes). Lower is better. It can compare models with different tokenizers.
"""

_KWARGS_DESCRIPTION = """
Args:
    losses (`float` or `list` of `float`): Mean cross-entropy in nats per predicted token, one or many.
    num_tokens (`float` or `list` of `float`): Tokens over which the mean was taken, one number for all losses or one
    each.
    num_bytes (`float` or `list` of `float`): UTF-8 bytes of the text that these tokens spell, likewise.
Returns:
    bits_per_byte (`float` or `list` of `float`): In the shape of `losses`.
Examples:
    >>> import evaluate
    >>> bits_per_byte = evaluate.load("bits_per_byte")
    >>> result = bits_per_byte.compute(losses=2.0, num_tokens=1000, num_bytes=4000)
    >>> round(result["bits_per_byte"], 6)
    0.721348
"""

_CITATION = """\
@misc{gao2021pile,
    title={The Pile: An 800GB Dataset of Diverse Text for Language Modeling},
    author={Gao, Leo and others},
    year={2021},
    eprint={2101.00027},
    archivePrefix={arXiv}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class BitsPerByte(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        # float64: evaluate's usual float32 keeps seven digits, too few for areas that differ in the sixth.
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"losses": number}),
            reference_urls=["https://huggingface.co/papers/2101.00027"],
        )

    def compute(self, *, losses=None, **kwargs):
        """Compute the metric for one loss or for many."""
        if losses is None or np.ndim(losses) > 0:
            return super().compute(losses=losses, **kwargs)
        return {"bits_per_byte": super().compute(losses=[losses], **kwargs)["bits_per_byte"][0]}

    def _compute(self, losses, num_tokens, num_bytes, **other_inputs):
        # evaluate.combine passes the inputs of all modules to each; those of other modules are ignored.
        return {"bits_per_byte": bits_per_byte(losses, num_tokens, num_bytes)}
