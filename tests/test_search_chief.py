"""A search's chief and its workers: their roles and signs of life, and whom a chief waits for."""

import os
import socket
import threading
import time
from types import SimpleNamespace

import grpc
import pytest
from tiny_experiment import Listener
from tiny_search import GAMMA, tiny_search

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


@pytest.mark.parametrize("name", ["worker0", "rack1/worker0"])
def test_a_worker_that_is_silent_is_lost(tmp_path, monkeypatch, name):
    monkeypatch.setattr(distributed, "BEAT", 0.01)
    signs = Signs(tmp_path, patience=0.3)
    with heartbeat(tmp_path, name):
        for _ in range(8):
            time.sleep(0.05)
            assert not signs.lost(name)
    time.sleep(0.35)
    assert not signs.lost(name)  # its file is gone, which is news
    time.sleep(0.35)
    assert signs.lost(name)


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
        self.tuner_ids, self.is_over = {"worker1"}, False


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
    monkeypatch.setattr(chief, "PATIENCE", 60.0)  # on a busy machine the sign of life may come late, and be old
    with heartbeat(tmp_path, "worker1"):
        deadline = time.monotonic() + 30.0
        while len(listener.of("noticed")) == 1 and time.monotonic() < deadline:
            leader._look(None)
    assert listener.of("noticed")[1:] == ["worker1 is back."]


@pytest.mark.parametrize("waits", [False, True])
def test_a_chief_is_done_without_a_worker_that_was_lost_between_trials(tmp_path, monkeypatch, waits):
    """KerasTuner's server asks each one that ever came whether it is gone."""
    monkeypatch.setattr(chief, "PATIENCE", 0.1)
    monkeypatch.setattr(chief, "LOOK", 0.01)
    search, listener = tiny_search(tmp_path, GAMMA, trials=1), Listener()
    with variables("chief", "127.0.0.1", *free_ports(1)):
        tuner = search._tuner()
        if waits:  # for somebody to take the next trial
            tuner.oracle.max_trials = 2
        trial = tuner.oracle.create_trial("worker1")
        trial.status = "FAILED"
        tuner.oracle.end_trial(trial)
        assert tuner.oracle.is_over is not waits
        monkeypatch.setattr(tuner, "search", lambda verbose: threading.Event().wait(1 if waits else 30))
        begin = time.monotonic()
        chief.Chief(tuner, tmp_path, listener, search.interruption).lead(0, None)
    assert (time.monotonic() - begin > 1) is waits
    assert [told for told in listener.of("noticed") if told.startswith("Waiting")] == [
        "Waiting for worker1, which is between trials and has given no sign of life for 0 s. Start it again with "
        f"{TUNER_ID}=worker1, or leave the rest to others."
    ]


def test_a_search_that_is_finished_waits_for_no_worker(tmp_path, monkeypatch):
    monkeypatch.setattr(searches, "finished", lambda oracle: ["trial 0"])
    monkeypatch.setattr(searches, "Chief", None)
    with variables("chief", "127.0.0.1", *free_ports(1)):
        assert tiny_search(tmp_path, GAMMA, trials=1).run().trials == []


def test_the_port_is_chosen_when_the_teacher_is_there(tmp_path, monkeypatch):
    """Its training may take hours, in which another program takes a port that was free."""
    done, own = [], searches.Search._check_teacher
    monkeypatch.setattr(searches.Search, "_check_teacher", lambda *of: done.append("teacher") or own(*of))
    monkeypatch.setattr(searches, "free_ports", lambda count: done.append("port") or free_ports(count))
    monkeypatch.setattr(chief.Chief, "lead", lambda self, workers, job: done.append(os.environ[TUNER_ID]))
    tiny_search(tmp_path, GAMMA, trials=1).run(1)
    assert done == ["teacher", "port", "chief"]


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
    assert search._tuner().oracle.keeps_workers is False
    with variables("chief", "127.0.0.1", *free_ports(1)):
        assert search._tuner().oracle.keeps_workers is True
