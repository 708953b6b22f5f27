"""
FSDP2 on CPU processes, only for tests: Accelerate offers it for GPUs only (seen in accelerate 1.15.0); torch has it
for both.

As a script, `fsdp2_on_cpu.py recipe.py arguments…` runs a recipe under it.
"""

import os
import runpy
import sys

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType


ENVIRONMENT = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


def enable(state_dict_type: str = "SHARDED_STATE_DICT") -> None:
    """Let every Accelerator made from now on shard its model."""
    os.environ |= ENVIRONMENT | {"FSDP_STATE_DICT_TYPE": state_dict_type}
    if hasattr(AcceleratorState, "original_init"):
        return
    AcceleratorState.original_init = AcceleratorState.__init__

    def init(self, *arguments, fsdp_plugin=None, **options):
        AcceleratorState.original_init(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
        # Every later AcceleratorState() reads the type from PartialState again, and keeps the plugin.
        known = self.__dict__.get("fsdp_plugin")
        if self.distributed_type == DistributedType.MULTI_CPU and (fsdp_plugin or known) is not None:
            self.distributed_type = DistributedType.FSDP
            if known is None:
                self.fsdp_plugin = fsdp_plugin
                if self._mixed_precision != "no":
                    fsdp_plugin.set_mixed_precision(self._mixed_precision)

    AcceleratorState.__init__ = init


if __name__ == "__main__":
    enable(os.environ.get("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT"))
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
