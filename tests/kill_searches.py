"""Searches as processes of their own, to be killed: `python tests/kill_searches.py FOLDER TRIALS WORKERS`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tiny_search import GAMMA, tiny_search

from spkd_keras.ports import LOOPBACK
from spkd_keras.search.distributed import ADDRESS, PORT, TUNER_ID

EPOCHS = "schedule.epochs=3"


def search_of(folder, **options):
    """The search that the processes make."""
    return tiny_search(Path(folder), GAMMA, EPOCHS, **options)


def begin(folder, trials, workers=0):
    """Begins it in a process of its own."""
    arguments = [sys.executable, __file__, str(folder), str(trials), str(workers)]
    return subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)


def begin_command(folder, trials, tuner_id, port):
    """Begins it by the command line, as a chief or a worker by KerasTuner's variables."""
    command = [sys.executable, "-c", "from spkd_keras.cli import main; main()", "tune", f"{folder}/tiny.yaml"]
    options = ["--trials", str(trials), "--methods", "sp", "--out", f"{folder}/runs"]
    for change in (f"teacher={{path: {folder}/teacher.keras}}", GAMMA, EPOCHS):
        options += ["--set", change]
    variables = {TUNER_ID: tuner_id, ADDRESS: LOOPBACK, PORT: str(port)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *options], env={**os.environ, **variables}, **pipes)


def trial_of(folder, tuner_id):
    """The folder's name of the trial that a worker is at; None if it is at none."""
    state = Path(folder) / "runs" / "tiny-search" / "trials" / "oracle.json"
    ongoing = json.loads(state.read_text(encoding="utf-8"))["ongoing_trials"] if state.exists() else {}
    return f"trial_{ongoing[tuner_id]}" if tuner_id in ongoing else None


def wait_until(happened, process, seconds=120):
    """Waits until something has happened, or the process is gone."""
    end = time.monotonic() + seconds
    while not happened():
        if process.poll() is not None or time.monotonic() > end:
            raise AssertionError(f"exit code {process.poll()}: {process.stderr.read() if process.poll() else ''}")
        time.sleep(0.05)


def statuses(folder):
    """The status of each trial, from KerasTuner's files."""
    files = sorted(Path(folder).glob("runs/tiny-search/trials/trial_*/trial.json"))
    return {file.parent.name: json.loads(file.read_text(encoding="utf-8"))["status"] for file in files}


def at_work(folder, trial):
    """Whether a trial has done an epoch and is not finished."""
    epochs = list(Path(folder).glob(f"runs/tiny-search/trials/{trial}/backup/epoch-1-*"))
    return bool(epochs) and statuses(folder).get(trial) == "RUNNING"


def workers_of(process):
    """The processes that a chief has started, by their numbers, in that order."""
    listed = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(process.pid)], capture_output=True, text=True
    )
    lines = [line.split(None, 1) for line in listed.stdout.splitlines()]
    return [int(pid) for pid, arguments in lines if "spawn_main" in arguments]


def kill(pid):
    """Kills a process for good."""
    os.kill(pid, signal.SIGKILL)


def main():
    """Makes the search, and tells on standard error."""
    from spkd_keras.observer import Observer

    class Teller(Observer):
        def noticed(self, text):
            print(text, file=sys.stderr, flush=True)

        def failed(self, run, reason):
            print(f"{run} failed: {reason}", file=sys.stderr, flush=True)

    folder, trials, workers = sys.argv[1:]
    search_of(folder, trials=int(trials), observer=Teller()).run(int(workers))


if __name__ == "__main__":
    main()
