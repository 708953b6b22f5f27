"""Upload a run to the Hub, in the background of the training."""

import json
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import disable_progress_bars
from torch import nn
from transformers import TrainingArguments
from transformers.utils import logging

from ..errors import PlasticityError, one_line
from ..periodic import PeriodicCallback, Timeline
from ..probing.checkpoint import save_probe_record
from ..records import (
    CHECKPOINT_NAME,
    CONFIG_FILE,
    HUB_FILE,
    PROBES_FILE,
    PROVENANCE,
    checkpoint_name,
    checkpoint_order,
    finished_steps_of_run,
    numerics_of,
    read_config,
    read_records,
    write_atomically,
)
from ..trainer.config import DEFERRED
from .contents import (
    RECORD_KEYS,
    checkpoint_files,
    config_file,
    has_weights,
    main_files,
    merge_records,
    public,
    saved_checkpoints,
    without_token,
)
from .repository import MAIN, HubAccessError, RunRepository


logger = logging.get_logger(__name__)

# Seconds: how long the start of a run waits for the Hub to accept or reject it, and the time between two attempts.
START_PATIENCE = 60.0
FIRST_WAIT, LONGEST_WAIT = 2.0, 600.0


def repository_of(folder: str | Path, repo_id: str | None = None, private: bool | None = None) -> RunRepository:
    """
    The repository to which a run folder is uploaded.

    Args:
        folder (`str` or `Path`): The run folder.
        repo_id (`str`, *optional*): By default the `hub_model_id` of the run, or the name of the folder.
        private (`bool`, *optional*): Whether a new repository is private.

    Raises:
        [`PlasticityError`]: The folder is not that of a run.
    """
    config = read_config(folder)
    if config is None:
        raise PlasticityError(f"'{folder}' has no {CONFIG_FILE}: it is not the folder of a run")
    if "schedule" not in config:
        raise PlasticityError(
            f"'{folder}' has probes of published checkpoints; only runs of `hf-plasticity train` can be uploaded"
        )
    repo_id = repo_id or config.get("hub_model_id") or Path(folder).resolve().name
    return RunRepository(repo_id, public(numerics_of(config)), run_id(folder), private=private)


def run_id(folder: str | Path) -> str:
    """The id of a run, which distinguishes it from runs with the same configuration. Created on first use."""
    state = _upload_state(folder)
    if "run_id" not in state:
        state["run_id"] = uuid.uuid4().hex[:12]
        _write_upload_state(folder, state)
    return state["run_id"]


def push_run(folder: str | Path, repository: RunRepository) -> None:
    """
    Upload everything in a run folder that is not on the Hub yet: each probed checkpoint to its branch, and the rest to
    `main`. `hub.json` stores the upload state.

    Args:
        folder (`str` or `Path`): The run folder.
        repository ([`RunRepository`]): The repository, opened.

    Raises:
        [`HubAccessError`]: The repository belongs to another run, or is not writable.
        `Exception`: Any error of the Hub client. The next call uploads the rest.
    """
    folder = Path(folder)
    there = repository.branches()
    state = _upload_state(folder)
    pushed = state.setdefault("pushed", {}).setdefault(repository.repo_id, {})
    for name in set(pushed) - set(there):
        del pushed[name]
    has_config = (folder / CONFIG_FILE).exists()
    if has_config and MAIN not in pushed:
        # Before any checkpoint, so that no other run can use the repository.
        files = config_file(folder, repository.run_id)
        there[MAIN] = repository.upload(MAIN, files, "Configuration of the run", parent=there[MAIN])
    # Checkpoints that were uploaded before they were probed.
    unprobed = state.setdefault("unprobed", {}).setdefault(repository.repo_id, [])
    deferred = (read_config(folder) or {}).get("probe") == DEFERRED
    if deferred and pushed.get(MAIN) != there[MAIN]:
        download_records(folder, repository, there[MAIN])
    # Read before the checkpoints are listed: when the run is finished, all of them exist, so that `main` is marked as
    # finished only after all branches are uploaded.
    finished_at = finished_steps_of_run(folder)
    cycles = {name: probed for name, probed in saved_checkpoints(folder).items() if probed or deferred}
    for name, probed in cycles.items():
        if name not in pushed or (probed and name in unprobed):
            message = f"Probed checkpoint {name}" if probed else f"Checkpoint {name}"
            pushed[name] = repository.upload(name, checkpoint_files(folder, name), message)
            unprobed[:] = sorted({*unprobed, name} - ({name} if probed else set()))
            _write_upload_state(folder, state)
    if has_config:
        # Also the branches of checkpoints that were deleted here after their upload.
        uploaded = {name for name in there if CHECKPOINT_NAME.fullmatch(name)}
        branches = sorted({*uploaded, *cycles}, key=checkpoint_order)
        has_model = has_weights(repository.files(there[MAIN]))
        files = main_files(folder, repository.repo_id, repository.run_id, branches, finished_at, has_model)
        pushed[MAIN] = repository.upload(MAIN, files, "Records of the run", parent=there[MAIN])
        _write_upload_state(folder, state)


def download_records(folder: Path, repository: RunRepository, commit: str) -> None:
    """Download the records that a separate probe process has uploaded."""
    merge_records(repository.download(RECORD_KEYS, commit), folder)
    saved, tasks_per_cycle = saved_checkpoints(folder), read_config(folder)[PROVENANCE]["tasks_per_cycle"]
    for record in read_records(folder / PROBES_FILE):
        name = checkpoint_name(record, tasks_per_cycle)
        if saved.get(name) is False:
            save_probe_record(folder / name, record)


def _upload_state(folder: str | Path) -> dict[str, Any]:
    """`hub.json`: the id of the run, and for each repository the commit of each uploaded branch."""
    path = Path(folder) / HUB_FILE
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise PlasticityError(
            f'\'{path}\' is damaged; write {{"run_id": "…"}} to it, with the run_id that config.yaml on the Hub has '
            "under provenance"
        ) from None


def _write_upload_state(folder: str | Path, state: dict[str, Any]) -> None:
    write_atomically(Path(folder) / HUB_FILE, json.dumps(state, indent=1).encode())


class RunPusher:
    """
    Upload a run from a background thread during training. Errors of the Hub do not affect the training: a failed
    upload is retried after 2 seconds, then 4, up to every 10 minutes.

    Args:
        folder (`str` or `Path`): The run folder.
        repository ([`RunRepository`]): The repository.
        patience (`float`, *optional*, defaults to 600.0): Seconds since the last successful upload after which
            `finish` no longer waits.
    """

    def __init__(self, folder: str | Path, repository: RunRepository, patience: float = 600.0):
        self.folder, self.repository, self.patience = Path(folder), repository, patience
        self.failure: str | None = None
        self._rejection: HubAccessError | None = None
        self._responded, self._news, self._ending, self._stopped = (threading.Event() for _ in range(4))
        self._thread = threading.Thread(target=self._work, name="push-to-hub", daemon=True)

    def start(self) -> None:
        """
        Start the thread, and wait until the Hub accepts or rejects the run, for at most a minute.

        Raises:
            [`HubAccessError`]: The Hub rejects the run.
        """
        self._thread.start()
        self._responded.wait(min(START_PATIENCE, self.patience))
        if self._rejection is not None:
            self._stop()
            raise self._rejection

    def wake(self) -> None:
        """Upload what is new in the run folder."""
        self._news.set()

    def finish(self) -> None:
        """Upload the rest, and warn if that fails."""
        self._ending.set()
        self._news.set()
        asked_at = time.monotonic()
        while self._thread.is_alive():
            self._thread.join(0.05)
            if time.monotonic() - max(asked_at, self.repository.changed_at) > self.patience:
                break
        if self._thread.is_alive():
            reason = self.failure or f"none has succeeded for {self.patience:g} seconds"
            logger.warning(
                f"the upload is not complete ({reason}); nothing is lost, and `hf-plasticity push {self.folder}` "
                "uploads the rest"
            )
        self._stop()

    def _stop(self) -> None:
        self._stopped.set()
        self._news.set()

    def _work(self) -> None:
        wait = FIRST_WAIT
        while not self._stopped.is_set():
            self._news.clear()
            ending, self.failure = self._ending.is_set(), None
            disable_progress_bars()  # each time, because the Trainer enables them again at its end
            try:
                if not self.repository.is_open:
                    self.repository.open()
                self._responded.set()
                push_run(self.folder, self.repository)
            except Exception as error:  # an upload must never stop the training
                self._record_failure(error, wait)
                self._news.wait(wait)
                wait = min(2 * wait, LONGEST_WAIT)
            else:
                wait = FIRST_WAIT
                if ending:
                    return
                self._news.wait()

    def _record_failure(self, error: Exception, wait: float) -> None:
        self.failure = describe(error)
        if not self._responded.is_set() and isinstance(error, HubAccessError):
            self._rejection = error
        else:
            logger.warning(
                f"upload to '{self.repository.repo_id}' failed: {self.failure}; next attempt in {wait:g} seconds"
            )
        self._responded.set()


class PushCallback(PeriodicCallback):
    """
    Uploads a run while it trains: wakes a [`RunPusher`] after each probe, or after each saved checkpoint of a run with
    deferred probes. Add it after the callback that probes, with the same period.

    Args:
        pusher ([`RunPusher`]): A started pusher.
        timeline ([`Timeline`]): The timeline of the training.
        every (`int`): Units between two probes.
        unit (`str`): `"tasks"` or `"cycles"`.
    """

    def __init__(self, pusher: RunPusher, timeline: Timeline, every: int, unit: str):
        super().__init__(timeline, every, unit, at_end=True)
        self.pusher = pusher

    def act(self, step: int, model: nn.Module, tokenizer: Any, folder: Path, args: TrainingArguments) -> None:
        """Wake the pusher."""
        self.pusher.wake()


def describe(error: Exception) -> str:
    """An error of the Hub client on one line of at most 200 characters."""
    if isinstance(error, HfHubHTTPError):
        text = f"the Hub returned status {error.response.status_code}: {error.server_message or 'no reason given'}"
    else:
        text = one_line(error) if isinstance(error, PlasticityError) else f"{type(error).__name__}: {one_line(error)}"
    text = without_token(" ".join(text.split()))
    return text if len(text) <= 200 else f"{text[:200]}…"
