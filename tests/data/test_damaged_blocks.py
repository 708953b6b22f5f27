"""Damaged blocks are detected, and files of killed processes are removed."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from hf_plasticity import PlasticityError
from hf_plasticity.data import blocks as blocks_module
from support.listed_source import ListedSource, byte_blocks, numbered


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(blocks_module, "FIRST_SHARD_TOKENS", 64)
    monkeypatch.setattr(blocks_module, "LARGEST_SHARD_TOKENS", 256)


def prepared(folder):
    return byte_blocks(folder, ListedSource(a=numbered())).prepare(10**6)


def test_zeroed_bytes_of_the_same_size_are_found_when_a_shard_is_opened(tmp_path):
    blocks = prepared(tmp_path)
    everything = blocks[range(len(blocks))]
    path = blocks.folder / "shard-00002.bin"
    data = bytearray(path.read_bytes())
    data[100:104] = bytes(4)
    path.write_bytes(data)
    again = prepared(tmp_path)
    intact = range(int(again._ends[2]))
    assert np.array_equal(again[intact], everything[intact]), "the other shards can be used"
    with pytest.raises(PlasticityError) as caught:
        again[int(again._ends[2])]
    assert str(caught.value) == (f"'{path}' is damaged; delete the folder '{blocks.folder}' to prepare it again")


def test_a_shard_is_verified_once(tmp_path, monkeypatch):
    blocks = prepared(tmp_path)
    sums = []
    monkeypatch.setattr(
        blocks_module.zlib, "crc32", lambda data, inner=blocks_module.zlib.crc32: sums.append(1) or inner(data)
    )
    for _ in range(3):
        blocks[range(len(blocks))]
    assert len(sums) == len(blocks._index["shards"]) > 8, "also those that the cache of open shards has dropped"


@pytest.mark.parametrize("content", [b"", b'{"shards": [', b"\0" * 300, b"\xff\xfe", b"[]", b'{"shards": []}'])
def test_a_damaged_index_is_an_error_that_names_the_folder(tmp_path, content):
    blocks = prepared(tmp_path)
    (blocks.folder / "index.json").write_bytes(content)
    with pytest.raises(PlasticityError) as caught:
        prepared(tmp_path)
    assert str(caught.value) == (
        f"'{blocks.folder / 'index.json'}' is damaged; delete the folder '{blocks.folder}' to prepare it again"
    )


def killed_while_it_writes(folder):
    """Prepare blocks in a process that is killed in the middle of a shard."""
    code = f"""
import os, time
from support.listed_source import ListedSource, byte_blocks, numbered
os.fsync = lambda descriptor: (print("writing", flush=True), time.sleep(600))
byte_blocks({str(folder)!r}, ListedSource(a=numbered())).prepare(1)
"""
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"writing\n"
    process.kill()
    process.communicate()


def temporary(folder):
    return sorted(path.name for path in folder.glob(".*") if path.name != ".lock")


def test_files_of_a_killed_process_are_removed_by_the_next_preparation(tmp_path):
    killed_while_it_writes(tmp_path)
    blocks = byte_blocks(tmp_path, ListedSource(a=numbered()))
    (blocks.folder / ".index.json.0123456789ab").write_bytes(b"half")
    assert len(temporary(blocks.folder)) == 2
    blocks.prepare(1)
    assert temporary(blocks.folder) == [] and np.array_equal(blocks[0], prepared(tmp_path / "other")[0])


def test_the_files_of_a_process_with_the_lock_are_kept(tmp_path, monkeypatch):
    blocks = byte_blocks(tmp_path, ListedSource(a=numbered()))
    blocks.folder.mkdir(parents=True)
    (blocks.folder / ".shard-00000.bin.0123456789ab").write_bytes(b"half")
    asked = threading.Event()

    class Lock(FileLock):
        def acquire(self, *args, **kwargs):
            asked.set()
            return super().acquire(*args, **kwargs)

    with FileLock(blocks.folder / ".lock"):
        monkeypatch.setattr(blocks_module, "FileLock", Lock)
        other = threading.Thread(target=blocks.prepare, args=(1,))
        other.start()
        assert asked.wait(60)
        assert temporary(blocks.folder) == [".shard-00000.bin.0123456789ab"]
    other.join(60)
    assert temporary(blocks.folder) == [] and len(blocks) > 0
