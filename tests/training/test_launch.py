"""Who started a run's processes, what cannot be, and how they end together."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from arlow_vl.training import ranks
from arlow_vl.training.launch import COMMAND, LOST, ProcessRank, find_place, start_processes, starts_processes
from arlow_vl.training.ranks import joined
from arlow_vl.training.settings import EngineConfig
from experiments.cluster.arithmetic import table

ONE, TWO, EIGHT = EngineConfig(), EngineConfig(devices=2), EngineConfig(devices=4, nodes=2)
TORCHRUN = {"WORLD_SIZE": "8", "RANK": "5", "LOCAL_RANK": "1"}
SRUN = {"SLURM_NTASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}


@pytest.mark.parametrize(
    ("engine", "variables", "place"),
    [
        (ONE, {}, ProcessRank()),
        (ONE, {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, ProcessRank()),
        (ONE, {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, ProcessRank()),
        (ONE, {"WORLD_SIZE": "", "RANK": ""}, ProcessRank()),
        (EIGHT, TORCHRUN, ProcessRank(5, 1, 8)),
        (EIGHT, SRUN, ProcessRank(5, 1, 8)),
        (EIGHT, TORCHRUN | SRUN | {"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, ProcessRank(5, 1, 8)),  # one a machine
    ],
)
def test_a_process_finds_its_place(engine, variables, place):
    assert find_place(engine, variables) == place


@pytest.mark.parametrize(
    ("engine", "variables", "sentence"),
    [
        (ONE, {"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but run.engine asks for 1 device on 1 node"),
        (TWO, TORCHRUN, "WORLD_SIZE is 8, but run.engine asks for 2 devices on 1 node"),
        (TWO, {"SLURM_NTASKS": "4"}, "SLURM_NTASKS is 4, but run.engine asks for 2 devices"),
        (TWO, {"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK is not set: start the run with torchrun or srun"),
        (TWO, {"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE is 2, but RANK is not set"),
        (TWO, {}, "asks for 2 devices on 1 node, but this is one process: start it with `arlow fit`"),
        (EIGHT, {}, "on several nodes with torchrun or srun"),
        (ONE, {"WORLD_SIZE": "1", "RANK": "5", "LOCAL_RANK": "0"}, "RANK is 5, but .* so the highest is 0"),
        (TWO, {"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0"}, "RANK is 2, but .* so the highest is 1"),
        (TWO, {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "7"}, "LOCAL_RANK is 7, but .* so the highest is 1"),
        (ONE, {"WORLD_SIZE": "1", "RANK": "x", "LOCAL_RANK": "0"}, "RANK is 'x', no number"),
    ],
)
def test_other_processes_than_the_recipe_asks_for_are_refused(engine, variables, sentence):
    with pytest.raises(ValueError, match=sentence):
        find_place(engine, variables)


def test_arlow_fit_starts_the_processes_of_one_machine_unless_a_launcher_has():
    assert starts_processes(TWO, {})
    assert not starts_processes(ONE, {})
    assert not starts_processes(EIGHT, {})
    assert not starts_processes(TWO, {"WORLD_SIZE": "2", "RANK": "0"})
    assert not starts_processes(TWO, {"SLURM_NTASKS": "2"})


def run(count: int, code: str) -> int:
    program = f"import os, sys, time; rank = int(os.environ['RANK']); {code}"
    return start_processes(count, [], command=[sys.executable, "-c", program])


def test_the_processes_of_a_run_need_no_script_and_take_nothing_from_the_current_folder(tmp_path):
    (tmp_path / "vision.py").write_text("raise SystemExit('another vision')")
    python, *words, _ = COMMAND
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [python, "-X", "importtime", *words, "--version"]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.stdout.startswith("arlow "), ran.stderr
    assert not re.search(r"\| +torch$", ran.stderr, re.MULTILINE)  # what takes seconds waits, as in the `arlow` command


def test_the_processes_of_a_run_have_the_code_of_the_process_that_starts_them(tmp_path, monkeypatch):
    """As from a checkout that is not installed: -P leaves out the current folder, from which that was imported."""
    monkeypatch.setattr("arlow_vl.training.launch.PACKAGES", tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert run(1, f"sys.exit(0 if {str(tmp_path)!r} in sys.path else 1)") == 0


def test_the_status_of_a_run_is_that_of_the_process_that_failed_and_not_of_those_that_lost_it(monkeypatch):
    assert run(2, "pass") == 0
    assert run(3, f"sys.exit([0, 3, {LOST}][rank])") == 3
    assert run(2, f"sys.exit({LOST})") == LOST


def test_a_process_that_hangs_is_ended_when_another_fails(monkeypatch, capfd):
    monkeypatch.setattr("arlow_vl.training.launch.GRACE_SECONDS", 0.3)
    began = time.monotonic()
    assert run(2, "time.sleep(60 * (1 - rank)); os.kill(os.getpid(), 9)") == 128 + signal.SIGKILL
    assert time.monotonic() - began < 20
    assert "the process of rank 1 died (SIGKILL), so the run ends" in capfd.readouterr().err


def test_a_signal_goes_on_to_all_processes(tmp_path):
    code = (
        "import signal; signal.signal(signal.SIGUSR1, lambda *_: sys.exit(138)); "
        f"open(rf'{tmp_path}/' + str(rank), 'w').close(); time.sleep(60)"
    )

    def tell() -> None:
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGUSR1)

    threading.Thread(target=tell, daemon=True).start()
    assert run(2, code) == 138


def test_a_meeting_place_that_cannot_be_reached_is_told_in_time(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "9")
    with (
        pytest.raises(ValueError, match=r"rank 1 cannot reach the run's meeting place 127.0.0.1:9 within 2 seconds"),
        joined(ProcessRank(1, 1, 2), "cpu", seconds=2),
    ):
        pass


def test_torch_has_not_printed_stack_traces_before(monkeypatch, capfd):
    monkeypatch.setenv("MASTER_ADDR", "nowhere.invalid")
    for rank in (0, 1):
        with (
            pytest.raises(ValueError, match=f"rank {rank} cannot reach the run's meeting place nowhere.invalid"),
            joined(ProcessRank(rank, rank, 2), "cpu", seconds=1),
        ):
            pass
    assert not capfd.readouterr().err


def test_the_first_process_says_how_many_came(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", port)
    with (
        pytest.raises(
            ValueError, match=rf"only 1 of 2 processes joined 127.0.0.1:{port} within 2 seconds; start as many"
        ),
        joined(ProcessRank(0, 0, 2), "cpu", seconds=2),
    ):
        pass


def start_batch_script(folder: Path, srun: str) -> subprocess.Popen:
    """Starts `run.sbatch` with a shell script as srun. A job that goes back into the queue leaves a file `requeued`."""
    for name, script in {"srun": srun, "scontrol": f"[ $1 = requeue ] && : > {folder}/requeued; echo node01"}.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    job = {"JOB_ID": "7", "JOB_NODELIST": "node01", "JOB_NUM_NODES": "1", "NTASKS_PER_NODE": "8", "CPUS_PER_TASK": "12"}
    variables = {"PATH": f"{folder}:{os.environ['PATH']}"} | {f"SLURM_{name}": value for name, value in job.items()}
    script = Path(__file__).parents[2] / "experiments/cluster/run.sbatch"
    command = ["bash", str(script), "--config", "a.yaml"]
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_under_slurm_every_process_gets_the_cores_that_the_job_has_for_it(tmp_path):
    script = start_batch_script(tmp_path, 'echo "$@"')
    told, failure = script.communicate()
    assert not script.returncode, failure
    assert "--cpus-per-task=12 arlow fit --config a.yaml --run.engine.nodes 1 --run.engine.devices 8" in told


@pytest.mark.parametrize(
    ("status", "is_requeued"), [(0, False), (2, False), (6, False), (75, True), (138, True), (143, True)]
)
def test_a_job_that_was_signalled_goes_back_into_the_queue_only_where_its_run_was_stopped(
    tmp_path, status, is_requeued
):
    wait = f"while [ ! -e {tmp_path}/ends ]; do sleep 0.02; done; exit {status}"
    script = start_batch_script(tmp_path, f": > {tmp_path}/began; {wait}")
    while not (tmp_path / "began").exists() and script.poll() is None:
        time.sleep(0.02)
    for _ in range(2):
        script.terminate()
        time.sleep(0.05)
    (tmp_path / "ends").touch()
    assert script.wait(20) == status
    assert (tmp_path / "requeued").exists() == is_requeued


def test_the_arithmetic_in_the_cluster_readme_is_what_its_command_prints():
    assert table() in (Path(__file__).parents[2] / "experiments/cluster/README.md").read_text("utf-8")


class SlowReader(dist.HashStore):
    """A store from which reading takes a while."""

    def get(self, key):
        time.sleep(0.3)
        return super().get(key)


@pytest.mark.parametrize("word", ["product", None])
def test_the_first_process_ends_when_the_others_have_read_its_last_word(monkeypatch, word):
    """The store ends with it: who still read would take a run that was finished, or refused, for a lost one."""
    store, here, ended, read = SlowReader(), threading.local(), {}, []

    def prepare():
        if word is None:
            raise ValueError("refused")
        return word

    def process(rank: int) -> None:
        here.rank = rank
        try:
            ended[rank] = ranks.first_prepares("product", prepare)
        except (ValueError, SystemExit) as error:
            ended[rank] = str(error)
        if rank == 0:
            read.append(store.check([f"prepared/product/read/{rank}" for rank in (1, 2)]))

    monkeypatch.setattr(ranks, "world_size", lambda: 3)
    monkeypatch.setattr(ranks, "is_first", lambda: here.rank == 0)
    monkeypatch.setattr(dist, "get_rank", lambda: here.rank)
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert ended == {0: word or "refused", 1: word or "2", 2: word or "2"} and read == [True]
