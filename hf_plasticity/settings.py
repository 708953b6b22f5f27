"""
The roles of settings. Every field of a configuration states its role once, in its metadata, and every list of settings
in the package is derived from the roles.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any


NUMERICS = "numerics"  # decides the results: two runs that differ in it are two different runs
LENGTH = "length"  # how long a run is: a finished run can be extended
MACHINE = "machine"  # what computes it and how it is distributed: the results agree up to rounding
OUTPUT = "output"  # what is logged, kept, shown and uploaded
PRIVATE = "private"  # secrets: never written to a file
DERIVED = "derived"  # computed from the other settings for this machine: not written to config.yaml
ROLES = (NUMERICS, LENGTH, MACHINE, OUTPUT, PRIVATE, DERIVED)


class _Metadata(dict):
    """
    Metadata of a field. `HfArgumentParser` passes every listed key to `add_argument`, which does not know roles (seen
    in transformers 5.23.0), so the role can be looked up but is not listed.
    """

    def __iter__(self) -> Iterator[str]:
        return (name for name in super().__iter__() if name != "role")

    def keys(self) -> list[str]:  # type: ignore[override]
        return list(self)


def setting(default: Any = None, *, help: str, role: str = NUMERICS, **metadata: Any) -> Any:
    """
    A field of a configuration dataclass.

    Args:
        default (`Any`, *optional*): Its default; give `default_factory` for a mutable one.
        help (`str`): One line for `--help`.
        role (`str`, *optional*, defaults to `"numerics"`): One of `ROLES`.
        **metadata: Further metadata of the field, and `default_factory`.
    """
    assert role in ROLES, role
    factory = metadata.pop("default_factory", None)
    default = {"default_factory": factory} if factory is not None else {"default": default}
    return dataclasses.field(**default, metadata=_Metadata(help=help, role=role, **metadata))


def roles_of(config: Any, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """
    The role of each setting of a configuration.

    Args:
        config (`type` or dataclass instance): The configuration.
        known (`Mapping[str, str]`, *optional*): Roles of fields that are defined in another library. A field that
            neither states a role nor is listed here counts as numerics.

    Returns:
        `dict[str, str]`: From the field's name to its role.
    """
    known = known or {}
    return {one.name: one.metadata.get("role") or known.get(one.name, NUMERICS) for one in dataclasses.fields(config)}
