"""Searches in several processes, and killed ones: nothing finished is repeated, and lost workers are told of."""

import os
import signal
import socket
import time
from types import SimpleNamespace

import grpc
import pytest
from kill_searches import (
    at_work,
    begin,
    begin_command,
    kill,
    search_of,
    statuses,
    trial_of,
    wait_until,
    workers_of,
)
from tiny_experiment import Listener, content
from tiny_search import GAMMA, outcomes, tiny_search

from spkd_keras.experiment import ExperimentError
from spkd_keras.ports import free_ports
from spkd_keras.search import SearchFailedError, chief, distributed
from spkd_keras.search import search as searches
from spkd_keras.search.distributed import (
    ADDRESS,
    PORT,
    TUNER_ID,
    Signs,
    heartbeat,
    role_here,
    variables,
    wait_for_chief,
)
from spkd_keras.storage import StorageError, write_json
from spkd_keras.training.interruption import Interruption

SLOW = pytest.mark.slow
TRIALS = 5
SOME = 3  # of them, for workers


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Five trials, the process killed in the third of them and begun again."""
    folder = tmp_path_factory.mktemp("killed")
    search_of(folder, trials=TRIALS)  # writes the file of the teacher
    process = begin(folder, TRIALS)
    wait_until(lambda: at_work(folder, "trial_2"), process)
    kill(process.pid)
    process.communicate()
    finished = [content(folder / "runs" / "tiny-search" / "trials" / name) for name in ("trial_0", "trial_1")]
    listener = Listener()
    search = search_of(folder, trials=TRIALS, observer=listener)
    return folder, finished, listener, search.run()


@SLOW
def test_a_killed_search_repeats_nothing(killed):
    folder, finished, listener, result = killed
    assert listener.of("started") == ["trial 2", "trial 3", "trial 4"]
    assert statuses(folder) == {f"trial_{n}": "COMPLETED" for n in range(TRIALS)}
    trials = folder / "runs" / "tiny-search" / "trials"
    assert [content(trials / name) for name in ("trial_0", "trial_1")] == finished
    begun = [told[2] for told in listener.told if told[:2] == ("progressed", "trial 2")]
    assert begun[0] >= 1, "it went on with the third from its last epoch"
    assert len(result.trials) == TRIALS


def assert_first_of(whole, folder):
    """Some trials, all of them done, as they were in one process."""
    assert statuses(folder) == {f"trial_{n}": "COMPLETED" for n in range(SOME)}
    before = outcomes(search_of(whole, trials=TRIALS))
    assert outcomes(search_of(folder, trials=SOME)) == {f"trial_{n}": before[f"trial_{n}"] for n in range(SOME)}


@SLOW
def test_workers_come_to_the_same(killed, tmp_path):
    """Two workers, of which one is killed in its trial: the same points, the same errors, and all done."""
    search_of(tmp_path, trials=SOME)
    process = begin(tmp_path, SOME, 2)
    wait_until(lambda: sum(status == "COMPLETED" for status in statuses(tmp_path).values()) >= 1, process)
    wait_until(lambda: any(at_work(tmp_path, f"trial_{n}") for n in range(SOME)), process)
    victim = workers_of(process)[-1]
    kill(victim)
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert "is started again, and goes on with its trial: its process was ended by SIGKILL" in said
    assert_first_of(killed[0], tmp_path)
    assert not workers_of(process)


@SLOW
def test_the_command_line_over_machines(killed, tmp_path):
    """A chief and two workers that only know its address; one is killed, and comes back with its id."""
    search_of(tmp_path, trials=SOME)
    (port,) = free_ports(1)
    processes = {name: begin_command(tmp_path, SOME, name, port) for name in ("chief", "worker0", "worker1")}

    def victims():
        return [name for name in ("worker0", "worker1") if at_work(tmp_path, trial_of(tmp_path, name))]

    wait_until(victims, processes["chief"])
    victim = victims()[0]
    trial = trial_of(tmp_path, victim)
    kill(processes[victim].pid)
    processes[victim].communicate()
    assert statuses(tmp_path)[trial] == "RUNNING"
    processes[victim] = begin_command(tmp_path, SOME, victim, port)
    said = {name: process.communicate() for name, process in processes.items()}
    assert [process.returncode for process in processes.values()] == [0, 0, 0], said
    assert_first_of(killed[0], tmp_path)
    assert "Best on validation, seed 0: trial " in said["chief"][0]
    assert f"Giving trials to workers that ask on 127.0.0.1:{port}." in said["chief"][1]
    for name in ("worker0", "worker1"):
        assert f"Waiting for a chief on 127.0.0.1:{port}." in said[name][1]
        assert "This worker is done. The chief has the results." in said[name][1]


@SLOW
def test_a_chief_that_is_stopped_ends_its_workers(killed, tmp_path):
    search_of(tmp_path, trials=TRIALS)
    process = begin(tmp_path, TRIALS, 1)
    wait_until(lambda: at_work(tmp_path, "trial_0"), process)
    (worker,) = workers_of(process)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    assert statuses(tmp_path)["trial_0"] == "RUNNING"


# --- roles and signs of life -----------------------------------------------------------------------------------------


def test_roles(monkeypatch):
    assert role_here() == "alone"
    with variables("chief", "127.0.0.1", 1234):
        assert role_here() == "chief"
    with variables("worker7", "127.0.0.1", 1234):
        assert role_here() == "worker"
    assert role_here() == "alone"
    monkeypatch.setenv(TUNER_ID, "worker0")
    with pytest.raises(ExperimentError, match=rf"needs {TUNER_ID}, .* Missing: {ADDRESS}"):
        role_here()
    monkeypatch.setenv(ADDRESS, "127.0.0.1")
    monkeypatch.setenv(PORT, "http")
    with pytest.raises(ExperimentError, match=rf"{PORT} must be a port's number. Received: http"):
        role_here()


def test_workers_of_this_machine_and_of_others_exclude_each_other(tmp_path):
    with variables("chief", "127.0.0.1", *free_ports(1)), pytest.raises(ExperimentError, match="--workers starts"):
        tiny_search(tmp_path, GAMMA, trials=1).run(2)


def test_a_worker_says_whom_it_waits_for(tmp_path, monkeypatch):
    """Its address may be a wrong one; and it may come to train all trials."""
    listener = Listener()
    worker = tiny_search(tmp_path, GAMMA, trials=3, observer=listener)
    worker.folder.mkdir(parents=True)
    write_json(worker.folder / "search.json", worker._record())
    before = []
    monkeypatch.setattr(searches, "wait_for_chief", lambda oracle: before.extend(listener.told))
    monkeypatch.setattr(searches, "_search", lambda tuner: None)
    (port,) = free_ports(1)
    with variables("worker0", "127.0.0.1", port):
        assert worker.run() is None
        assert before == [("noticed", f"Waiting for a chief on 127.0.0.1:{port}.")]
        assert listener.told[1:] == [("planned", ["trial 0", "trial 1", "trial 2"], [])]
        worker._work(quiet=True)
    assert len(listener.of("noticed")) == 1, "not of one that its chief has started"


def test_a_port_that_is_taken(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        listener = Listener()
        with variables("chief", "127.0.0.1", port), pytest.raises(SearchFailedError, match=f"127.0.0.1:{port}"):
            tiny_search(tmp_path, GAMMA, trials=1, observer=listener).run()
        assert listener.of("noticed") == [f"Giving trials to workers that ask on 127.0.0.1:{port}."]


def test_a_worker_that_is_silent_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "BEAT", 0.01)
    signs = Signs(tmp_path, patience=0.3)
    with heartbeat(tmp_path, "worker0"):
        for _ in range(8):
            time.sleep(0.05)
            assert not signs.lost("worker0")
    time.sleep(0.35)
    assert not signs.lost("worker0")  # its file is gone, which is news
    time.sleep(0.35)
    assert signs.lost("worker0")


def test_a_worker_waits_for_its_chief_for_as_long_as_it_takes():
    class Late(grpc.RpcError):
        def __init__(self, code):
            self.code = lambda: code

    class Oracle:
        answers = [Late(grpc.StatusCode.DEADLINE_EXCEEDED), None]  # noqa: RUF012

        def get_space(self):
            answer = self.answers.pop(0)
            if answer is not None:
                raise answer

    wait_for_chief(Oracle())
    assert Oracle.answers == []
    Oracle.answers = [Late(grpc.StatusCode.UNKNOWN)]
    with pytest.raises(Late):
        wait_for_chief(Oracle())


class _Oracle:
    def __init__(self):
        trial = type("Trial", (), {"trial_id": "3"})
        self.ongoing_trials, self.trials = {"worker1": trial}, {}


def test_the_chief_says_whom_it_waits_for(tmp_path, monkeypatch):
    monkeypatch.setattr(chief, "PATIENCE", 0.2)
    monkeypatch.setattr(chief, "LOOK", 0.01)
    tuner = type("Tuner", (), {"oracle": _Oracle()})()
    listener = Listener()
    leader = chief.Chief(tuner, tmp_path, listener, None)
    for _ in range(40):
        leader._look(None)
    told = listener.of("noticed")
    assert len(told) == 1, "once, and not each time"
    assert told[0].startswith("Waiting for worker1, which is at trial 3 and has given no sign of life for ")
    assert f"{TUNER_ID}=worker1" in told[0]
    with heartbeat(tmp_path, "worker1"):
        leader._look(None)
    assert listener.of("noticed")[1:] == ["worker1 is back."]


def dying(observer, interruption):
    """The job of a worker that cannot live."""
    raise SystemExit("There is no life here.")


@SLOW
def test_a_worker_that_dies_again_and_again_ends_the_search(tmp_path, monkeypatch):
    monkeypatch.setattr(chief, "MOST_DEATHS", 2)
    search = tiny_search(tmp_path, GAMMA, trials=2)
    with variables("chief", "127.0.0.1", *free_ports(1)):
        leader = chief.Chief(search._tuner(), tmp_path, Listener(), search.interruption)
        with pytest.raises(SearchFailedError, match=r"worker0 died 2 times, .*no trial ended.*There is no life here"):
            leader.lead(1, dying)


def without_room(observer, interruption):
    """The job of a worker that meets what another one would meet too."""
    raise StorageError("The disk is full.")


@SLOW
def test_a_full_disk_ends_the_search_at_once(tmp_path):
    search, listener = tiny_search(tmp_path, GAMMA, trials=2), Listener()
    with variables("chief", "127.0.0.1", *free_ports(1)):
        leader = chief.Chief(search._tuner(), tmp_path, listener, search.interruption)
        with pytest.raises(StorageError) as caught:
            leader.lead(1, without_room)
    assert str(caught.value) == "The disk is full."
    assert listener.of("noticed") == []


def test_deaths_are_counted_from_the_last_trial_that_ended(tmp_path, monkeypatch):
    ended = iter([[], ["trial 0"], ["trial 0"], ["trial 0"]])
    monkeypatch.setattr(chief, "finished", lambda oracle: next(ended))
    monkeypatch.setattr(chief, "MOST_DEATHS", 3)
    tuner = type("Tuner", (), {"oracle": _Oracle()})()
    leader = chief.Chief(tuner, tmp_path, Listener(), Interruption())
    dead = SimpleNamespace(name="worker0", end=lambda: (1, "so it is"))
    monkeypatch.setattr(leader, "_start", lambda name, job: leader._workers.update({name: dead}))
    leader._workers["worker0"] = dead
    for _ in range(3):
        leader._bury(dead, None)
    with pytest.raises(SearchFailedError, match="worker0 died 3 times"):
        leader._bury(dead, None)


def test_a_chief_that_comes_back_knows_who_was_at_which_trial(tmp_path):
    """One that starts its workers anew gives their trials to any of them."""
    search = tiny_search(tmp_path, GAMMA, trials=1)
    with variables("chief", "127.0.0.1", *free_ports(1)):
        assert [search._tuner(workers).oracle.keeps_workers for workers in (0, 2)] == [True, False]
