"""The repository of a run on the Hub: access, identity, and commits without duplicates."""

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
# Seconds without data after which a request fails. The client has no timeout (seen in huggingface_hub 2.4.0).
TIMEOUT = 120.0
# Files that a repository created by hand may have.
UNCLAIMED = {".gitattributes", ".gitignore", "README.md", "LICENSE"}

# The records of a run are in the repository of its model on purpose.
warnings.filterwarnings("ignore", message="It seems that you are about to commit a data file")


def with_timeout(api: HfApi) -> HfApi:
    """Set the timeout of the client. Call this before each request, because the client renews its sessions."""
    get_session().timeout = TIMEOUT
    return api


def download(api: HfApi, repo_id: str, names: Iterable[str], commit: str) -> dict[str, Path]:
    """
    Download the files of these names that a commit has. Files are downloaded one at a time, because
    `snapshot_download` returns an incomplete snapshot without an error if some files are cached and the Hub fails
    (seen in huggingface_hub 2.4.0).
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


class HubAccessError(PlasticityError):
    """The Hub rejects an upload: no token, no write access, or a repository with other content."""


class BranchMovedError(OSError):
    """A branch has a newer commit than expected."""


class RunRepository:
    """
    The repository of one run.

    Args:
        repo_id (`str`): `org/name`, or `name` for a repository of the user.
        identity (`Mapping[str, Any]`): The settings that identify the run, without private values.
        run_id (`str`): Distinguishes the run from others with the same settings.
        token (`str`, *optional*): By default the token of the logged-in user.
        private (`bool`, *optional*): Whether a new repository is private.
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
        Create the repository if it does not exist, and check that it belongs to this run and is writable.

        Raises:
            [`HubAccessError`]: It is not; the message has the solution.
        """
        try:
            user = self.api.whoami()["name"]
            if "/" not in self.repo_id:
                self.repo_id = f"{user}/{self.repo_id}"
            self.api.create_repo(self.repo_id, private=self.private, exist_ok=True)
            self.api.auth_check(self.repo_id, write=True)
            self.branches()
        except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError) as error:
            if (reason := self._reason(error)) is None:
                raise
            raise HubAccessError(f"hub_model_id: {reason}") from None
        self.is_open = True

    def _reason(self, error: Exception) -> str | None:
        if isinstance(error, LocalTokenNotFoundError):
            return f"uploading to '{self.repo_id}' requires a token: log in with `hf auth login`, or set HF_TOKEN"
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if status == 401:
            return "the token is not valid (status 401): log in with `hf auth login`, or set HF_TOKEN"
        if status == 403:
            return f"the token has no write access to '{self.repo_id}' (status 403): use another token or another name"
        if isinstance(error, HFValidationError) or status in (400, 404):
            return explain_hub_error(self.repo_id, "model", error)
        return None

    def branches(self) -> dict[str, str]:
        """
        The branches with their newest commits.

        Raises:
            [`HubAccessError`]: `main` does not belong to this run.
        """
        heads = {ref.name: ref.target_commit for ref in self.api.list_repo_refs(self.repo_id).branches}
        if heads[MAIN] != self._checked:
            self._check_owner(heads[MAIN])
            self._checked = heads[MAIN]
        return heads

    def _check_owner(self, commit: str) -> None:
        there = self._config(commit)
        if there is None:
            other = sorted(set(self.files(commit)) - UNCLAIMED)
            if other:
                raise HubAccessError(
                    f"hub_model_id: '{self.repo_id}' has other files ({other[0]}) and no run; choose another name"
                )
        else:
            different = differences(there, self.identity)
            if not different and there.get(PROVENANCE, {}).get(RUN_ID) != self.run_id:
                different = ["of the same configuration"]
            if different:
                raise HubAccessError(
                    f"hub_model_id: '{self.repo_id}' belongs to another run ({'; '.join(different)}); choose another "
                    "name"
                )

    def download(self, names: Iterable[str], commit: str) -> dict[str, Path]:
        """Download the files of these names that a commit has."""
        return download(self.api, self.repo_id, names, commit)

    def _config(self, commit: str) -> dict[str, Any] | None:
        """The configuration of the run in the repository, or `None` if there is none."""
        try:
            path = self.api.hf_hub_download(self.repo_id, CONFIG_FILE, revision=commit)
            config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except LocalEntryNotFoundError:  # the Hub was not reached
            raise
        except (EntryNotFoundError, yaml.YAMLError, UnicodeDecodeError):
            return None
        return config if isinstance(config, dict) and "schedule" in config else None

    def files(self, commit: str) -> dict[str, RepoFile]:
        """The files of a commit by their path."""
        entries = self.api.list_repo_tree(self.repo_id, recursive=True, revision=commit)
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def upload(self, branch: str, files: Mapping[str, Path | bytes], message: str, parent: str | None = None) -> str:
        """
        Upload files to a branch in one commit. Files that are there already are skipped, so that a commit whose
        response was lost is not repeated.

        Args:
            branch (`str`): The branch; created from the first commit of `main` if it does not exist.
            files (`Mapping[str, Path | bytes]`): The files by their path in the repository.
            message (`str`): The title of the commit.
            parent (`str`, *optional*): The commit that must be the newest of the branch.

        Returns:
            `str`: The newest commit of the branch.

        Raises:
            [`BranchMovedError`]: The newest commit is not `parent`.
        """
        heads = self.branches()
        if parent is not None and heads[branch] != parent:
            raise BranchMovedError(f"'{branch}' has a newer commit")
        if branch not in heads:
            first = self.api.list_repo_commits(self.repo_id, revision=MAIN)[-1].commit_id
            self.api.create_branch(self.repo_id, branch=branch, revision=first, exist_ok=True)
            heads[branch] = first
        there = self.files(heads[branch])
        changed = {path: content for path, content in files.items() if not _is_there(content, there.get(path))}
        if changed:
            operations = [CommitOperationAdd(path, content) for path, content in changed.items()]
            # With a parent commit, a request that is sent twice is rejected the second time.
            heads[branch] = self.api.create_commit(
                self.repo_id, operations, commit_message=message, revision=branch, parent_commit=heads[branch]
            ).oid
        self.changed_at = time.monotonic()
        return heads[branch]


def _is_there(content: Path | bytes, there: RepoFile | None) -> bool:
    """Whether a file on the Hub has this content, by its SHA-256 (LFS) or its git hash."""
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
