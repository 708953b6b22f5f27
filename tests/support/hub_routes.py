"""The content of the Hub server of the tests, and its response on each route."""

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import yaml


if TYPE_CHECKING:
    from support.hub_server import HubServer

OWNER_TOKEN = "hf_OnlyForTestsOfTheOwner00"
READER_TOKEN = "hf_OnlyForTestsOfAReader000"
LFS_SUFFIXES = (".safetensors", ".parquet", ".png", ".bin", ".pt")
LANGUAGE_TAG = re.compile(r"[a-z]{2,3}")


class HubError(Exception):
    """An answer other than success."""

    def __init__(self, status: int, code: str | None = None, message: str = "", body: dict | None = None):
        self.status, self.code, self.message, self.body = status, code, message, body or {"error": message}


@dataclass
class Commit:
    oid: str
    title: str
    files: dict[str, str]


@dataclass
class Repository:
    """
    Branches by name, each a list of commits with the newest last; a file is the SHA-256 of its content. Large files
    are uploaded first, and then committed.
    """

    branches: dict[str, list[Commit]] = field(default_factory=dict)
    uploaded: set[str] = field(default_factory=set)
    private: bool = False

    def commit(self, revision: str) -> Commit:
        if revision in self.branches:
            return self.branches[revision][-1]
        for commits in self.branches.values():
            for commit in commits:
                if commit.oid == revision:
                    return commit
        raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Request:
    body: bytes
    query: dict[str, list[str]]
    token: str | None
    headers: Any

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.body)


def whoami(hub: "HubServer", parts: dict, request: Request) -> dict:
    if request.token not in (OWNER_TOKEN, READER_TOKEN):
        raise HubError(401, None, "Invalid credentials in Authorization header")
    return {"type": "user", "name": "owner" if request.token == OWNER_TOKEN else "reader", "orgs": [], "auth": {}}


def create_repo(hub: "HubServer", parts: dict, request: Request) -> dict:
    asked = request.json
    name = f"{asked.get('organization') or 'owner'}/{asked['name']}"
    if request.token != OWNER_TOKEN:
        raise HubError(403 if request.token else 401, None, "You don't have the rights to create a model there")
    if name in hub.repositories:
        raise HubError(
            409, None, "exists", {"error": "You already created this model repo", "url": f"{hub.url}/{name}"}
        )
    hub.create(name, private=asked.get("visibility") == "private")
    return {"url": f"{hub.url}/{name}", "name": name}


def authorized(action: Callable, write: bool = False) -> Callable:
    def checked(hub: "HubServer", parts: dict, request: Request):
        hub.authority(request.token, parts["id"], write)
        return action(hub, hub.repositories[parts["id"]], parts, request)

    return checked


def repo_info(hub: "HubServer", repository: Repository, parts: dict, request: Request) -> dict:
    commit = repository.commit(parts.get("rev") or "main")
    siblings = [{"rfilename": path} for path in sorted(commit.files)]
    return {"id": parts["id"], "modelId": parts["id"], "sha": commit.oid, "siblings": siblings, "tags": []}


def refs(hub: "HubServer", repository: Repository, parts: dict, request: Request) -> dict:
    branches = [
        {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commits[-1].oid}
        for name, commits in repository.branches.items()
    ]
    return {"branches": branches, "tags": [], "converts": []}


def commits(hub: "HubServer", repository: Repository, parts: dict, request: Request) -> list:
    history = repository.branches.get(parts["rev"]) or [repository.commit(parts["rev"])]
    date = "2026-01-01T00:00:00.000Z"
    return [
        {"id": commit.oid, "title": commit.title, "message": "", "date": date, "authors": []}
        for commit in history[::-1]
    ]


def branch(hub: "HubServer", repository: Repository, parts: dict, request: Request) -> dict:
    if parts["rev"] in repository.branches:
        raise HubError(409, None, f"Reference already exists: {parts['rev']}")
    start = (request.json if request.body else {}).get("startingPoint") or "main"
    repository.branches[parts["rev"]] = [repository.commit(start)]
    return {}


def file_info(hub: "HubServer", path: str, sha: str) -> dict:
    content = hub.contents[sha]
    info = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
    if path.endswith(LFS_SUFFIXES):
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha}\nsize {len(content)}\n".encode()
        info |= {"oid": git_oid(pointer), "lfs": {"oid": sha, "size": len(content), "pointerSize": len(pointer)}}
    return info


def entries(hub: "HubServer", commit: Commit) -> dict[str, dict]:
    """Files and folders of a commit by path."""
    found = {path: file_info(hub, path, sha) for path, sha in commit.files.items()}
    for path in commit.files:
        for depth in range(1, path.count("/") + 1):
            folder = "/".join(path.split("/")[:depth])
            found[folder] = {"type": "directory", "path": folder, "oid": git_oid(folder.encode()), "size": 0}
    return found


def tree(hub: "HubServer", repository: Repository, parts: dict, request: Request) -> list:
    found, folder = entries(hub, repository.commit(parts["rev"])), parts["path"]
    if folder and folder not in found:
        raise HubError(404, "EntryNotFound", f"{folder} does not exist")
    prefix = f"{folder}/" if folder else ""
    deep = request.query.get("recursive", ["false"])[0].lower() == "true"
    return [
        entry
        for path, entry in sorted(found.items())
        if path.startswith(prefix) and (deep or "/" not in path[len(prefix) :])
    ]


def paths_info(hub: "HubServer", repository: Repository, parts: dict, request: Request) -> list:
    found = entries(hub, repository.commit(parts["rev"]))
    return [found[path] for path in parse_qs(request.body.decode())["paths"] if path in found]


def preupload(hub: "HubServer", repository: Repository, parts: dict, request: Request) -> dict:
    present = repository.commit(parts["rev"]).files
    answer = []
    for asked in request.json["files"]:
        path, lfs = asked["path"], asked["path"].endswith(LFS_SUFFIXES)
        known = present.get(path)
        oid = None if known is None else known if lfs else git_oid(hub.contents[known])
        answer.append({"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid})
    return {"files": answer}


def lfs_batch(hub: "HubServer", repository: Repository, parts: dict, request: Request) -> dict:
    objects = []
    for asked in request.json["objects"]:
        missing = asked["oid"] not in repository.uploaded
        upload = {"actions": {"upload": {"href": f"{hub.url}/lfs/{parts['id']}/{asked['oid']}"}}} if missing else {}
        objects.append({"oid": asked["oid"], "size": asked["size"], **upload})
    return {"transfer": "basic", "objects": objects}


def lfs_upload(hub: "HubServer", parts: dict, request: Request) -> dict:
    if sha256(request.body) != parts["oid"]:
        raise HubError(400, None, "content does not match its name")
    hub.contents[parts["oid"]] = request.body
    hub.repositories[parts["id"]].uploaded.add(parts["oid"])
    return {}


def commit(hub: "HubServer", repository: Repository, parts: dict, request: Request) -> dict:
    if parts["rev"] not in repository.branches:
        raise HubError(404, "RevisionNotFound", f"Invalid rev id: {parts['rev']}")
    files, header = {}, {}
    for line in map(json.loads, request.body.splitlines()):
        value = line["value"]
        if line["key"] == "header":
            header = value
        elif line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            if hub.xet is not None:
                hub.contents.setdefault(value["oid"], bytes(value["size"]))
                repository.uploaded.add(value["oid"])
            if value["oid"] not in repository.uploaded:
                raise HubError(400, None, f"LFS pointer pointed to a file that does not exist: {value['path']}")
            files[value["path"]] = value["oid"]
        elif line["key"] == "deletedFile":
            files[value["path"]] = None
    parent = header.get("parentCommit")
    if parent not in (None, repository.commit(parts["rev"]).oid):
        raise HubError(412, None, "A commit has happened since. Please refresh and try again.")
    made = hub.add(repository, parts["rev"], header["summary"], files)
    return {"commitOid": made.oid, "commitUrl": f"{hub.url}/{parts['id']}/commit/{made.oid}", "success": True}


def xet_token(hub: "HubServer", repository: Repository, parts: dict, request: Request) -> tuple:
    where, until = f"local://{hub.xet}", int(time.time()) + 3600
    headers = {"X-Xet-Cas-Url": where, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": str(until)}
    return 200, headers, json.dumps({"casUrl": where, "accessToken": "xet", "exp": until}).encode()


def validate_yaml(hub: "HubServer", parts: dict, request: Request) -> dict:
    _, metadata, _ = request.json["content"].split("---\n", 2)
    try:
        metadata = yaml.safe_load(metadata)
        wrong = [tag for tag in metadata.get("language", []) if not LANGUAGE_TAG.fullmatch(tag)]
    except yaml.YAMLError as error:
        wrong = [str(error)]
    if wrong:
        raise HubError(400, None, "bad YAML", {"errors": [{"message": f"invalid: {wrong}"}], "warnings": []})
    return {"errors": [], "warnings": []}


def resolve(hub: "HubServer", repository: Repository, parts: dict, request: Request) -> tuple:
    commit = repository.commit(parts["rev"])
    if parts["path"] not in commit.files:
        raise HubError(404, "EntryNotFound", f"{parts['path']} does not exist")
    sha = commit.files[parts["path"]]
    content = hub.contents[sha]
    etag = sha if parts["path"].endswith(LFS_SUFFIXES) else git_oid(content)
    headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{etag}"', "Content-Type": "application/octet-stream"}
    if hub.xet is not None and sha in hub.xet_hashes:
        route = f"{hub.url}/api/models/{parts['id']}/xet-read-token/{commit.oid}"
        headers |= {"X-Xet-Hash": hub.xet_hashes[sha], "X-Xet-Refresh-Route": route}
    if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range") or ""):
        first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        return 206, headers | {"Content-Range": f"bytes {first}-{last}/{len(content)}"}, content[first : last + 1]
    return 200, headers, content


MODEL = r"/api/models/(?P<id>[^/]+/[^/]+)"
ROUTES = [
    ("GET", "/api/whoami-v2", whoami),
    ("POST", "/api/repos/create", create_repo),
    ("POST", "/api/validate-yaml", validate_yaml),
    ("GET", MODEL + "(/revision/(?P<rev>[^/]+))?", authorized(repo_info)),
    ("GET", MODEL + "/auth-check", authorized(lambda *_: {})),
    ("GET", MODEL + "/auth-check/write", authorized(lambda *_: {}, write=True)),
    ("GET", MODEL + "/refs", authorized(refs)),
    ("GET", MODEL + "/commits/(?P<rev>[^/]+)", authorized(commits)),
    ("GET", MODEL + "/tree/(?P<rev>[^/]+)(/(?P<path>.+))?", authorized(tree)),
    ("POST", MODEL + "/paths-info/(?P<rev>[^/]+)", authorized(paths_info)),
    ("POST", MODEL + "/branch/(?P<rev>[^/]+)", authorized(branch, write=True)),
    ("POST", MODEL + "/preupload/(?P<rev>[^/]+)", authorized(preupload, write=True)),
    ("POST", MODEL + "/commit/(?P<rev>[^/]+)", authorized(commit, write=True)),
    ("GET", MODEL + "/xet-read-token/(?P<rev>[^/]+)", authorized(xet_token)),
    ("GET", MODEL + "/xet-write-token/(?P<rev>[^/]+)", authorized(xet_token, write=True)),
    ("POST", r"/(?P<id>[^/]+/[^/]+)\.git/info/lfs/objects/batch", authorized(lfs_batch, write=True)),
    ("PUT", "/lfs/(?P<id>[^/]+/[^/]+)/(?P<oid>[0-9a-f]+)", lfs_upload),
    ("GET HEAD", "/(?P<id>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<path>.+)", authorized(resolve)),
]
