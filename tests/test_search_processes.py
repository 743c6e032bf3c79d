"""Searches in several processes, and killed ones: nothing finished is repeated, and lost workers are told of."""

import os
import signal

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
from tiny_search import outcomes

from spkd_keras.ports import free_ports

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
