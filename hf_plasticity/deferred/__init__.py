"""The probes of a run with `--probe deferred`, made by another process while it trains or afterwards."""

from .config import DeferredConfig, parse_deferred
from .prober import probe_deferred


__all__ = ["DeferredConfig", "parse_deferred", "probe_deferred"]
