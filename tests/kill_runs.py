"""Kills a real `spkd run` again and again until it is done, and compares it with one that nobody killed.

    python tests/kill_runs.py --kills 20

Kills come at random moments, within the writing of a checkpoint (made long for that), and once a newest checkpoint is
cut in half. The case `dropout` has random numbers in the student, `ema` a moving average of its weights.
"""

import argparse
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

EXPERIMENT = """
name: killed
data: {{name: digits, batch_size: 16, augmentation: cifar, validation: 0.2, train_fraction: 0.5}}
teacher: {{model: wide_resnet, depth: 10, width: 0.5, schedule: {{epochs: 2}}}}
student: {{model: wide_resnet, depth: 10, width: 0.25, dropout: {dropout}}}
schedule: {{epochs: 4, learning_rate: 0.05, ema: {ema}}}
methods: {{student: [], sp: [{{loss: similarity_preserving, weight: 30.0}}]}}
checkpoints: {{steps: 5}}
"""
CASES = {"dropout": {"dropout": 0.3, "ema": 0.0}, "ema": {"dropout": 0.0, "ema": 0.9}}

# `spkd run` with a checkpoint that takes half a second to write, half of it with half of the file.
SLOW = """
import io, sys, time
import numpy as np
from spkd_keras import cli

def slowly(file, *args, **kwargs):
    content = io.BytesIO()
    savez(content, *args, **kwargs)
    half = len(content.getvalue()) // 2
    file.write(content.getvalue()[:half])
    file.flush()
    time.sleep(0.5)
    file.write(content.getvalue()[half:])

savez, np.savez = np.savez, slowly
cli.main()
"""


def command(folder, slow):
    program = ["-c", SLOW] if slow else ["-m", "spkd_keras"]
    out = folder / "runs"
    return [sys.executable, *program, "run", str(folder / "killed.yaml"), "--out", str(out), "--no-check"]


def start(folder, slow=False):
    with (folder / "errors.txt").open("a") as errors:
        return subprocess.Popen(command(folder, slow), stdout=subprocess.DEVNULL, stderr=errors)


def kill_at_random(folder, chance):
    """Kills a run some time after its first signs of life; returns whether there was anything left to kill."""
    process = start(folder)
    before = time.time()
    while process.poll() is None and not any(stamp > before for stamp in stamps(folder)):
        time.sleep(0.05)
    time.sleep(chance.uniform(0, 8))
    process.kill()
    return process.wait() == -signal.SIGKILL


def kill_within_a_write(folder, chance):
    """Kills a run while a checkpoint is half written."""
    process = start(folder, slow=True)
    skipped = chance.randrange(3)
    while process.poll() is None:
        if list(folder.rglob(".partial-epoch-*")):
            if not skipped:
                break
            skipped -= 1
            time.sleep(0.6)
        time.sleep(0.02)
    process.kill()
    return process.wait() == -signal.SIGKILL


def stamps(folder):
    return [path.stat().st_mtime for path in folder.rglob("runs/**/*") if path.is_file()]


def cut_newest(folder):
    """Cuts a newest checkpoint in half, if there are two of a run; returns its name."""
    for backup in folder.rglob("backup"):
        files = sorted(backup.glob("epoch-*.npz"), key=os.path.getmtime)
        if len(files) > 1:
            os.truncate(files[-1], files[-1].stat().st_size // 2)
            return files[-1]
    return None


def kept(folder):
    """What must be the same: bytes of weights, rows of history, and the results."""
    import json

    import keras

    found = {}
    for run in sorted((folder / "runs" / "killed").glob("*-seed*")):
        for name in ("student.keras", "best.keras"):
            weights = keras.saving.load_model(run / name).get_weights()
            found[f"{run.name}/{name}"] = b"".join(weight.tobytes() for weight in weights)
        found[f"{run.name}/history.csv"] = (run / "history.csv").read_bytes()
        summary = json.loads((run / "summary.json").read_text())
        found[f"{run.name}/summary.json"] = {key: summary[key] for key in summary if "error" in key or key == "epochs"}
    return found


def compare(case, kills, seed, folder, tell=print):
    """Runs a case twice, once with kills; returns the names of what differs, and how many kills there were."""
    chance = random.Random(seed)
    folders = [folder / "left_alone", folder / "killed"]
    for one in folders:
        one.mkdir(parents=True)
        (one / "killed.yaml").write_text(EXPERIMENT.format(**CASES[case]))
    assert start(folders[0]).wait() == 0, (folders[0] / "errors.txt").read_text()
    done, cut = 0, None
    for index in range(kills):
        within = index % 3 == 1
        killed = (kill_within_a_write if within else kill_at_random)(folders[1], chance)
        done += killed
        at = max(folders[1].rglob("runs/**/*"), key=os.path.getmtime, default=folders[1])
        tell(f"{case}: kill {done} {'within a write' if within else 'at random'}, behind {at.relative_to(folders[1])}")
        if cut is None:
            cut = cut_newest(folders[1])
            tell(f"{case}: cut {cut.relative_to(folders[1])} in half" if cut else f"{case}: nothing to cut yet")
        if not killed:
            break
    assert start(folders[1]).wait() == 0, (folders[1] / "errors.txt").read_text()
    if cut is not None:
        assert f"{cut.name} is damaged" in (folders[1] / "errors.txt").read_text().replace("\n", "")
    left_alone, killed = map(kept, folders)
    return [name for name in left_alone if left_alone[name] != killed.get(name)], done


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    total, bad = 0, []
    with tempfile.TemporaryDirectory() as folder:
        while total < arguments.kills:
            for index, case in enumerate(CASES):
                seed = arguments.seed + total + index
                place = pathlib.Path(folder) / f"{case}-{total}"
                differing, kills = compare(case, min(8, arguments.kills - total), seed, place)
                total += kills
                bad += differing
                print(f"{case}: {kills} kills, {differing or 'nothing'} differs", flush=True)
                if total >= arguments.kills:
                    break
    print(f"{total} kills, {len(bad)} differences")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
