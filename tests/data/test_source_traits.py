"""The traits of sources. A new source is a class and a line in a dictionary."""

import subprocess
import sys

import pytest

from hf_plasticity import PlasticityError
from hf_plasticity.data.blocks import Blocks
from hf_plasticity.data.config import DataConfig
from hf_plasticity.data.opening import open_blocks, open_source
from hf_plasticity.data.sources import SOURCES, Source, source_class
from hf_plasticity.data.tokenizers import byte_tokenizer


NATURAL = ("en", "zh", "fr", "ja", "es", "de", "pt", "ru")
SYNTHETIC = tuple(f"syn{number}" for number in range(1, 9))


@pytest.mark.parametrize(
    ("name", "natural", "unlimited", "remote", "fresh", "languages", "probe_language"),
    [
        ("synthetic", False, True, False, True, SYNTHETIC, "syn9"),
        ("local", True, False, False, False, NATURAL, "vi"),
        ("hub", True, False, True, False, NATURAL, "vi"),
    ],
)
def test_the_traits_of_the_sources(name, natural, unlimited, remote, fresh, languages, probe_language):
    kind = source_class(name)
    assert (kind.natural, kind.unlimited, kind.remote, kind.fresh_languages) == (natural, unlimited, remote, fresh)
    assert (kind.default_languages, kind.default_probe_language) == (languages, probe_language)


class Nursery(Source):
    settings = ("data_dir",)
    default_languages = ("rhyme",)
    default_probe_language = "song"

    def fingerprint(self, language):
        return "nursery"

    def batches(self, language, state=None):
        yield [f"{language} number {number}" for number in range(99)], {}


def test_a_new_source_is_one_class_and_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(SOURCES, "nursery", Nursery)
    data = DataConfig(source="nursery", data_dir="x", data_cache_dir=str(tmp_path))
    source = open_source(data)
    assert isinstance(source, Nursery) and source.num_bytes("rhyme") is None
    train, _ = open_blocks(data, source, "rhyme", byte_tokenizer(), show_progress=False)
    assert isinstance(train, Blocks) and len(train.prepare(1)) > 0
    with pytest.raises(PlasticityError, match=r"choose one of synthetic, local, hub, nursery$"):
        open_source(DataConfig(source="nursary"))
    with pytest.raises(PlasticityError, match=r"^data_dir: 'x' is for the source 'local' or 'nursery', not 'hub'$"):
        open_source(DataConfig(source="hub", dataset="c4", data_dir="x"))


def test_the_size_of_text_is_known_where_it_can_be_counted(tmp_path):
    (tmp_path / "xx.txt").write_text("ab\ncdé\n", encoding="utf-8")
    local = open_source(DataConfig(source="local", data_dir=str(tmp_path)))
    assert local.num_bytes("xx") == 8
    assert open_source(DataConfig()).num_bytes("syn1") is None
    assert open_source(DataConfig(source="hub", dataset="c4")).num_bytes("en") is None


def test_a_source_describes_the_text_of_a_run_from_its_records():
    hub = SOURCES["hub"]
    preset = {"dataset": "fineweb-2", "languages": ["en", "fr", "ja"], "probe_language": "vi"}
    assert hub.hub_datasets(preset) == ["HuggingFaceFW/fineweb", "HuggingFaceFW/fineweb-2"]
    assert hub.hub_datasets({"dataset": "org/name@v1"}) == ["org/name"]
    assert hub.describe({"dataset": "org/name"}) == "[org/name](https://huggingface.co/datasets/org/name)"
    assert hub.describe({"dataset": "folder"}) == "folder" and hub.hub_datasets({"dataset": "folder"}) == []
    assert "generated" in SOURCES["synthetic"].describe({}) and SOURCES["local"].hub_datasets({}) == []


def test_the_traits_are_read_without_torch_and_datasets():
    code = (
        "import sys, hf_plasticity.data.sources; print(sorted({'torch', 'datasets', 'transformers'} & {*sys.modules}))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
