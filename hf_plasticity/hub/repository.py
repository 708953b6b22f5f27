"""A run's repository on the Hub: whether it may be written to, and whose run it holds; commits that happen once."""

import hashlib
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import get_session

from ..errors import PlasticityError
from ..hub_errors import explain_hub_error
from ..records import CONFIG_FILE, PROVENANCE, differences
from .contents import RUN_ID


MAIN = "main"
# Seconds without a byte after which a request counts as lost; the client itself would wait for ever.
TIMEOUT = 120.0
# What a repository may hold that was made by hand for the run.
UNCLAIMED = {".gitattributes", ".gitignore", "README.md", "LICENSE"}

# The records of a run lie with its model, so that one name is enough for both.
warnings.filterwarnings("ignore", message="It seems that you are about to commit a data file")


def with_timeout(api: HfApi) -> HfApi:
    """A client that takes a request for lost after a while. Ask for it before each: its sessions are renewed."""
    get_session().timeout = TIMEOUT
    return api


def download(api: HfApi, repo_id: str, names: Iterable[str], commit: str) -> dict[str, Path]:
    """
    The files of these names that a commit has, by name. One by one: of a commit of which some files are there already,
    `snapshot_download` may call these all where the Hub fails.
    """
    found = {}
    for name in names:
        try:
            found[name] = Path(with_timeout(api).hf_hub_download(repo_id, name, revision=commit))
        except LocalEntryNotFoundError:  # the Hub was not reached
            raise
        except EntryNotFoundError:
            continue
    return found


class HubRefusal(PlasticityError):
    """The Hub was reached, and will not have it: no token, no rights, or a repository with something else in it."""


class BranchMoved(OSError):
    """Somebody else has committed to a branch meanwhile."""


class RunRepository:
    """
    The repository of one run.

    Args:
        repo_id (`str`): `org/name`, or `name` for one of the user's own.
        identity (`Mapping[str, Any]`): The settings that tell this run from others, as they may be shown.
        run_id (`str`): Tells it from others of the same settings.
        token (`str`, *optional*): The user's own by default.
        private (`bool`, *optional*): Whether to make it private if it is made here.
    """

    def __init__(
        self,
        repo_id: str,
        identity: Mapping[str, Any],
        run_id: str,
        token: str | None = None,
        private: bool | None = None,
    ):
        self.repo_id, self.identity, self.run_id, self.private = repo_id, identity, run_id, private
        self._api = HfApi(token=token)
        self.changed_at = time.monotonic()
        self.is_open = False
        self._checked: str | None = None

    @property
    def api(self) -> HfApi:
        return with_timeout(self._api)

    def open(self) -> None:
        """
        Make the repository if there is none, and see to it that it is this run's and may be written to.

        Raises:
            [`HubRefusal`]: It can't be, and what would have to change.
        """
        try:
            user = self.api.whoami()["name"]
            if "/" not in self.repo_id:
                self.repo_id = f"{user}/{self.repo_id}"
            self.api.create_repo(self.repo_id, private=self.private, exist_ok=True)
            self.api.auth_check(self.repo_id, write=True)
            self.branches()
        except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError) as error:
            if (refusal := self._refusal(error)) is None:
                raise
            raise HubRefusal(f"hub_model_id: {refusal}") from None
        self.is_open = True

    def _refusal(self, error: Exception) -> str | None:
        if isinstance(error, LocalTokenNotFoundError):
            return f"pushing to '{self.repo_id}' takes a token: log in with `hf auth login`, or set HF_TOKEN"
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if status == 401:
            return "the Hub does not know the token (status 401): log in with `hf auth login`, or set HF_TOKEN"
        if status == 403:
            return f"the token may not write to '{self.repo_id}' (status 403): use another, or choose another name"
        if isinstance(error, HFValidationError) or status in (400, 404):
            return explain_hub_error(self.repo_id, "model", error)
        return None

    def branches(self) -> dict[str, str]:
        """
        The branches with their newest commits.

        Raises:
            [`HubRefusal`]: `main` holds something other than this run.
        """
        heads = {ref.name: ref.target_commit for ref in self.api.list_repo_refs(self.repo_id).branches}
        if heads[MAIN] != self._checked:
            self._check_whose(heads[MAIN])
            self._checked = heads[MAIN]
        return heads

    def _check_whose(self, commit: str) -> None:
        there = self._config(commit)
        if there is None:
            other = sorted(set(self._tree(commit)) - UNCLAIMED)
            if other:
                raise HubRefusal(
                    f"hub_model_id: '{self.repo_id}' holds other things ({other[0]}) and no run; choose another name"
                )
        else:
            different = differences(there, self.identity)
            if not different and there.get(PROVENANCE, {}).get(RUN_ID) != self.run_id:
                different = ["of the same configuration"]
            if different:
                raise HubRefusal(
                    f"hub_model_id: '{self.repo_id}' holds another run ({'; '.join(different)}); choose another name"
                )

    def download(self, names: Iterable[str], commit: str) -> dict[str, Path]:
        """The files of these names that a commit has, by name."""
        return download(self.api, self.repo_id, names, commit)

    def _config(self, commit: str) -> dict[str, Any] | None:
        """The configuration of the run in the repository, or `None` if no run is there."""
        try:
            path = self.api.hf_hub_download(self.repo_id, CONFIG_FILE, revision=commit)
            config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (EntryNotFoundError, yaml.YAMLError, UnicodeDecodeError):
            return None
        return config if isinstance(config, dict) and "schedule" in config else None

    def _tree(self, commit: str) -> dict[str, RepoFile]:
        entries = self.api.list_repo_tree(self.repo_id, recursive=True, revision=commit)
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def put(self, branch: str, files: Mapping[str, Path | bytes], message: str, onto: str | None = None) -> str:
        """
        Bring files to a branch in one commit; none if they are there already, as they are when the answer to an
        earlier commit was lost.

        Args:
            branch (`str`): Made from the first commit of `main` if there is none.
            files (`Mapping[str, Path | bytes]`): By their path in the repository.
            message (`str`): The commit's title.
            onto (`str`, *optional*): The branch's newest commit as far as the files know of it.

        Returns:
            `str`: The branch's newest commit.

        Raises:
            [`BranchMoved`]: The newest commit is another than `onto`.
        """
        heads = self.branches()
        if onto is not None and heads[branch] != onto:
            raise BranchMoved(f"'{branch}' has got another commit meanwhile")
        if branch not in heads:
            first = self.api.list_repo_commits(self.repo_id, revision=MAIN)[-1].commit_id
            self.api.create_branch(self.repo_id, branch=branch, revision=first, exist_ok=True)
            heads[branch] = first
        there = self._tree(heads[branch])
        changed = {path: content for path, content in files.items() if not _is_there(content, there.get(path))}
        if changed:
            operations = [CommitOperationAdd(path, content) for path, content in changed.items()]
            # With its parent named, a commit that is sent twice is refused the second time.
            heads[branch] = self.api.create_commit(
                self.repo_id, operations, commit_message=message, revision=branch, parent_commit=heads[branch]
            ).oid
        self.changed_at = time.monotonic()
        return heads[branch]


def _is_there(content: Path | bytes, there: RepoFile | None) -> bool:
    """Whether a file on the Hub has this content, by its SHA-256 in large-file storage or by git's own hash."""
    if there is None:
        return False
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    if there.size != size:
        return False
    digest = hashlib.sha256() if there.lfs else hashlib.sha1(b"blob %d\0" % size)
    if isinstance(content, bytes):
        digest.update(content)
    else:
        with content.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest() == (there.lfs.sha256 if there.lfs else there.blob_id)
