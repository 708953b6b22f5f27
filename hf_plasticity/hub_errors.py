"""Explain errors of the Hub client to the user."""

import errno
from collections.abc import Iterator

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


def explain_hub_error(repo_id: str, repo_type: str, error: BaseException) -> str | None:
    """
    Explain a problem with a repository and its solution in one line, or return `None` if the error is not from the
    Hub. `datasets` and `transformers` wrap the errors of the client, so all causes are considered.

    Args:
        repo_id (`str`): The repository, as the user gave it.
        repo_type (`str`): `"dataset"` or `"model"`.
        error (`BaseException`): The error.
    """
    url = f"https://huggingface.co/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"
    causes = list(_causes(error))

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if caused_by(HFValidationError):
        return f"'{repo_id}' is neither a folder nor the name of a repository, such as 'org/name'"
    if caused_by(GatedRepoError):
        return f"'{repo_id}' is gated: accept its terms at {url}, and log in with `hf auth login`"
    if caused_by(RepositoryNotFoundError):
        return f"there is no '{repo_id}' on the Hub, or it is private: check the name at {url}, or `hf auth login`"
    if caused_by(RevisionNotFoundError):
        return f"'{repo_id}' has no such revision: see {url}/tree/main for its revisions"
    status = next((cause.response.status_code for cause in causes if isinstance(cause, HfHubHTTPError)), None)
    if status in (401, 403):
        return f"the Hub denies access to '{repo_id}' (status {status}): log in with `hf auth login`"
    if status is not None and status >= 500:
        return f"the Hub failed on '{repo_id}' (status {status}): try again later"
    if caused_by(OfflineModeIsEnabled):
        return f"'{repo_id}' is not on this machine, and HF_HUB_OFFLINE is set: unset it, or download it first"
    if caused_by(LocalEntryNotFoundError, ConnectionError) or any("Connect" in type(c).__name__ for c in causes):
        return f"the Hub cannot be reached for '{repo_id}', and it is not on this machine: check the network"
    return None


def is_temporary(error: BaseException) -> bool:
    """Whether an error comes from the network or the Hub, so that a retry may succeed."""
    lasting = (GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError)
    if isinstance(error, lasting):
        return False
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM):
        return False
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code not in (400, 401, 403, 404)
    # The name of the HTTP library of the client depends on its version.
    return isinstance(error, OSError) or any(base.__module__.startswith("httpx") for base in type(error).__mro__)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
