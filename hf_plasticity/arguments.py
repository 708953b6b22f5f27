"""Configuration from the command line and YAML: `--config file.yaml`, and flags that override it."""

import argparse
import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from .configs import find_config, installed_configs
from .errors import PlasticityError, one_line
from .records import PROVENANCE
from .settings import LENGTH, MACHINE, NUMERICS, OUTPUT


SECTIONS = {
    "other": "options",
    NUMERICS: "settings that affect the results",
    "probe": "the probe",
    LENGTH: "the length of the run",
    MACHINE: "the machine: these do not change the results, except for rounding",
    OUTPUT: "logs, files and the Hub",
}
# Settings of Transformers that `--help` also shows, with their roles.
COMMON = {"seed": NUMERICS, "bf16": NUMERICS, "output_dir": OUTPUT, "push_to_hub": OUTPUT, "hub_model_id": OUTPUT}


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """One line for each setting if it fits, with its default and without the aliases with hyphens."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=119)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return action.option_strings[0] if action.option_strings else super()._format_action_invocation(action)

    def _get_help_string(self, action: argparse.Action) -> str:
        # Where the default is None, the text of the setting says what that means.
        shown = action.default not in (None, argparse.SUPPRESS, "", []) and "efault" not in action.help
        return action.help + (" (default: %(default)s)" if shown else "")


class SettingsParser(HfArgumentParser):
    """
    `HfArgumentParser` with `--config`. A key of the file is a flag without its dashes, an unknown key is an error, and
    a flag on the command line overrides the file.

    Args:
        dataclass_types (`Sequence[type]`): The configurations. `--help` shows the fields with a role, and
            `--help_all` also those of Transformers.
        refused (`Sequence[str]`, *optional*): Settings that are not supported and not shown in the help.
        help (`Mapping[str, str]`, *optional*): Help texts that replace those of the dataclasses.
        **kwargs: Further arguments of `HfArgumentParser`.
    """

    def __init__(
        self,
        dataclass_types: Sequence[type],
        refused: Sequence[str] = (),
        help: Mapping[str, str] | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            dataclass_types,
            allow_abbrev=False,
            formatter_class=_HelpFormatter,
            usage="%(prog)s [--config FILE] [--SETTING VALUE ...]",
            **kwargs,
        )
        names = ", ".join(installed_configs())
        self.add_argument("--config", metavar="FILE", help=f"YAML file of settings, or an installed one: {names}.")
        self._roles = {
            one.name: one.metadata["role"]
            for kind in dataclass_types
            for one in dataclasses.fields(kind)
            if one.metadata.get("role")
        }
        for action in self._actions:
            action.help = (help or {}).get(action.dest, action.help)
            if action.type is string_to_bool:
                # `--disable_tqdm` without a value means true, for every flag.
                action.nargs, action.const = "?", True
            if action.dest in refused or (action.option_strings[0].startswith("--no_") and action.nargs == 0):
                action.help = argparse.SUPPRESS
        self.add_argument(
            "--help_all",
            action="store_true",
            default=argparse.SUPPRESS,
            help="Also show the settings of Transformers.",
        )

    def format_help(self, everything: bool = False) -> str:
        """The help text: the settings of this package by role, then those of Transformers if requested."""
        sections: dict[str, list[argparse.Action]] = {title: [] for title in SECTIONS.values()}
        sections["settings of Transformers"] = []
        for action in self._actions:
            role = (
                "probe"
                if "probe" in action.dest.split("_")
                else self._roles.get(action.dest) or COMMON.get(action.dest)
            )
            if role is not None or everything or action.dest in ("help", "config", "help_all"):
                default = "other" if action.dest in ("help", "config", "help_all") else None
                title = SECTIONS.get(role or default, "settings of Transformers")
                sections[title].append(action)
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        for title, actions in sections.items():
            formatter.start_section(title)
            formatter.add_arguments(actions)
            formatter.end_section()
        return formatter.format_help()

    def error(self, message: str) -> NoReturn:
        raise PlasticityError(message)

    def parse(self, arguments: Sequence[str], settings: Mapping[str, Any] | None = None) -> tuple[Any, ...]:
        """
        Args:
            arguments (`Sequence[str]`): The command line, without the program's name.
            settings (`Mapping[str, Any]`, *optional*): Settings that `--config` and flags override.

        Returns:
            `tuple`: One instance of each dataclass.

        Raises:
            [`PlasticityError`]: An unknown key or flag, or a value of the wrong type.
        """
        if "--help_all" in arguments:
            print(self.format_help(everything=True))
            self.exit()
        chosen, unknown = self.parse_known_args(arguments)
        if unknown:
            raise PlasticityError(self._unknown(unknown[0].lstrip("-").split("=")[0], f"argument '{unknown[0]}'"))
        inherited = self._as_arguments(settings or {}, "settings")
        from_file = self._as_arguments(_read(chosen.config), chosen.config) if chosen.config else []
        try:
            configs = self.parse_args_into_dataclasses([*inherited, *from_file, *arguments], look_for_args_file=False)
        except PlasticityError:
            raise
        except (ValueError, ImportError, OSError) as error:
            # The checks of TrainingArguments.
            raise PlasticityError(one_line(error)) from None
        return tuple(config for config in configs if not isinstance(config, argparse.Namespace))

    def _as_arguments(self, settings: Mapping[str, Any], origin: str) -> list[str]:
        arguments = []
        for name, value in settings.items():
            if name == PROVENANCE:
                continue
            if f"--{name}" not in self._option_string_actions or name in ("config", "help", "help_all"):
                raise PlasticityError(f"{origin}: {self._unknown(str(name), f'setting {name!r}')}")
            if isinstance(value, list):
                arguments += [f"--{name}", *map(str, value)]
            elif isinstance(value, dict):
                arguments += [f"--{name}", json.dumps(value)]
            elif value is not None:
                arguments += [f"--{name}={value}"]
            elif self.get_default(name) is not None:
                raise PlasticityError(f"{origin}: {name} has no value; leave it out for its default")
        return arguments

    def _unknown(self, name: str, shown: str) -> str:
        known = [option.lstrip("-") for option in self._option_string_actions]
        close = difflib.get_close_matches(name, known, n=1)
        return f"{shown} is unknown" + (f"; did you mean '{close[0]}'?" if close else "; see --help")


def _read(path: str) -> dict[str, Any]:
    """The settings in a YAML file."""
    file = find_config(path)
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PlasticityError(f"config: '{path}' is not valid YAML: {one_line(error)}") from None
    if not isinstance(settings, dict):
        raise PlasticityError(f"config: '{path}' is not a mapping of settings")
    return settings
