"""The probe on published checkpoints."""

from .config import SuiteConfig, parse_suite
from .suite import probe_suite


__all__ = ["SuiteConfig", "parse_suite", "probe_suite"]
