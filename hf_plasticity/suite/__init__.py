from .command import probe_models
from .config import SuiteConfig, parse_suite


__all__ = ["SuiteConfig", "parse_suite", "probe_models"]
