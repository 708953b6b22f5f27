"""The control for regularizers: another weight decay in training, but not in the probe."""

from dataclasses import dataclass
from typing import ClassVar

from ..errors import PlasticityError
from .base import Mitigation, argument
from .search import LogUniform


@dataclass(eq=False, kw_only=True)
class WeightDecay(Mitigation):
    """
    AdamW with another weight decay in training; the weight decay of probes does not change.

    w ← (1 − η λ) w − η·update, on the matrices and embeddings that the optimizer decays.

    Reference: Loshchilov & Hutter 2019 (huggingface.co/papers/1711.05101). More weight decay makes language models
    more plastic (huggingface.co/papers/2602.11137), so it is the control for every regularizer.

    Relation: `--weight_decay` also changes the probe, because its default is that of training.

    Cost: none.

    Limits: requires an optimizer with decoupled weight decay whose parameter groups separate matrices from the rest,
    as the Trainer's do.

    Args:
        weight_decay (`float`, *optional*, defaults to 0.3):
            λ; chosen here, between the usual 0.1 and 1.
    """

    name: ClassVar[str] = "weight_decay"
    reference: ClassVar[str] = "Loshchilov & Hutter 2019, huggingface.co/papers/1711.05101"
    replaces_weight_decay: ClassVar[bool] = True

    weight_decay: float = argument(
        0.3, "λ in training; that of the probe does not change", "chosen here (try 0.1, 0.3, 1)", LogUniform(0.1, 1)
    )

    def check(self) -> None:
        self.require(self.weight_decay >= 0, "weight_decay", "0 or more")

    def start(self) -> None:
        decayed = []
        for group in self.optimizer.param_groups:
            if not group.get("decoupled_weight_decay", False):
                raise PlasticityError(f"optim: {self.name} requires AdamW, whose weight decay is decoupled")
            matrices = {parameter.ndim >= 2 for parameter in group["params"]}
            if matrices == {True, False}:
                raise PlasticityError(
                    f"optimizer: {self.name} requires matrices in other parameter groups than biases and norms"
                )
            if matrices == {True}:
                decayed.append(group)
        self.check_trained({str(n): one for n, group in enumerate(decayed) for one in group["params"]})
        self.replace_weight_decay(decayed, self.weight_decay)

    def after_step(self, step: int) -> None:
        for group, configured in self._weight_decays:
            if configured != self.weight_decay:
                self.count("matrices", sum(parameter.numel() for parameter in group["params"]))
