"""The marker of a saved model: it is written last, and has the size and the checksum of every file."""

import hashlib
import json
import os
from pathlib import Path

from .records import COMPLETE_FILE, is_complete, write_atomically


READ_BYTES = 2**22
# What a model is loaded from.
MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", "tokenizer*")

# Size and checksum by the name of the file.
Expected = dict[str, tuple[int, str]]


def mark_complete(folder: str | Path) -> None:
    """Write the marker of a folder that is on disk: the size and the checksum of each of its files."""
    folder = Path(folder)
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "blake2b": _checksum(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != COMPLETE_FILE
    }
    write_atomically(folder / COMPLETE_FILE, json.dumps({"files": files}, indent=1).encode())


def find_damage(folder: str | Path) -> str | None:
    """Describe the damage of a folder, by the sizes and checksums in its marker; `None` if there is none."""
    folder = Path(folder)
    if not is_complete(folder):
        return "incomplete"
    expected = _expected(folder)
    if expected is None:
        return f"{COMPLETE_FILE} is damaged"
    return _first_damage(folder, expected)


def find_damage_of_model(folder: str | os.PathLike) -> str | None:
    """
    Describe the damage of the files that a model is loaded from. `None` if there is none, and for a folder without a
    marker. Files for resuming may be missing: they are deleted to save space.
    """
    folder = Path(folder)
    if not is_complete(folder):
        return None
    expected = _expected(folder)
    if expected is None:
        return f"{COMPLETE_FILE} is damaged"
    of_model = {name for name in expected if any(Path(name).match(pattern) for pattern in MODEL_FILES)}
    return _first_damage(folder, {name: expected[name] for name in sorted(of_model)})


def _expected(folder: Path) -> Expected | None:
    """The size and the checksum of every file in the marker; `None` if it is damaged."""
    try:
        files = json.loads((folder / COMPLETE_FILE).read_text(encoding="utf-8"))["files"]
        return {name: (file["bytes"], file["blake2b"]) for name, file in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _first_damage(folder: Path, expected: Expected) -> str | None:
    for name, (size, checksum) in expected.items():
        path = folder / name
        if not path.exists():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if _checksum(path) != checksum:
            return f"{name} has another checksum"
    return None


def _checksum(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
