"""Putting a run on the Hub, beside training and never in its way."""

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

from ..errors import PlasticityError
from ..hub_errors import one_line
from ..periodic import PeriodicCallback, Timeline
from ..probing.checkpoint import save_probe_record
from ..records import (
    CONFIG_FILE,
    HUB_FILE,
    PROBES_FILE,
    PROVENANCE,
    checkpoint_name,
    numerics_of,
    read_config,
    read_records,
    write_atomically,
)
from ..trainer.config import DEFERRED
from .contents import (
    RECORD_KEYS,
    checkpoint_files,
    last_step,
    main_files,
    merge_records,
    public,
    saved_checkpoints,
    without_token,
)
from .repository import MAIN, HubRefusal, RunRepository


logger = logging.get_logger(__name__)

# Seconds: how long the start of a run waits to hear that the Hub refuses it, and between two attempts to push.
START_PATIENCE = 60.0
FIRST_WAIT, LONGEST_WAIT = 2.0, 600.0


def repository_of(folder: str | Path, repo_id: str | None = None, private: bool | None = None) -> RunRepository:
    """
    The repository that a run folder goes to.

    Args:
        folder (`str` or `Path`): The run folder.
        repo_id (`str`, *optional*): The run's `hub_model_id` by default, or the folder's name.
        private (`bool`, *optional*): Whether to make it private if it is made.

    Raises:
        [`PlasticityError`]: The folder holds no run with a configuration.
    """
    config = read_config(folder)
    if config is None:
        raise PlasticityError(f"'{folder}' has no {CONFIG_FILE}: it is not a run that can be pushed")
    if "schedule" not in config:
        raise PlasticityError(f"'{folder}' holds probes of published checkpoints; only a run of one's own is pushed")
    repo_id = repo_id or config.get("hub_model_id") or Path(folder).resolve().name
    return RunRepository(repo_id, public(numerics_of(config)), run_id(folder), private=private)


def run_id(folder: str | Path) -> str:
    """What tells a run from others of the same configuration; made up when it is first asked for."""
    account = _account(folder)
    if "run_id" not in account:
        account["run_id"] = uuid.uuid4().hex[:12]
        _write_account(folder, account)
    return account["run_id"]


def push_run(folder: str | Path, repository: RunRepository) -> None:
    """
    Bring all of a run folder to the Hub that is not there yet: each probed checkpoint to its branch, and the rest to
    `main`. What is there already is left alone, and `hub.json` keeps account.

    Args:
        folder (`str` or `Path`): The run folder.
        repository ([`RunRepository`]): Where to; open.

    Raises:
        [`HubRefusal`]: The repository is not this run's, or may not be written to.
        `Exception`: Whatever else the client raises; what was not sent is sent by the next call.
    """
    folder = Path(folder)
    there = repository.branches()
    account = _account(folder)
    pushed = account.setdefault("pushed", {}).setdefault(repository.repo_id, {})
    for name in set(pushed) - set(there):
        del pushed[name]
    # Those that went there before their probe had taken place.
    unprobed = account.setdefault("unprobed", {}).setdefault(repository.repo_id, [])
    deferred = (read_config(folder) or {}).get("probe") == DEFERRED
    if deferred and pushed.get(MAIN) != there[MAIN]:
        take_records(folder, repository, there[MAIN])
    # Before the cycles, of which the last is there once the run is finished: `main` says so only after all of them.
    finished_at = last_step(folder)
    cycles = {name: probed for name, probed in saved_checkpoints(folder).items() if probed or deferred}
    for name, probed in cycles.items():
        if name not in pushed or (probed and name in unprobed):
            message = f"Probed checkpoint {name}" if probed else f"Checkpoint {name}"
            pushed[name] = repository.put(name, checkpoint_files(folder, name), message)
            unprobed[:] = sorted({*unprobed, name} - ({name} if probed else set()))
            _write_account(folder, account)
    if (folder / CONFIG_FILE).exists():
        files = main_files(folder, repository.repo_id, repository.run_id, list(cycles), finished_at)
        pushed[MAIN] = repository.put(MAIN, files, "Records of the run", onto=there[MAIN])
        _write_account(folder, account)


def take_records(folder: Path, repository: RunRepository, commit: str) -> None:
    """Bring home what a follower has probed and sent to the Hub."""
    merge_records(repository.download(RECORD_KEYS, commit), folder)
    saved, tasks_per_cycle = saved_checkpoints(folder), read_config(folder)[PROVENANCE]["tasks_per_cycle"]
    for record in read_records(folder / PROBES_FILE):
        name = checkpoint_name(record, tasks_per_cycle)
        if saved.get(name) is False:
            save_probe_record(folder / name, record)


def _account(folder: str | Path) -> dict[str, Any]:
    """`hub.json`: the run's id, and for each repository the commit of each branch that was pushed."""
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


def _write_account(folder: str | Path, account: dict[str, Any]) -> None:
    write_atomically(Path(folder) / HUB_FILE, json.dumps(account, indent=1).encode())


class RunPusher:
    """
    Pushes a run while it goes on, from a thread of its own. Whatever the Hub does, training takes no notice: what does
    not get through stays in the run folder and is tried again, after 2 seconds, then 4, up to every 10 minutes.

    Args:
        folder (`str` or `Path`): The run folder.
        repository ([`RunRepository`]): Where to.
        patience (`float`, *optional*, defaults to 600.0): Seconds that the end of the run waits for a Hub that takes
            nothing more.
    """

    def __init__(self, folder: str | Path, repository: RunRepository, patience: float = 600.0):
        self.folder, self.repository, self.patience = Path(folder), repository, patience
        self.failure: str | None = None
        self._refusal: HubRefusal | None = None
        self._answered, self._news, self._ending, self._given_up = (threading.Event() for _ in range(4))
        self._thread = threading.Thread(target=self._work, name="push-to-hub", daemon=True)

    def start(self) -> None:
        """
        Begin, and wait until the Hub has said whether it will have the run; not for long if it says nothing.

        Raises:
            [`HubRefusal`]: It will not.
        """
        self._thread.start()
        self._answered.wait(min(START_PATIENCE, self.patience))
        if self._refusal is not None:
            self._give_up()
            raise self._refusal

    def wake(self) -> None:
        """There is something new in the run folder."""
        self._news.set()

    def finish(self) -> None:
        """Send the rest, and say so if the Hub does not take it."""
        self._ending.set()
        self._news.set()
        asked_at = time.monotonic()
        while self._thread.is_alive():
            self._thread.join(0.05)
            if time.monotonic() - max(asked_at, self.repository.changed_at) > self.patience:
                break
        if self._thread.is_alive():
            logger.warning(
                f"not all of this run is on the Hub ({self.failure or 'it does not answer'}); nothing is lost, and "
                f"`hf-plasticity push {self.folder}` sends the rest"
            )
        self._give_up()

    def _give_up(self) -> None:
        self._given_up.set()
        self._news.set()

    def _work(self) -> None:
        wait = FIRST_WAIT
        while not self._given_up.is_set():
            self._news.clear()
            ending, self.failure = self._ending.is_set(), None
            disable_progress_bars()  # every time: the Trainer turns them on again when it has ended
            try:
                if not self.repository.is_open:
                    self.repository.open()
                self._answered.set()
                push_run(self.folder, self.repository)
            except Exception as error:  # not even a mistake of ours may end a run of days
                self._note(error, wait)
                self._news.wait(wait)
                wait = min(2 * wait, LONGEST_WAIT)
            else:
                wait = FIRST_WAIT
                if ending:
                    return
                self._news.wait()

    def _note(self, error: Exception, wait: float) -> None:
        self.failure = describe(error)
        if not self._answered.is_set() and isinstance(error, HubRefusal):
            self._refusal = error
        else:
            logger.warning(f"push to '{self.repository.repo_id}': {self.failure}; next attempt in {wait:g} seconds")
        self._answered.set()


class PushCallback(PeriodicCallback):
    """
    Uploads a run while it trains: wakes a [`RunPusher`] after each probe, or after each saved checkpoint of a run with
    deferred probes. Add it after the callback that probes, with the same period.

    Args:
        pusher ([`RunPusher`]): Started.
        timeline ([`Timeline`]): Of the training.
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
    """An error of the client's on one line that is not too long."""
    if isinstance(error, HfHubHTTPError):
        text = f"the Hub answers with status {error.response.status_code}: {error.server_message or 'no reason given'}"
    else:
        text = one_line(error) if isinstance(error, PlasticityError) else f"{type(error).__name__}: {one_line(error)}"
    text = without_token(" ".join(text.split()))
    return text if len(text) <= 200 else f"{text[:200]}…"
