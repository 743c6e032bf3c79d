"""Whether the folders of an experiment's runs and of its teacher's cache can have what is to be written to them."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spkd_keras import data
from spkd_keras.experiment import Experiment, ExperimentError
from spkd_keras.training import cached_teacher
from spkd_keras.training.findings import Finding
from spkd_keras.training.folder import RunFolder, run_folders


@contextmanager
def stopping(findings: list[Finding], place: str) -> Iterator[None]:
    """Makes a finding of what would be refused."""
    try:
        yield
    except ExperimentError as error:
        findings.append(Finding("stop", place, str(error).removeprefix(f"{place}: ")))


def check_runs(experiment: Experiment, training: Experiment | None, splits: data.Splits, root: Path) -> list[Finding]:
    """Looks for what `run_experiment` refuses of the folders; one finding, as it tells the first alone."""
    findings: list[Finding] = []
    if reason := _not_writable(root):
        found = f"the output folder cannot be written to: {root} ({reason})."
        return [Finding("stop", "out", found, "Choose another with --out.")]
    if spec := experiment.teacher_cache:
        kept = cached_teacher.folder_of(spec, root)
        if reason := _not_writable(kept.parent):
            found = f"its folder cannot be written to: {kept} ({reason})."
            findings.append(Finding("stop", "teacher.cache", found, "Give another `teacher.cache.path`."))
    folders = ([RunFolder(root, training)] if training else []) + run_folders(root, experiment)
    with stopping(findings, "out"):
        for folder in folders:
            folder.check_owner()
        digest = splits.digest()
        for folder in folders:
            folder.check_data(digest)
    return findings


def room(*needed: tuple[Path, int]) -> list[Finding]:
    """Returns what is to be said of the free space on the disks of folders, in which so many bytes are needed."""
    disks: dict[int, tuple[Path, int]] = {}
    for folder, size in needed:
        place = _existing(folder)
        if not os.path.exists(place):  # it cannot be looked into, which is told already
            continue
        device = place.stat().st_dev
        first, before = disks.get(device, (place, 0))
        disks[device] = first, before + size
    return [
        Finding(
            "stop",
            "disk",
            f"{size / 1e6:,.0f} MB are needed and {place} has {free / 1e6:,.0f} MB free.",
            "Make room, or choose another folder with --out.",
        )
        for place, size in disks.values()
        if size > (free := shutil.disk_usage(place).free)
    ]


def _not_writable(folder: Path) -> str | None:
    """Returns why no files can be written to a folder, which may have to be made; None if they can."""
    place = _existing(folder)
    if os.path.isfile(place):
        return f"{place} is a file"
    return None if os.access(place, os.W_OK | os.X_OK) else f"{place} is not writable"


def _existing(path: Path) -> Path:
    """Returns the nearest parent that exists, or the path itself; one that may not be looked for counts as there."""
    folder = path.absolute()
    while folder != folder.parent:
        try:
            os.stat(folder)
        except (FileNotFoundError, NotADirectoryError):
            folder = folder.parent
        except PermissionError:
            break
        else:
            break
    return folder
