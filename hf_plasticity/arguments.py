"""Configuration from the command line and YAML: `--config file.yaml`, and flags that override it."""

import copy
import dataclasses
import difflib
import json
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from .errors import PlasticityError


# What a run writes into its config.yaml about itself; passed back as --config, it is not read.
PROVENANCE = "provenance"


class StudyArgumentParser(HfArgumentParser):
    """
    `HfArgumentParser` with `--config`. A key of the file is a flag without its dashes, an unknown one is an error, and
    a flag on the command line overrides it.
    """

    def __init__(self, dataclass_types: Sequence[type], **kwargs: Any):
        super().__init__(dataclass_types, allow_abbrev=False, **kwargs)
        self.add_argument("--config", metavar="FILE", help="YAML file of these settings; flags override it.")

    @staticmethod
    def _parse_dataclass_field(parser: ArgumentParser, field: dataclasses.Field) -> None:
        # The parser passes the metadata of a field to argparse, which knows nothing of roles.
        field = copy.copy(field)
        field.metadata = {name: value for name, value in field.metadata.items() if name != "role"}
        HfArgumentParser._parse_dataclass_field(parser, field)

    def error(self, message: str) -> NoReturn:
        raise PlasticityError(message)

    def parse(self, arguments: Sequence[str], settings: Mapping[str, Any] | None = None) -> tuple[Any, ...]:
        """
        Args:
            arguments (`Sequence[str]`): The command line, without the program's name.
            settings (`Mapping[str, Any]`, *optional*): What `--config` would hold; flags override it.

        Returns:
            `tuple`: One instance of each dataclass.

        Raises:
            [`PlasticityError`]: An unknown key or flag, or a value of the wrong type.
        """
        chosen, unknown = self.parse_known_args(arguments)
        if unknown:
            raise PlasticityError(self._unknown(unknown[0].lstrip("-").split("=")[0], f"argument '{unknown[0]}'"))
        settings = self._as_arguments(settings or {}, "settings")
        from_file = self._as_arguments(_read(chosen.config), chosen.config) if chosen.config else []
        try:
            *configs, _ = self.parse_args_into_dataclasses(
                [*settings, *from_file, *arguments], look_for_args_file=False
            )
        except PlasticityError:
            raise
        except ValueError as error:
            # Transformers' own checks of its arguments.
            raise PlasticityError(" ".join(str(error).split())) from None
        return tuple(configs)

    def _as_arguments(self, settings: Mapping[str, Any], origin: str) -> list[str]:
        arguments = []
        for name, value in settings.items():
            if name == PROVENANCE:
                continue
            if f"--{name}" not in self._option_string_actions or name in ("config", "help"):
                raise PlasticityError(f"{origin}: {self._unknown(str(name), f'setting {name!r}')}")
            if isinstance(value, list):
                arguments += [f"--{name}", *map(str, value)]
            elif isinstance(value, dict):
                arguments += [f"--{name}", json.dumps(value)]
            elif value is not None:
                arguments += [f"--{name}={value}"]
        return arguments

    def _unknown(self, name: str, shown: str) -> str:
        known = [option.lstrip("-") for option in self._option_string_actions]
        close = difflib.get_close_matches(name, known, n=1)
        return f"{shown} is unknown" + (f"; did you mean '{close[0]}'?" if close else "; see --help")


def _read(path: str) -> dict[str, Any]:
    """The settings in a YAML file."""
    file = Path(path)
    if not file.is_file():
        raise PlasticityError(f"config: there is no file '{path}'")
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PlasticityError(f"config: '{path}' is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict):
        raise PlasticityError(f"config: '{path}' is not a mapping of settings")
    return settings
