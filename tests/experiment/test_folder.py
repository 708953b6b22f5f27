"""The content of a run folder: files of killed starts, damaged files, and files of other runs."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from unittest.mock import Mock

import pytest

from hf_plasticity import ContinualTrainer, PlasticityError
from hf_plasticity.cli import main
from hf_plasticity.data.sources import SOURCES, SyntheticSource
from hf_plasticity.experiment import folder as folder_module
from hf_plasticity.experiment import parse_experiment, run_experiment
from hf_plasticity.experiment.data import open_data
from hf_plasticity.experiment.folder import run_folder
from hf_plasticity.experiment.run import report_is_current
from hf_plasticity.records import PROBES_FILE, append_record, checkpoints, is_complete, read_run, run_lock
from hf_plasticity.threads import choose_threads
from support.launch import CONTINUAL, KILLED, TINY, error_line, launch, launch_killed, start, wait_until_stopped
from support.runs import assert_same_run, recorded


FLAGS = [*TINY, "--use_cpu", "--disable_tqdm=true"]


def configuration(folder, *flags):
    return parse_experiment([*FLAGS, f"--output_dir={folder}", f"--data_cache_dir={folder.parent / 'blocks'}", *flags])


def train(folder, *flags):
    run_experiment(configuration(folder, *flags))


def hidden(folder):
    """The names of files and folders that a run must not leave."""
    found = [path.name for path in folder.rglob(".*") if path.name not in (".lock", ".follow.lock")]
    return found + [path.name for path in checkpoints(folder) if not is_complete(path)]


# Files of an earlier start


def test_a_tokenizer_of_a_start_with_other_settings_is_trained_again(tmp_path):
    folder = tmp_path / "run"
    assert len(open_data(configuration(folder, "--train_tokenizer=300")).tokenizer) == 300
    assert len(open_data(configuration(folder, "--train_tokenizer=400")).tokenizer) == 400
    assert len(open_data(configuration(folder, "--train_tokenizer=400")).tokenizer) == 400
    path = folder / "tokenizer" / "tokenizer.json"
    written = path.stat().st_mtime_ns
    open_data(configuration(folder, "--train_tokenizer=400"))
    assert path.stat().st_mtime_ns == written, "trained once"
    (folder / "tokenizer" / "trained_from.json").write_text("{")
    assert len(open_data(configuration(folder, "--train_tokenizer=400")).tokenizer) == 400
    assert path.stat().st_mtime_ns > written, "of unknown origin"


@pytest.fixture(scope="module")
def one_cycle(tmp_path_factory):
    """A run of one cycle, which the tests extend to two."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    train(folder, "--cycles=1")
    return folder


@pytest.fixture
def begun(one_cycle, tmp_path):
    folder = tmp_path / "run"
    subprocess.run(["cp", "-a", one_cycle, folder], check=True)
    return folder


DAMAGES = {
    "torn": lambda lines: [lines[0], lines[1][:40]],
    "zeroed": lambda lines: [lines[0], b"\0" * len(lines[1])],
    "missing": lambda lines: [lines[0]],
    "not a record": lambda lines: [lines[0], b"[1]"],
    "all missing": lambda lines: [],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_lost_probe_record_is_restored_from_its_checkpoint(begun, finished, damage):
    path = begun / PROBES_FILE
    path.write_bytes(b"\n".join(DAMAGES[damage](path.read_bytes().splitlines())))
    train(begun)
    probes, expected = recorded(begun)[0], recorded(finished[0])[0]
    assert probes == expected and probes[2]["delta_auc"] != 0


def test_a_damaged_probe_record_without_a_copy_stops_the_run(begun):
    path = begun / PROBES_FILE
    first, second = path.read_bytes().splitlines()
    path.write_bytes(first + b"\n" + second[:40])
    (begun / "cycle-001" / "probe.json").write_bytes(b"\0" * 100)
    before = path.read_bytes()
    with pytest.raises(PlasticityError) as caught:
        train(begun)
    assert f"'{path}': line 2 is damaged, and the probed checkpoints have no copy of it" in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content"), [("trainer_state.json", ""), ("probe_protocols.json", "{"), ("config.yaml", "a: [")]
)
def test_a_damaged_file_of_the_run_is_named_on_one_line(begun, capsys, name, content):
    (begun / name).write_text(content)
    assert main(["train", *FLAGS, f"--output_dir={begun}", f"--data_cache_dir={begun.parent / 'blocks'}"]) == 2
    error = capsys.readouterr().err.strip()
    assert f"'{begun / name}' is" in error and len(error.splitlines()) == 1
    assert main(["report", str(begun), "-o", str(begun.parent / "report.html")]) == 2
    error = capsys.readouterr().err.strip()
    assert f"'{begun / name}' is" in error and len(error.splitlines()) == 1


def test_files_left_by_killed_starts_are_removed(begun, finished):
    for name in (".config.yaml.0123456789ab", ".diagnostics.jsonl.0123456789ab", "cycle-001/.probe.json.0123456789ab"):
        (begun / name).write_text("half")
    (begun / "checkpoint-6").mkdir()
    (begun / "checkpoint-6" / "optimizer.pt").write_text("half")
    assert len(hidden(begun)) == 4
    train(begun)
    assert hidden(begun) == []
    assert recorded(begun)[0] == recorded(finished[0])[0]


def test_a_run_killed_while_deleting_checkpoints_leaves_no_files(finished, tmp_path):
    folder = tmp_path / "run"
    launch_killed("rotate:2", *TINY, f"--output_dir={folder}", direct=True)
    assert [path.name for path in checkpoints(folder) if not is_complete(path)] == ["checkpoint-8"]
    train(folder)
    assert hidden(folder) == []
    assert_same_run(finished[0], folder)


def test_a_report_that_was_never_written_is_written_by_the_next_start(tmp_path, finished, capsys):
    folder = tmp_path / "run"
    launch_killed("report:1", *TINY, f"--output_dir={folder}", direct=True)
    assert not (folder / "report.html").exists()
    train(folder)
    assert "is complete" in capsys.readouterr().out
    assert report_is_current(folder)
    assert_same_run(finished[0], folder)


@pytest.mark.parametrize("name", ["probes.jsonl", "diagnostics.jsonl", "forgetting.jsonl", "mitigations.jsonl"])
def test_a_report_that_is_older_than_the_records_is_rewritten(begun, name):
    report = begun / "report.html"
    train(begun, "--cycles=1")
    written = report.stat().st_mtime_ns
    (begun / name).touch()
    train(begun, "--cycles=1")
    assert report.stat().st_mtime_ns > written


def test_a_killed_run_with_workers_can_be_restarted_immediately(tmp_path, finished):
    command = [*TINY, f"--output_dir={tmp_path}", "--dataloader_num_workers=2"]
    process = start("task:7", CONTINUAL, *command, script=KILLED, direct=True)
    try:
        assert process.wait(300) == -signal.SIGKILL
        with run_lock(tmp_path):
            assert _processes_of(tmp_path), "its workers are still there"
    finally:
        process.kill()
        process.communicate()
    assert launch(*command, direct=True).returncode == 0
    assert_same_run(finished[0], tmp_path)


def _processes_of(folder):
    """The processes with a folder in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:  # It has just ended.
            continue
    return found


# Other trainings


@pytest.mark.parametrize("kept", ["cycle-001", "forgetting.jsonl"])
def test_what_a_killed_run_without_checkpoints_left_is_never_taken_for_that_of_other_settings(begun, kept):
    """With `--save_strategy no` and no probe yet, this is all that tells a trained model from an untrained one."""
    for path in begun.glob("cycle-*/probe.json"):
        path.unlink()
    append_record(begun / "forgetting.jsonl", {"step": 8, "task": 2, "losses": {"syn1": 1.0}}, ("step",))
    for path in begun.iterdir():
        if path.name not in ("config.yaml", "cycle-000", kept):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = sorted(path.name for path in begun.iterdir())
    with pytest.raises(PlasticityError, match=r"belongs to another run \(learning_rate is"):
        train(begun, "--learning_rate=3e-3")
    assert sorted(path.name for path in begun.iterdir() if path.name not in (".lock", ".follow.lock")) == before


def test_a_start_that_took_no_step_leaves_all_settings_free(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(ContinualTrainer, "training_step", Mock(side_effect=PlasticityError("loss: not finite")))
        with pytest.raises(PlasticityError, match="loss: not finite"):
            train(folder, "--learning_rate=9", "--cycles=1")
    assert [probe["step"] for probe in read_run(folder).probes] == [0]
    (folder / "hub.json").write_text('{"run_id": "a", "pushed": {"org/run": {"cycle-000": "0"}}}')
    for one in (folder, tmp_path / "new"):
        train(one, "--learning_rate=3e-3", "--cycles=1")
    assert not (folder / "hub.json").exists(), "what the abandoned start has uploaded is not that of this run"
    assert_same_run(folder, tmp_path / "new")


@pytest.mark.parametrize("name", ["checkpoint-500", "trainer_state.json", PROBES_FILE])
def test_a_folder_of_another_training_is_refused_and_not_changed(tmp_path, name):
    if name == PROBES_FILE:
        append_record(tmp_path / name, {"step": 500, "task": None, "probe_config_hash": "a"}, ("step",))
    elif name == "checkpoint-500":
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("precious")
    else:
        (tmp_path / name).write_text('{"global_step": 500}')
    with pytest.raises(PlasticityError) as caught:
        train(tmp_path)
    assert str(caught.value) == (
        f"output_dir: '{tmp_path}' has checkpoints or records but no config.yaml, so they may be those of "
        "another training; choose another folder"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([".lock", name])


@pytest.mark.parametrize(
    "flag", ["--neftune_noise_alpha=5", "--torch_compile", "--full_determinism=true", "--mitigation=weight_clip"]
)
def test_settings_that_decide_results_cannot_change_between_two_starts(begun, flag):
    config = configuration(begun, flag)
    name = flag.removeprefix("--").split("=")[0]
    with pytest.raises(PlasticityError, match=f"belongs to another run .*{name} is "), run_folder(config):
        pass


def test_a_run_resumes_with_the_threads_that_it_was_started_with(begun, monkeypatch, caplog):
    with caplog.at_level("WARNING"):
        assert choose_threads(None, recorded=3) == 3 and choose_threads(1, recorded=3) == 1
    assert "the run was started with 3 CPU threads; its last bits change with 1" in caplog.text
    chosen = []
    monkeypatch.setattr("hf_plasticity.experiment.run.set_threads", chosen.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    config = configuration(begun)
    config.training.cpu_threads = None
    run_experiment(config)
    assert chosen == [1]


# Files that cannot be written


class VersionedSource(SyntheticSource):
    """Text that changes with the commit, of which `newest` is the default."""

    settings, newest = ("dataset_commits",), "a"

    def __init__(self, commit):
        super().__init__()
        self.commit = commit

    @classmethod
    def from_config(cls, config):
        return cls(config.dataset_commits or cls.newest)

    def fingerprint(self, language):
        return f"{self.commit}-{super().fingerprint(language)}"

    def resolved_settings(self):
        return {"dataset_commits": self.commit}


def test_a_run_resumes_with_the_text_that_it_was_started_with(tmp_path, monkeypatch):
    monkeypatch.setitem(SOURCES, "versioned", VersionedSource)
    train(tmp_path / "run", "--source=versioned", "--cycles=1")
    monkeypatch.setattr(VersionedSource, "newest", "b")
    train(tmp_path / "run", "--source=versioned")
    assert read_run(tmp_path / "run").config["dataset_commits"] == "a"
    run_experiment(
        parse_experiment(["--config", str(tmp_path / "run" / "config.yaml"), f"--output_dir={tmp_path / 'again'}"])
    )
    curves = [[probe["losses"] for probe in read_run(tmp_path / name).probes] for name in ("run", "again")]
    assert len(curves[0]) == 3 and curves[0] == curves[1]
    with pytest.raises(PlasticityError, match="was started with other text"):
        train(tmp_path / "run", "--source=versioned", "--dataset_commits=b", "--cycles=3")


def test_text_that_changes_before_the_first_checkpoint_leaves_no_records_of_the_other_text(tmp_path, monkeypatch):
    monkeypatch.setitem(SOURCES, "versioned", VersionedSource)
    monkeypatch.setattr(VersionedSource, "resolved_settings", lambda self: {})  # as for files of a folder
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(ContinualTrainer, "training_step", Mock(side_effect=PlasticityError("loss: not finite")))
        with pytest.raises(PlasticityError, match="loss: not finite"):
            train(folder, "--source=versioned", "--cycles=1")
    (folder / "hub.json").write_text('{"run_id": "a", "pushed": {"org/run": {"cycle-000": "0"}}}')
    monkeypatch.setattr(VersionedSource, "newest", "b")
    for one in (folder, tmp_path / "new"):
        train(one, "--source=versioned", "--cycles=1")
    assert [probe["step"] for probe in read_run(folder).probes] == [0, 8]
    assert_same_run(folder, tmp_path / "new")
    assert json.loads((folder / "hub.json").read_text()) == {"run_id": "a"}, "cycle-000 is uploaded again"


def test_the_trained_tokenizer_of_a_run_is_kept_when_its_text_has_changed(tmp_path, monkeypatch):
    monkeypatch.setitem(SOURCES, "versioned", VersionedSource)
    monkeypatch.setattr(VersionedSource, "resolved_settings", lambda self: {})
    settings = ["--source=versioned", "--train_tokenizer=300"]
    train(tmp_path / "run", *settings, "--cycles=1")
    written = (tmp_path / "run" / "tokenizer" / "tokenizer.json").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(VersionedSource, "newest", "b")
        with pytest.raises(PlasticityError, match="was started with other text"):
            train(tmp_path / "run", *settings)
    assert (tmp_path / "run" / "tokenizer" / "tokenizer.json").stat().st_mtime_ns == written
    shutil.rmtree(tmp_path / "run" / "tokenizer")
    train(tmp_path / "run", *settings)  # it is trained again from the same text
    assert [probe["cycle"] for probe in read_run(tmp_path / "run").probes] == [0, 1, 2]


def test_two_languages_with_the_same_text_are_refused(tmp_path):
    for language in ("en", "fr", "vi"):
        text = "the same text" if language != "fr" else "another text"
        (tmp_path / f"{language}.txt").write_text("\n".join(f"{text} {number}" for number in range(500)))
    local = ["--source=local", f"--data_dir={tmp_path}", "--languages", "en", "fr", "--probe_language=vi"]
    with pytest.raises(PlasticityError, match="languages: 'en' and 'vi' have the same text"):
        train(tmp_path / "run", *local)


def test_a_run_that_resumes_with_other_versions_records_both_and_warns(begun, monkeypatch, caplog):
    before = read_run(begun).config["provenance"]
    monkeypatch.setattr(folder_module, "versions", lambda: before["versions"] | {"torch": "9.9.9"})
    with caplog.at_level("WARNING"):
        train(begun)
    after = read_run(begun).config["provenance"]
    assert after["versions"]["torch"] == "9.9.9"
    [earlier] = after["earlier"]
    assert earlier["until_step"] == 8 and earlier["versions"] == before["versions"]
    assert f"torch {before['versions']['torch']} → 9.9.9" in caplog.text


@pytest.fixture
def unwritable(tmp_path):
    """A read-only folder, even for root: on a file system that is mounted read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"needs to mount a tmpfs: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_read_only_folder_is_reported_on_one_line(unwritable, capsys):
    for folder in (unwritable, unwritable / "run"):
        assert main(["train", *FLAGS, f"--output_dir={folder}"]) == 2
        assert capsys.readouterr().err.strip() == (
            f"hf-plasticity: error: output_dir: '{folder}' cannot be used as a folder: Read-only file system"
        )


def test_a_file_instead_of_the_folder_is_reported_on_one_line(tmp_path, capsys):
    (tmp_path / "run").write_text("")
    assert main(["train", *FLAGS, f"--output_dir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err.strip()
    assert error == f"hf-plasticity: error: output_dir: '{tmp_path / 'run'}' cannot be used as a folder: File exists"


@pytest.mark.parametrize("event", ["task:6", "record:2", "final:1", "report:1"])
def test_a_folder_that_becomes_unwritable_ends_the_run_on_one_line(tmp_path, finished, event):
    folder = tmp_path / "run"
    command = [event, CONTINUAL, *TINY, f"--output_dir={folder}"]
    # Root may write to any folder, unless it gives up this capability.
    prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    if prefix and shutil.which("setpriv") is None:
        pytest.skip("needs setpriv to run as root without the right to write everywhere")
    process = start(*command, script=KILLED, direct=True, prefix=prefix, SIGNALS="SIGSTOP")
    try:
        wait_until_stopped(process)
        folder.chmod(0o555)
        process.send_signal(signal.SIGCONT)
        stdout, stderr = process.communicate(timeout=300)
    finally:
        process.kill()
        folder.chmod(0o755)
    assert process.returncode == 2 and "Traceback" not in stderr, stderr[-3000:]
    ended = subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
    assert "Permission denied" in error_line(ended) and str(folder) in error_line(ended)
    train(folder)
    assert_same_run(finished[0], folder)
