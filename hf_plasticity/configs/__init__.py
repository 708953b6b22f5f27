"""The configurations that are installed with the package, by name."""

from pathlib import Path

from ..errors import PlasticityError


FOLDER = Path(__file__).parent


def find_config(name: str, folder: str = "") -> Path:
    """
    A YAML file by its path, or an installed configuration by its name.

    Args:
        name (`str`): A path such as `my.yaml`, or a name such as `micro`.
        folder (`str`, *optional*, defaults to `""`): `"accelerate"` for Accelerate's configurations.

    Raises:
        [`PlasticityError`]: There is neither.
    """
    if Path(name).is_file():
        return Path(name)
    installed = FOLDER / folder / f"{name}.yaml"
    if "/" not in name and installed.is_file():
        return installed
    names = ", ".join(installed_configs(folder))
    setting = "accelerate_config" if folder else "config"
    raise PlasticityError(f"{setting}: '{name}' is neither a file nor an installed configuration ({names})")


def installed_configs(folder: str = "") -> list[str]:
    """
    The names of the installed configurations.

    Args:
        folder (`str`, *optional*, defaults to `""`): `"accelerate"` for Accelerate's configurations.
    """
    return sorted(path.stem for path in (FOLDER / folder).glob("*.yaml"))
