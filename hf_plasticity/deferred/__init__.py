"""Deferred probes: a separate process probes the checkpoints of a run, during the run or afterwards."""

from .config import DeferredConfig, parse_deferred
from .prober import probe_deferred


__all__ = ["DeferredConfig", "parse_deferred", "probe_deferred"]
