"""The settings of a diagnosis: measures and thresholds."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import PlasticityError


@dataclass(frozen=True)
class DiagnosticsConfig:
    """
    The settings of a diagnosis. Together with the blocks, they determine all of its numbers.

    Args:
        measures (`Sequence[str]`, *optional*): Names from `MEASURES`. By default the cheap ones, `DEFAULT_MEASURES`,
            and `REFERENCE_MEASURES` if a reference is given. A measure that is named here and not supported by the
            model raises an error; by default it is listed in `Diagnosis.not_measured`.
        batch_size (`int`, *optional*, defaults to `8`): Sequences in one forward pass.

        > Parameters that control units and heads

        tau (`float`, *optional*, defaults to `0.01`): A unit is dormant if its score is at most τ.
        min_context (`int`, *optional*): Queries with fewer visible keys are left out of the attention measures. By
            default 256, or half the context if it is under 512. In a layer with a sliding window, the context is the
            window.
        lazy_threshold (`float`, *optional*, defaults to `0.9`): A head is lazy above this share of H_max.
        collapsed_threshold (`float`, *optional*, defaults to `0.1`): A head is collapsed below this share of H_max.

        > Parameters that control ranks, gradients and curvature

        delta (`float`, *optional*, defaults to `0.01`): The share of the spectrum that srank and the approximate rank
            leave out.
        gradient_batch_size (`int`, *optional*, defaults to `1`): Sequences in a mini-batch B of the gradient
            measures; also the sequences in one backward pass.
        hessian_sequences (`int`, *optional*, defaults to `8`): The number of blocks on which the Hessian is
            computed; rounded down to full mini-batches, at least one.
        hessian_iterations (`int`, *optional*, defaults to `50`): Maximum steps of each power iteration.
        hessian_tolerance (`float`, *optional*, defaults to `1e-2`): Power iteration ends when
            ‖Hv − λv‖ ≤ tolerance·|λ|.
        seed (`int`, *optional*, defaults to `0`): Seed of the start vector of power iteration.

    Raises:
        [`PlasticityError`]: A count that is not positive, or a share outside [0, 1].
    """

    measures: Sequence[str] | None = None
    batch_size: int = 8
    tau: float = 0.01
    min_context: int | None = None
    lazy_threshold: float = 0.9
    collapsed_threshold: float = 0.1
    delta: float = 0.01
    gradient_batch_size: int = 1
    hessian_sequences: int = 8
    hessian_iterations: int = 50
    hessian_tolerance: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "gradient_batch_size", "hessian_sequences", "hessian_iterations"):
            if getattr(self, name) < 1:
                raise PlasticityError(f"{name}: {getattr(self, name)} is not a positive number")
        for name in ("lazy_threshold", "collapsed_threshold", "delta"):
            if not 0 <= getattr(self, name) <= 1:
                raise PlasticityError(f"{name}: {getattr(self, name)} is not a share between 0 and 1")
        for name in ("tau", "hessian_tolerance"):
            if getattr(self, name) < 0:
                raise PlasticityError(f"{name}: {getattr(self, name)} is negative; use 0 or more")
        if self.min_context is not None and self.min_context < 2:
            raise PlasticityError(f"min_context: {self.min_context} is too small; use 2 or more")
        if isinstance(self.measures, str):
            raise PlasticityError(f"measures: '{self.measures}' is a string; write a list, as in ['{self.measures}']")
