"""The largest eigenvalue of the Hessian, by power iteration."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ..errors import PlasticityError
from ..network import is_fsdp
from .config import DiagnosticsConfig
from .gradients import causal_lm_loss
from .measure import Measure


NAMES = ("hessian_largest_eigenvalue",)

Vector = list[torch.Tensor]


@dataclass
class Eigenvalue:
    """
    The result of power iteration.

    Args:
        value (`float`): The Rayleigh quotient v·Hv of the last unit vector v.
        residual (`float`): ‖Hv − value·v‖: there is an eigenvalue within this distance of `value`.
        radius (`float`): ‖Hv‖, which tends to the largest absolute value of an eigenvalue.
        iterations (`int`): Products with H.
        converged (`bool`): Whether the residual is below tolerance·|value|.
    """

    value: float
    residual: float
    radius: float
    iterations: int
    converged: bool


def power_iteration(
    product: Callable[[Vector], Vector], start: Vector, iterations: int, tolerance: float, shift: float = 0.0
) -> Eigenvalue:
    """
    The eigenvalue of H that is largest in absolute value after `shift` is added to all.

    Args:
        product (`Callable`): v ↦ Hv for a symmetric H; vectors are lists of tensors.
        start (`list[torch.Tensor]`): A vector to start from, not orthogonal to the eigenvector (a random one).
        iterations (`int`): Maximum number of products.
        tolerance (`float`): Ends when ‖Hv − λv‖ ≤ tolerance·|λ|.
        shift (`float`, *optional*, defaults to `0.0`): Iterates on H + shift·I; the result is about H.
    """
    v = _scaled(start, 1 / _norm(start))
    for iteration in range(1, iterations + 1):
        hv = product(v)
        value = _dot(v, hv)
        residual = _norm([h - value * x for h, x in zip(hv, v)])
        converged = residual <= tolerance * abs(value)
        found = Eigenvalue(value, residual, _norm(hv), iteration, converged)
        following = [h + shift * x for h, x in zip(hv, v)]
        if converged or iteration == iterations or _norm(following) == 0:
            return found
        v = _scaled(following, 1 / _norm(following))
    raise AssertionError("at least one iteration")


def largest_eigenvalue(
    product: Callable[[Vector], Vector], start: Vector, iterations: int, tolerance: float
) -> Eigenvalue:
    """
    The algebraically largest eigenvalue of H.

    Plain power iteration finds the eigenvalue with the largest absolute value. If that is negative, or if its sign is
    uncertain because the residual is large (two of equal size and opposite sign never converge), a second run on H +
    ρI, whose eigenvalues are all positive, finds the largest. Every Rayleigh quotient is a lower bound, so the larger
    of the two is returned.
    """
    first = power_iteration(product, start, iterations, tolerance)
    if first.value >= 0 and first.residual <= first.value / 2:
        return first
    second = power_iteration(product, start, iterations, tolerance, shift=first.radius)
    best = max(first, second, key=lambda found: found.value)
    return Eigenvalue(best.value, best.residual, best.radius, first.iterations + second.iterations, best.converged)


def measure_curvature(
    model: PreTrainedModel,
    config: DiagnosticsConfig,
    batches: Callable[[], Iterable[tuple[torch.Tensor, torch.Tensor | None]]],
    targets: float | None = None,
) -> dict[str, Measure]:
    """
    `hessian_largest_eigenvalue`: λ_max of the Hessian of the loss L of `measure_gradients`, on the first
    `hessian_sequences` blocks, with respect to all parameters that require a gradient, by power iteration with exact
    Hessian-vector products (the "sharpness"; PyHessian, huggingface.co/papers/1912.07145; for curvature and plasticity
    huggingface.co/papers/2312.00246).

    Any real number. `residual`, `iterations` and `converged` are also recorded. Without convergence it is a lower
    bound. Cost: each product is a backward pass through a backward pass, about three times a gradient;
    `hessian_iterations` products at most, or twice that if the largest eigenvalue is not the largest in absolute
    value. Memory: eager attention and two graphs of a mini-batch, four copies of the parameters.

    Raises:
        [`PlasticityError`]: No parameter requires a gradient.
    """
    if is_fsdp(model):
        gap = "FSDP's sharded parameters do not support a second backward pass"
        return {NAMES[0]: Measure(None, gap=gap)}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise PlasticityError("measures: the Hessian requires parameters with requires_grad=True; all are frozen")
    # Fused attention kernels cannot be differentiated twice.
    model.set_attn_implementation("eager")

    def product(v: Vector) -> Vector:
        total, count = [torch.zeros_like(x) for x in v], 0
        for input_ids, mask in batches():
            loss = causal_lm_loss(model, input_ids, mask, targets)
            gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
            along = sum((gradient * x).sum() for gradient, x in zip(gradients, v))
            for sums, part in zip(total, torch.autograd.grad(along, parameters, materialize_grads=True)):
                sums += part
            count += 1
        return [sums / count for sums in total]

    generator = torch.Generator().manual_seed(config.seed)
    start = [
        torch.randn(parameter.shape, generator=generator).to(parameter.device, parameter.dtype)
        for parameter in parameters
    ]
    with torch.enable_grad():
        found = largest_eigenvalue(product, start, config.hessian_iterations, config.hessian_tolerance)
    detail = {"residual": found.residual, "iterations": found.iterations, "converged": found.converged}
    return {NAMES[0]: Measure(found.value, detail=detail)}


def _dot(a: Vector, b: Vector) -> float:
    return math.fsum((x.float() * y.float()).sum().item() for x, y in zip(a, b))


def _norm(a: Vector) -> float:
    return _dot(a, a) ** 0.5


def _scaled(a: Vector, factor: float) -> Vector:
    return [factor * x for x in a]
