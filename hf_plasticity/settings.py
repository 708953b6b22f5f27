"""
The roles of settings. Every field of a configuration has its role in its metadata, and every list of settings in the
package is derived from the roles.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any


NUMERICS = "numerics"  # affects the results: two runs that differ in it are different runs
LENGTH = "length"  # the length of a run: a finished run can be extended
MACHINE = "machine"  # devices and distribution: the results agree up to rounding
OUTPUT = "output"  # logs, files, display and uploads
PRIVATE = "private"  # secrets: never written to a file
DERIVED = "derived"  # computed from the other settings for this machine: not written to config.yaml
ROLES = (NUMERICS, LENGTH, MACHINE, OUTPUT, PRIVATE, DERIVED)


class _Metadata(dict):
    """
    Metadata of a field. `HfArgumentParser` passes every listed key to `add_argument`, which does not accept roles
    (seen in transformers 5.23.0), so the role can be looked up but is not listed.
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
        known (`Mapping[str, str]`, *optional*): Roles of fields that are defined in another library. A field without
            a role that is not listed here is treated as numerics.

    Returns:
        `dict[str, str]`: From the field's name to its role.
    """
    known = known or {}
    return {one.name: one.metadata.get("role") or known.get(one.name, NUMERICS) for one in dataclasses.fields(config)}
