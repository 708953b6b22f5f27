"""All mitigations by name, and how settings become mitigations."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import PlasticityError
from .active_forgetting import ActiveForgetting
from .base import Mitigation
from .cbp import CBP
from .fire import Fire
from .full_reset import FullReset
from .grama import Grama
from .head_reset import HeadReset
from .l2_init import L2Init
from .random_reset import RandomReset
from .redo import Redo
from .shrink_perturb import ShrinkPerturb
from .snr import SNR
from .spectral import Spectral
from .swr import SWR
from .weight_clip import WeightClip
from .weight_decay import WeightDecay


# In the order of the tables of cost in docs/mitigations.md.
MITIGATIONS: dict[str, type[Mitigation]] = {
    one.name: one
    for one in (
        WeightDecay,
        L2Init,
        ShrinkPerturb,
        WeightClip,
        FullReset,
        Redo,
        RandomReset,
        CBP,
        SWR,
        HeadReset,
        Grama,
        Fire,
        Spectral,
        ActiveForgetting,
        SNR,
    )
}


def make_mitigation(name: str, arguments: Mapping[str, Any] | None = None) -> Mitigation:
    """
    A mitigation from its name.

    Args:
        name (`str`): A key of `MITIGATIONS`.
        arguments (`Mapping[str, Any]`, *optional*): Its arguments; missing ones have their defaults.

    Raises:
        [`PlasticityError`]: An unknown name or argument, or an invalid value.
    """
    if name not in MITIGATIONS:
        raise PlasticityError(f"mitigation: '{name}' is unknown; choose from {', '.join(MITIGATIONS)}")
    known = [one.name for one in dataclasses.fields(MITIGATIONS[name])]
    for argument in arguments or {}:
        if argument not in known:
            right = f"choose from {', '.join(known)}" if known else "it takes none"
            raise PlasticityError(f"mitigation_args: {name} has no argument '{argument}'; {right}")
    return MITIGATIONS[name](**(arguments or {}))


def make_mitigations(names: Sequence[str], arguments: Mapping[str, Any] | None = None) -> list[Mitigation]:
    """
    Several mitigations from settings.

    Args:
        names (`Sequence[str]`): Keys of `MITIGATIONS`, in the order in which they act.
        arguments (`Mapping[str, Any]`, *optional*): The arguments by name, `{"redo": {"threshold": 0.1}}`; those of a
            single mitigation may be given directly, `{"threshold": 0.1}`.

    Raises:
        [`PlasticityError`]: As [`make_mitigation`]; a name twice, or arguments of a mitigation that is not named.
    """
    arguments = arguments or {}
    by_name = all(isinstance(value, Mapping) for value in arguments.values())
    if len(names) == 1 and not (by_name and arguments):
        arguments = {names[0]: arguments}
    for name, value in arguments.items():
        if name not in names or not isinstance(value, Mapping):
            raise PlasticityError(
                f"mitigation_args: '{name}' is not a mitigation of this run ({', '.join(names) or 'there is none'}); "
                'write the arguments of each under its name, as in {"redo": {"threshold": 0.1}}'
            )
    mitigations = [make_mitigation(name, arguments.get(name)) for name in names]
    check_together(mitigations)
    return mitigations


def check_together(mitigations: Sequence[Mitigation]) -> None:
    """
    Check that mitigations can act in one training.

    Raises:
        [`PlasticityError`]: Two have the same name, replace the weight decay, or correct the same moments.
    """
    names = [one.name for one in mitigations]
    for name in names:
        if names.count(name) > 1:
            raise PlasticityError(f"mitigation: '{name}' is given twice")
    exact = [one.name for one in mitigations if getattr(one, "exact_moments", False)]
    if len(exact) > 1:
        raise PlasticityError(
            f"mitigation_args: exact_moments of {' and '.join(exact)} would correct the same updates twice; set it "
            "for one of them"
        )
    decays = [one.name for one in mitigations if one.replaces_weight_decay]
    if len(decays) > 1:
        raise PlasticityError(f"mitigation: {' and '.join(decays)} both replace the weight decay; use one of them")
