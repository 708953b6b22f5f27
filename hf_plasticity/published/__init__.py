"""The probe on checkpoints that somebody published."""

from .config import SuiteConfig, parse_suite
from .suite import probe_suite


__all__ = ["SuiteConfig", "parse_suite", "probe_suite"]
