"""Where documents come from: generated, from a folder, or streamed from the Hub."""

from ...errors import PlasticityError
from .base import SPLITS, Source, split_of
from .hub import HubSource
from .local import LocalSource
from .synthetic import SYNTHETIC_LANGUAGES, SYNTHETIC_PROBE_LANGUAGE, SyntheticSource


__all__ = [
    "SOURCES",
    "SPLITS",
    "SYNTHETIC_LANGUAGES",
    "SYNTHETIC_PROBE_LANGUAGE",
    "LocalSource",
    "Source",
    "SyntheticSource",
    "source_class",
    "split_of",
]

SOURCES: dict[str, type[Source]] = {"synthetic": SyntheticSource, "local": LocalSource, "hub": HubSource}


def source_class(name: str) -> type[Source]:
    """
    The class of a source, which states its traits before any document is read.

    Raises:
        [`PlasticityError`]: There is no such source.
    """
    if name not in SOURCES:
        raise PlasticityError(f"source: '{name}' is not a source; choose one of {', '.join(SOURCES)}")
    return SOURCES[name]
