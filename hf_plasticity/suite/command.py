"""What `recipes/probe.py` does."""

from transformers.utils import logging

from ..data.config import DataConfig
from .config import SuiteConfig
from .follow import follow_run
from .published import probe_suite


def probe_models(suite: SuiteConfig, data: DataConfig) -> None:
    """
    Probe a published suite, or follow a run.

    Raises:
        [`PlasticityError`]: It cannot be done as configured.
        [`ProbeDivergedError`]: The loss of a probe is not finite.
    """
    # Transformers shows a bar for every model that it loads; the probe's own is enough.
    logging.disable_progress_bar()
    if suite.follow:
        follow_run(suite, data)
    else:
        probe_suite(suite, data)
