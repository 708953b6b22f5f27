"""Freed memory stays in the process, unless the user has other settings."""

import os
import platform
import subprocess
import sys

import pytest


FAULTS = """
import resource, torch
from hf_plasticity.allocation import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        tensors = [torch.zeros(1024, 1024) for _ in range(8)]
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
print(faults(), keep_freed_memory(), faults() and faults())
"""


def run(**environment):
    command = [sys.executable, "-c", FAULTS]
    process = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    before, kept, after = process.stdout.split()
    return int(before), kept == "True", int(after)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_tensors_are_allocated_again_without_page_faults():
    before, kept, after = run()
    assert kept and before > 10_000 and after < 100


@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_TRIM_THRESHOLD_", "131072"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=131072")]
)
def test_settings_of_the_user_take_precedence(name, value):
    _, kept, after = run(**{name: value})
    assert not kept and after > 10_000
