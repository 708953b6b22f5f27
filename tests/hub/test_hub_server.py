"""The Hub server of the tests with the real client: it stores files, and fails as configured."""

import threading
import time
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from support.hub_server import READER_TOKEN


@pytest.fixture
def api(hub):
    return HfApi()


def add(api, repo_id, files, revision="main", **options):
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit(repo_id, operations, commit_message="add", revision=revision, **options)


def test_files_come_back_as_they_were_on_every_branch_and_commit(api, hub, repo_id):
    api.create_repo(repo_id)
    weights, first = bytes(range(256)) * 50, add(api, repo_id, {"a.txt": b"one"}).oid
    api.create_branch(repo_id, branch="b/1", revision=first)
    second = add(api, repo_id, {"model.safetensors": weights, "x/y.txt": b""}, "b/1").oid
    assert [ref.name for ref in api.list_repo_refs(repo_id).branches] == ["main", "b/1"]
    assert api.list_repo_commits(repo_id, revision="b/1")[0].commit_id == second
    for revision in ("b/1", second):
        with open(hf_hub_download(repo_id, "model.safetensors", revision=revision), "rb") as file:
            assert file.read() == weights
    tree = {entry.path: entry for entry in api.list_repo_tree(repo_id, revision="b/1", recursive=True)}
    assert set(tree) == {".gitattributes", "a.txt", "model.safetensors", "x", "x/y.txt"}
    assert tree["model.safetensors"].lfs.size == len(weights) and tree["a.txt"].lfs is None
    folder = Path(snapshot_download(repo_id, allow_patterns=["a.txt", "x/*"]))
    assert (folder / "a.txt").read_text() == "one" and not (folder / ".gitattributes").exists()
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(repo_id, "b.txt")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(repo_id, "a.txt", revision="c")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info(f"{repo_id}-not")


def test_a_commit_whose_parent_is_not_the_newest_is_refused(api, repo_id):
    api.create_repo(repo_id)
    parent = add(api, repo_id, {"a.txt": b"one"}).oid
    add(api, repo_id, {"a.txt": b"two"}, parent_commit=parent)
    with pytest.raises(HfHubHTTPError) as caught:
        add(api, repo_id, {"a.txt": b"three"}, parent_commit=parent)
    assert caught.value.response.status_code == 412


def test_readers_and_strangers_may_not_write(api, hub, repo_id):
    hub.create(repo_id)
    for token, status in ((READER_TOKEN, 403), (False, 401), ("hf_unknown", 401)):
        with pytest.raises(HfHubHTTPError) as caught:
            add(api, repo_id, {"a.txt": b"one"}, token=token)
        assert caught.value.response.status_code == status
    assert hub.titles(repo_id) == ["initial commit"]


def test_faults_occur_as_configured(api, hub, repo_id):
    api.create_repo(repo_id)
    hub.fail("POST .*/commit/", status=503)
    with pytest.raises(HfHubHTTPError):
        add(api, repo_id, {"a.txt": b"one"})
    for when, commits in (("before", 1), ("after", 2)):
        hub.fail("POST .*/commit/", reset=when)
        with pytest.raises(httpx2.TransportError):
            add(api, repo_id, {"a.txt": b"one"})
        assert len(hub.titles(repo_id)) == commits
    hub.fail("GET .*/refs", truncate=True)
    with pytest.raises(httpx2.TransportError):
        api.list_repo_refs(repo_id)
    hub.fail("GET .*/refs", delay=0.3)
    started = time.monotonic()
    api.list_repo_refs(repo_id)
    assert time.monotonic() - started > 0.3
    hub.fail("GET .*/refs", hang=True)
    threading.Timer(0.2, hub.heal).start()
    with pytest.raises(httpx2.TransportError):
        api.list_repo_refs(repo_id)
    hub.stop()
    with pytest.raises(httpx2.ConnectError):
        api.list_repo_refs(repo_id)
    hub.start()
    assert [ref.name for ref in api.list_repo_refs(repo_id).branches] == ["main"]
