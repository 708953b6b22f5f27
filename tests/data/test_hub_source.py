import gzip
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.packaged_modules.parquet.parquet import Parquet

from hf_plasticity.data.config import DataConfig
from hf_plasticity.data.opening import open_source
from hf_plasticity.data.sources import SyntheticSource, hub
from hf_plasticity.data.sources.hub import HUB_PRESETS, HubSource
from hf_plasticity.data.sources.local import LocalSource
from hf_plasticity.data.tokenizers import load_tokenizer
from hf_plasticity.errors import PlasticityError


FILES, ROWS = 5, 60


@pytest.fixture(autouse=True)
def no_progress_bars():
    datasets.disable_progress_bars()


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A dataset repository in Parquet with six row groups per file."""
    folder = tmp_path_factory.mktemp("repository")
    (folder / "xx").mkdir()
    for file in range(FILES):
        texts = [f"xx {file} {row} " + "wort " * (row % 9) for row in range(ROWS)]
        texts[7] = None if file % 2 else "  "
        table = pa.table({"id": list(range(ROWS)), "text": texts})
        pq.write_table(table, folder / "xx" / f"{file}.parquet", row_group_size=10)
    (folder / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: xx\n  data_files:\n  - split: train\n    path: xx/*\n  - split: test\n    path: xx/0.parquet\n"
        "---\n"
    )
    return folder


@pytest.fixture(scope="module")
def json_repository(tmp_path_factory):
    """A dataset repository in compressed JSON Lines."""
    folder = tmp_path_factory.mktemp("json_repository")
    for file in range(FILES):
        with gzip.open(folder / f"{file}.json.gz", "wt") as lines:
            lines.writelines(json.dumps({"text": f"yy {file} {row}", "n": row}) + "\n" for row in range(ROWS))
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: 2023.yy\n  data_files: '*.gz'\n---\n")
    return folder


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(hub, "BATCH_CHARACTERS", 400)


def documents_of(source, language, state=None):
    return [document for documents, _ in source.batches(language, state) for document in documents]


def numbers(documents):
    return [tuple(map(int, document.split()[1:3])) for document in documents]


class TestStream:
    def test_every_document_once_and_files_shuffled(self, repository):
        found = numbers(documents_of(HubSource(str(repository)), "xx"))
        assert sorted(found) == [(file, row) for file in range(FILES) for row in range(ROWS) if row != 7]
        files = list(dict.fromkeys(file for file, _ in found))
        assert files == [3, 2, 1, 0, 4], "the order of files must not change"
        assert found == [(file, row) for file in files for row in range(ROWS) if row != 7]

    def test_configurations_by_template_and_map(self, repository, json_repository):
        expected = [(file, row) for file in range(FILES) for row in range(ROWS)]
        for configs in ("2023.{language}", {"yy": "2023.yy"}):
            assert sorted(numbers(documents_of(HubSource(str(json_repository), configs), "yy"))) == expected
        assert documents_of(HubSource(str(repository), {"yy": "2023.yy"}), "xx")

    def test_split_and_column(self, repository):
        assert len(documents_of(HubSource(str(repository), split="test"), "xx")) == ROWS - 1

    @pytest.mark.parametrize("language", ["xx", "yy"])
    def test_every_state_continues_with_its_batch(self, repository, json_repository, small_batches, language):
        source = HubSource(str(repository)) if language == "xx" else HubSource(str(json_repository), "2023.{language}")
        batches = list(source.batches(language))
        assert len(batches) > 5
        for i, (_, state) in enumerate(batches):
            assert list(source.batches(language, json.loads(json.dumps(state)))) == batches[i:]

    def test_continuing_reads_no_earlier_row_group(self, repository, small_batches, monkeypatch):
        documents, state = list(HubSource(str(repository)).batches("xx"))[-3]
        read = []
        inner = Parquet._generate_tables

        def spy(self, files, row_groups_list):
            for key, table in inner(self, files, row_groups_list):
                read.append((os.path.basename(files[0]), row_groups_list[0], table.num_rows))
                yield key, table

        monkeypatch.setattr(Parquet, "_generate_tables", spy)
        assert next(HubSource(str(repository)).batches("xx", state))[0] == documents
        file, row = numbers(documents)[0]
        assert read[0] == (f"{file}.parquet", (row // 10,), 10)
        assert len(read) <= 3


class TestFingerprint:
    def test_of_a_folder_is_of_its_contents(self, repository, tmp_path, monkeypatch):
        fingerprint = HubSource(str(repository)).fingerprint("xx")
        (tmp_path / "link").symlink_to(repository)
        assert HubSource(str(tmp_path / "link")).fingerprint("xx") == fingerprint
        monkeypatch.chdir(tmp_path)
        assert HubSource("./link").fingerprint("xx") == fingerprint
        assert HubSource(str(repository), split="test").fingerprint("xx") != fingerprint
        original = (repository / "xx" / "3.parquet").read_bytes()
        try:
            pq.write_table(pa.table({"id": [1], "text": ["changed"]}), repository / "xx" / "3.parquet")
            assert HubSource(str(repository)).fingerprint("xx") != fingerprint
        finally:
            (repository / "xx" / "3.parquet").write_bytes(original)
        assert HubSource(str(repository)).fingerprint("xx") == fingerprint

    def test_of_a_hub_dataset_is_of_its_commit(self, repository, monkeypatch):
        commits, loaded = {None: "a" * 40, "v1": "b" * 40}, []

        def dataset_info(self, name, revision=None):
            return SimpleNamespace(sha=commits[revision])

        def load_dataset_builder(name, config, revision, inner=datasets.load_dataset_builder):
            loaded.append((name, config, revision))
            return inner(str(repository), config)

        monkeypatch.setattr(hub.HfApi, "dataset_info", dataset_info)
        monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name, revision: ["xx"])
        monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
        source = HubSource("org/name")
        fingerprint = source.fingerprint("xx")
        assert HubSource("org/name").fingerprint("xx") == fingerprint
        assert HubSource("org/other").fingerprint("xx") != fingerprint
        assert HubSource("org/name", {"zz": "xx"}).fingerprint("zz") == fingerprint
        pinned = HubSource("org/name@v1").fingerprint("xx")
        assert pinned != fingerprint and pinned == HubSource("org/name", revision="v1").fingerprint("xx")
        # The branch moves: a source in use stays where it was, a new one sees the change.
        commits[None] = "c" * 40
        documents_of(source, "xx")
        assert source.fingerprint("xx") == fingerprint != HubSource("org/name").fingerprint("xx")
        assert loaded[0] == ("org/name", "xx", "a" * 40) and loaded[-1] == ("org/name", "xx", "c" * 40)
        # A later start with the recorded settings reads the old text.
        settings = {"source": "hub", "dataset": "org/name"} | source.resolved_settings()
        assert settings["dataset_commits"] == '{"org/name": "' + "a" * 40 + '"}'
        assert open_source(DataConfig(**settings)).fingerprint("xx") == fingerprint


class TestMistakes:
    def check(self, message, source, language="xx"):
        with pytest.raises(PlasticityError, match=message) as caught:
            documents_of(source, language)
        assert "\n" not in str(caught.value)
        with pytest.raises(PlasticityError):
            source.fingerprint("nothing")

    def test_missing_configuration_lists_some(self, repository):
        self.check(
            r"^dataset: '.*' has no configuration 'vi' for 'vi'; it has xx; map ",
            HubSource(str(repository)),
            "vi",
        )

    def test_missing_split_lists_them(self, repository):
        self.check(
            r"^dataset: '.*' has no split 'dev' \(it has train, test\); choose another dataset$",
            HubSource(str(repository), split="dev"),
        )

    def test_missing_column_lists_them(self, repository):
        source = HubSource(str(repository), text_column="body")
        self.check(r"^dataset: '.*' has no column 'body' for 'xx'; its columns are id, text; choose ", source)

    def test_column_without_strings(self, repository):
        source = HubSource(str(repository), text_column="id")
        self.check(r"^dataset: column 'id' of '.*' holds int, not strings$", source)

    def test_corrupt_file_is_named(self, tmp_path):
        (tmp_path / "a.parquet").write_bytes(b"PAR1 not at all")
        self.check(r"^dataset: '.*' .*cannot be read: ", HubSource(str(tmp_path)), "default")

    def test_no_documents(self, tmp_path):
        pq.write_table(pa.table({"text": ["", " "]}), tmp_path / "a.parquet")
        self.check(r"^dataset: '.*' has no documents for 'default'$", HubSource(str(tmp_path)), "default")

    def test_no_folder_and_no_name(self):
        self.check(r"^dataset: './no/where' is neither a folder nor the name of a repository", HubSource("./no/where"))

    def test_empty_folder(self, tmp_path):
        self.check(r"^dataset: '.*' .*cannot be read: .* doesn't contain any data files", HubSource(str(tmp_path)))

    def test_options_that_do_not_fit(self, repository):
        with pytest.raises(PlasticityError, match=r"^dataset_configs: 'c4' is a preset .* such as 'allenai/c4'$"):
            HubSource("c4", "{language}")
        with pytest.raises(
            PlasticityError, match=r"^dataset_configs: 'en' is the same for every language; write {lang"
        ):
            HubSource("org/name", "en")
        with pytest.raises(PlasticityError, match=r"^revision: 'v1' cannot be chosen in the folder"):
            HubSource(str(repository), revision="v1")
        with pytest.raises(
            PlasticityError, match=r"^languages: the preset 'c4' has no 'xx', only en, zh, .* 'allenai/c4'"
        ):
            HubSource("c4").fingerprint("xx")


@pytest.fixture
def hub_server(monkeypatch):
    """A Hub that answers every request with the given status and headers."""
    answer = SimpleNamespace(status=404, headers={})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(answer.status)
            for name, value in {**answer.headers, "Content-Length": "0"}.items():
                self.send_header(name, value)
            self.end_headers()

        do_HEAD = do_POST = do_GET

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint, constants = f"http://127.0.0.1:{server.server_port}", huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    yield answer
    server.shutdown()
    server.server_close()


HUB_ANSWERS = {
    "gated": (403, {"X-Error-Code": "GatedRepo"}, r"'org/{}' is gated: accept its terms at https://huggingface.co/.*"),
    "missing": (404, {"X-Error-Code": "RepoNotFound"}, r"there is no 'org/{}' on the Hub, or it is private: "),
    "refused": (401, {}, r"the Hub denies access to 'org/{}' \(status 401\): log in with `hf auth login`$"),
    "revision": (404, {"X-Error-Code": "RevisionNotFound"}, r"'org/{}' has no such revision: "),
}


@pytest.mark.parametrize("name", HUB_ANSWERS)
def test_errors_of_the_hub_are_explained(hub_server, name):
    hub_server.status, hub_server.headers, message = HUB_ANSWERS[name]
    with pytest.raises(PlasticityError, match="^dataset: " + message.format(f"data-{name}")):
        HubSource(f"org/data-{name}").fingerprint("vi")
    with pytest.raises(PlasticityError, match="^tokenizer: " + message.format(f"tok-{name}")):
        load_tokenizer(f"org/tok-{name}")


def test_a_missing_network_is_reported(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(PlasticityError, match=r"^dataset: the Hub cannot be reached for 'org/name'"):
        HubSource("org/name").fingerprint("vi")


def test_presets_cover_the_nine_languages():
    nine = ["en", "zh", "fr", "ja", "es", "de", "pt", "ru", "vi"]
    assert list(HUB_PRESETS) == ["culturax", "c4", "fineweb-2", "wikipedia"]
    assert all(list(preset) == nine for preset in HUB_PRESETS.values())
    assert HUB_PRESETS["fineweb-2"]["zh"] == ("HuggingFaceFW/fineweb-2", "cmn_Hani")
    assert HUB_PRESETS["wikipedia"]["vi"] == ("wikimedia/wikipedia", "20231101.vi")


class TestOpenSource:
    def test_builds_each(self, tmp_path):
        assert isinstance(open_source(DataConfig()), SyntheticSource)
        local = open_source(DataConfig(source="local", data_dir=str(tmp_path), text_column="body"))
        assert isinstance(local, LocalSource) and local.text_column == "body"
        streamed = open_source(
            DataConfig(source="hub", dataset="org/name", dataset_configs="a.{language}", text_column="body")
        )
        assert isinstance(streamed, HubSource) and (streamed.configs, streamed.text_column) == ("a.{language}", "body")
        mapped = open_source(DataConfig(source="hub", dataset="org/name", dataset_configs='{"yy": "b"}'))
        assert mapped.configs == {"yy": "b"}
        spaced = open_source(DataConfig(source="hub", dataset="org/name", dataset_configs=' { "yy": "b" }'))
        assert spaced.configs == {"yy": "b"}

    @pytest.mark.parametrize(
        "settings, message",
        [
            ({"source": "web"}, r"^source: 'web' is not a source; choose one of synthetic, local, hub$"),
            ({"source": "local"}, r"^data_dir: missing; the source 'local' requires a folder"),
            (
                {"source": "hub"},
                r"^dataset: missing; the source 'hub' requires a preset \(culturax, c4, .*\) or a dataset",
            ),
            (
                {"source": "hub", "dataset": "org/name", "dataset_configs": '{"yy": '},
                r"^dataset_configs: '{\"yy\": ' is not valid JSON: ",
            ),
            ({"source": "hub", "data_dir": "x"}, r"^data_dir: 'x' is for the source 'local', not 'hub'$"),
            ({"dataset": "c4"}, r"^dataset: 'c4' is for the source 'hub', not 'synthetic'$"),
            ({"text_column": "body"}, r"^text_column: 'body' is for the source 'local' or 'hub', not 'synthetic'$"),
            (
                {"source": "local", "data_dir": ".", "fresh_languages": True},
                r"^fresh_languages: the source 'local' cannot generate new languages; choose the source 'synthetic'$",
            ),
        ],
    )
    def test_settings_that_do_not_fit(self, settings, message):
        with pytest.raises(PlasticityError, match=message):
            open_source(DataConfig(**settings))
