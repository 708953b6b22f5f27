r"""
Probe a suite of published checkpoints: how fast does each of them learn a language?

    accelerate launch recipes/probe.py --model EleutherAI/pythia-70m --revisions "step*000" --every 10 \
        --source hub --dataset wikipedia --probe_language vi

The checkpoints are branches of a repository, or folders in a folder; each gets the same probe. The same command goes
on where it was stopped, and with more revisions adds them to the records.

    accelerate launch recipes/probe.py --model runs/mine --follow

probes the cycles of a run that was started with `--probe deferred`, as they appear in its folder or on the Hub.
"""

from hf_plasticity.run import errors_on_one_line
from hf_plasticity.suite import parse_suite, probe_models


if __name__ == "__main__":
    with errors_on_one_line("probe.py"):
        probe_models(*parse_suite(description=__doc__))
