"""
Compare two folders of run folders, number by number: `compare_runs.py BEFORE AFTER`.

Every record, every entry of the training logs, every tensor of weights, optimizers, schedulers and random states, the
blocks and the settings must be bit-identical. Times and hashes are left out. Differences are printed and give the exit
status 1. Fields, settings and files that only AFTER has are printed as notes.
"""

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file


TIMES = {"seconds", "tokens_per_second", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
# Where and with which versions a run was made, and fingerprints that depend on formats.
MADE_WITH = {"versions", "git_commit", "hardware", "data"}
BLOCKS = re.compile(r"(.+-(?:train|validation))-[0-9a-f]+$")


def is_ignored(name: str) -> bool:
    return name in TIMES or name.rsplit("/", 1)[-1] in TIMES or name.endswith("_hash")


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every number, text and tensor in a nested value, with its path."""
    if isinstance(value, dict):
        for key in value:
            if not is_ignored(str(key)):
                yield from flat(value[key], f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        labels = [label(item, number) for number, item in enumerate(value)]
        for number, item in enumerate(value):
            again = labels[:number].count(labels[number])
            yield from flat(item, f"{name}[{labels[number]}{f', again {again}' if again else ''}]")
    else:
        yield name, value


def label(item: Any, number: int) -> str:
    """The label of a list item in both lists: a record has its step, so that an additional record shifts no others."""
    if not isinstance(item, dict) or "step" not in item:
        return str(number)
    prefixes = sorted(key.split("/")[0] for key in item if "/" in key)
    return f"step {item['step']}" + (f" {prefixes[0]}" if prefixes else "")


def is_same(one: Any, other: Any) -> bool:
    """Whether two values are bit-identical; NaN equals NaN."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and bits(one) == bits(other)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    return type(one) is type(other) and (one == other or (one != one and other != other))


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


class Comparison:
    """Counts the compared values, and prints the differences."""

    def __init__(self):
        self.values, self.differences, self.notes = 0, 0, []

    def differ(self, where: str, what: str) -> None:
        self.differences += 1
        print(f"DIFFERENT  {where}: {what}")

    def compare(self, where: str, before: Any, after: Any, may_lose: bool = False) -> None:
        """Compare two nested values. With `may_lose`, values that only `before` has are notes too."""
        ones, others = dict(flat(before)), dict(flat(after))
        for name in ones.keys() & others.keys():
            self.values += 1
            if not is_same(ones[name], others[name]):
                self.differ(f"{where}: {name}", f"{short(ones[name])} before, {short(others[name])} after")
        for name in sorted(ones.keys() - others.keys()):
            if may_lose:
                self.note(where, f"{name} only before ({short(ones[name])})")
            else:
                self.differ(f"{where}: {name}", f"{short(ones[name])} before, missing after")
        for name in sorted(others.keys() - ones.keys()):
            self.note(where, f"{name} only after ({short(others[name])})")

    def note(self, where: str, what: str) -> None:
        self.notes.append((where, what))


def short(value: Any) -> str:
    if isinstance(value, torch.Tensor | np.ndarray):
        return f"{value.dtype} {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."


def read(path: Path) -> Any:
    """The content of a file of a run if it can be compared, otherwise `None`."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        return torch.load(path, weights_only=False)
    if path.name == "config.yaml":
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        made = settings.pop("provenance", {})
        return settings | {f"provenance.{name}": made[name] for name in made if name not in MADE_WITH}
    if path.name == "complete.json":
        return None  # file sizes
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    if path.suffix == ".bin" and path.name.startswith("shard-"):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return None


def files(folder: Path) -> dict[str, Path]:
    """The files below a folder, without the hashes in the names of block folders."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            parts = [BLOCKS.sub(r"\1", part) for part in path.relative_to(folder).parts]
            found.setdefault("/".join(parts), []).append(path)
    # Blocks of one language and split from several tokenizers are distinguished by their content.
    named = {}
    for name, paths in found.items():
        if len(paths) > 1:
            paths = sorted(paths, key=lambda path: path.parent.joinpath("shard-00000.bin").read_bytes())
        named |= {name if not number else f"{name} ({number})": path for number, path in enumerate(paths)}
    return named


def compare(before: Path, after: Path) -> Comparison:
    """Compare all files of two folders."""
    comparison = Comparison()
    ones, others = files(before), files(after)
    for name in sorted(ones.keys() | others.keys()):
        if name not in others:
            comparison.differ(name, "missing after")
        elif name not in ones:
            comparison.note(name, "only after")
        else:
            one, other = read(ones[name]), read(others[name])
            if name.endswith("index.json"):
                one.pop("made_from"), other.pop("made_from")
            if one is not None:
                comparison.compare(name, one, other, may_lose=name.endswith("config.yaml"))
    return comparison


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    options = parser.parse_args()
    comparison = compare(options.before, options.after)
    notes: dict[str, list[str]] = {}
    for where, what in comparison.notes:
        notes.setdefault(re.sub(r"\[[^]]*\]", "[]", re.sub(r" \(.*\)$", "", what)), []).append(where)
    for what, places in notes.items():
        print(f"note       {what}: {places[0]}" + (f" and {len(places) - 1} more" if len(places) > 1 else ""))
    print(f"{comparison.values:,} values compared, {comparison.differences:,} differences")
    if not comparison.values:
        print("nothing was compared")
    return 1 if comparison.differences or not comparison.values else 0


if __name__ == "__main__":
    sys.exit(main())
