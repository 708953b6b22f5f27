"""Sources of documents: generated, from a folder, or streamed from the Hub."""

from ...errors import PlasticityError
from .base import Source, split_of
from .hub import HubSource
from .local import LocalSource
from .synthetic import SyntheticSource


__all__ = [
    "SOURCES",
    "HubSource",
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
