"""The commands that classify pictures and evaluate networks, from a file of any format."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from spkd_keras.cli.app import app
from spkd_keras.cli.console import (
    FAILED,
    answers,
    clear_errors,
    notice,
    quiet_standard_error,
    say,
    starting_tensorflow,
)
from spkd_keras.experiment import Data, ExperimentError, override, read_plain, validated
from spkd_keras.export.formats import RESIZES

if TYPE_CHECKING:
    import numpy as np

    from spkd_keras.data import AnyImages
    from spkd_keras.export import Runner

PARTS = ("test", "validation", "train")
MOST_SHOWN_CLASSES = 50
AT_A_TIME = 256  # pictures or images of which the pixels are in memory

Model = Annotated[
    Path,
    typer.Argument(help="A .keras, .tflite or .onnx file, a SavedModel's or a run's folder.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]


@app.command()
def predict(
    model: Model,
    images: Annotated[
        list[str], typer.Argument(help="Pictures, folders with pictures, or patterns such as 'photos/*.jpg'.")
    ],
    top: Annotated[int, typer.Option(min=1, help="How many classes to show for each picture.")] = 3,
    resize: Annotated[
        str | None,
        typer.Option(
            help="How a picture of another size is brought to the network's: crop takes the middle, stretch scales "
            "both sides. Default: crop for an export of a student of photos; all else, .keras files and runs too, "
            "takes pictures of its very size alone.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Classify pictures. What cannot be read is named, the rest is done, and the exit code is 1."""
    with clear_errors():
        if resize is not None and resize not in RESIZES:
            raise ExperimentError(f"--resize takes {' or '.join(RESIZES)}. Received: {resize}.")
        with starting_tensorflow():
            from spkd_keras.data.folder import printable
            from spkd_keras.export.pictures import find_pictures
            from spkd_keras.export.runners import load_runner

            files, missing = find_pictures(images)
            with quiet_standard_error():  # what the runtimes print for their developers, from C++
                rows, unreadable = _predicted(load_runner(model), files, top, resize)
            problems = [*missing, *unreadable]
        for problem in problems:
            notice(f"spkd: {printable(problem['file'])} {problem['problem']}")
        if as_json:
            print(json.dumps({"model": str(model), "predictions": rows, "problems": problems}, indent=2))
        elif rows:
            _show_predictions(rows)
        if problems:
            raise typer.Exit(FAILED)


def _predicted(
    runner: "Runner", files: list[Path], top: int, resize: str | None
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Returns the top classes of each picture, and what is wrong with those that cannot be taken."""
    import numpy as np

    from spkd_keras.export.evaluation import sound
    from spkd_keras.export.pictures import UnreadablePicture, read_file
    from spkd_keras.export.runners import by_side

    shape = runner.image_shape
    height, width, channels = (side or 0 for side in shape)
    if not (height and width and channels):
        raise ExperimentError(f"`spkd predict` needs a network for one size. Received: one for {by_side(shape)}.")
    if resize is None and runner.metadata is not None and runner.metadata.resize == "crop":
        resize = "crop"
    if resize == "crop" and (height != width or channels != 3):
        raise ExperimentError(f"--resize crop is for square colour images. Received: a network for {by_side(shape)}.")
    rows: list[dict[str, Any]] = []
    problems: list[dict[str, str]] = []
    for start in range(0, len(files), AT_A_TIME):
        pixels, readable = [], []
        for file in files[start : start + AT_A_TIME]:
            try:
                pixels.append(read_file(file, (height, width, channels), resize))
                readable.append(file)
            except UnreadablePicture as error:
                problems.append({"file": str(file), "problem": str(error)})
        if readable:
            given = runner.predict(np.stack(pixels))
            is_sound = sound(given)
            rows += [
                {"file": str(file), "top": _top(given["logits"][i], given["probabilities"][i], runner.class_names, top)}
                for i, file in enumerate(readable)
                if is_sound[i]
            ]
            problem = "can be read, but the network gives no numbers (NaN or infinite) for it"
            problems += [{"file": str(file), "problem": problem} for i, file in enumerate(readable) if not is_sound[i]]
    return rows, problems


def _top(
    logits: "np.ndarray", probabilities: "np.ndarray", names: tuple[str, ...] | None, count: int
) -> list[dict[str, Any]]:
    # By the logits, as accuracy is counted: probabilities of an int8 export are coarse, and tie.
    best = (-logits).argsort(kind="stable")[:count]
    return [
        {"class": names[index] if names else str(index), "probability": float(probabilities[index])} for index in best
    ]


def _show_predictions(rows: list[dict[str, Any]]) -> None:
    from spkd_keras.data.folder import printable

    table = Table(box=box.SIMPLE)
    table.add_column("picture", overflow="fold")
    table.add_column("classes and probabilities, %", overflow="fold")
    for row in rows:
        classes = ", ".join(f"{found['class']} {100 * found['probability']:.1f}" for found in row["top"])
        table.add_row(escape(printable(row["file"])), escape(classes))
    answers.print(table)


@app.command()
def evaluate(
    model: Model,
    data: Annotated[
        str, typer.Argument(help="A data set's name, an experiment's YAML file, or a run's folder.", show_default=False)
    ],
    teacher: Annotated[
        Path | None, typer.Option(help="Another model, of any format, to compare with.", show_default=False)
    ] = None,
    part: Annotated[str, typer.Option(help="test, validation or train.")] = "test",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A field of the data: image_size=64. Repeatable."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the figures of the confusion matrices.")] = Path("evaluation"),
    as_json: AsJson = False,
) -> None:
    """Evaluate a network on labelled images: accuracy, calibration, each class, confusion; alone or against a teacher.

    Calibration is the expected calibration error (Guo et al., ICML 2017): over 15 bins of confidence, the mean
    difference between confidence and accuracy.
    """
    with clear_errors():
        if part not in PARTS:
            raise ExperimentError(f"--part takes {', '.join(PARTS)}. Received: {part}.")
        spec = _data(data, overrides or [])
        with starting_tensorflow(), quiet_standard_error():
            answer = _evaluated(model, teacher, spec, part, out)
        if as_json:
            print(json.dumps(answer, indent=2))
            return
        _show_evaluation(answer)


def _data(text: str, overrides: list[str]) -> Data:
    """Reads what DATA means: an experiment's file, the one in a run's folder, or a name."""
    path = Path(text)
    if path.suffix in (".yaml", ".yml") or (path / "experiment.yaml").is_file():
        file = path / "experiment.yaml" if path.is_dir() else path
        plain = _data_of(file)
    elif path.is_dir() and text != path.name:
        raise ExperimentError(
            f"{text} is not a run's folder (it has no experiment.yaml). For a folder of photos give image_folder "
            f"--set path={text} --set image_size=224, with the size that the network takes."
        )
    else:
        plain = {"name": text, "batch_size": 2}
    for assignment in overrides:
        override(plain, assignment)
    return validated(Data, plain, "data")


def _data_of(file: Path) -> dict[str, Any]:
    """Reads the data alone, so that an experiment of which something else varies or is wrong will do."""
    found = read_plain(file).get("data")
    if not isinstance(found, dict):
        raise ExperimentError(f"{file}: `data` must be a mapping (key: value). Received: {found!r}.")
    return found


def _evaluated(model: Path, teacher: Path | None, spec: Data, part: str, out: Path) -> dict[str, Any]:
    import numpy as np

    from spkd_keras import plots
    from spkd_keras.export import evaluation
    from spkd_keras.export.run import in_batches
    from spkd_keras.export.runners import load_runner
    from spkd_keras.storage import check_writable
    from spkd_keras.training.build import load_data

    paths = {"model": model} | ({} if teacher is None else {"teacher": teacher})
    runners = {role: load_runner(path) for role, path in paths.items()}
    images = getattr(load_data(spec), part)
    if images is None:
        raise ExperimentError(f"{spec.name} has no {part} images: nothing is held out.")
    for role, runner in runners.items():
        _check_takes(paths[role], runner, spec.name, images)
    check_writable(out)
    parts: dict[str, list[dict[str, Any]]] = {role: [] for role in runners}
    for pixels in in_batches(images, AT_A_TIME):
        for role, runner in runners.items():
            parts[role].append(runner.predict(pixels))
    answer: dict[str, Any] = {"data": spec.name, "part": part}
    predicted = {}
    for role, path in paths.items():
        outputs = {name: np.concatenate([piece[name] for piece in parts[role]]) for name in parts[role][0]}
        predicted[role] = outputs["logits"].argmax(axis=-1)
        try:
            results = evaluation.evaluate(outputs, images.labels, images.class_names)
        except evaluation.UnsoundOutputsError as error:
            raise evaluation.UnsoundOutputsError(f"{path} {error}") from error
        # Exports of all runs have one name.
        name = "-".join([role, *path.resolve().parts[1:][-3:], spec.name.replace("/", "-"), part, "confusion"])
        figure = plots.confusion_matrix(np.array(results["confusion"]), images.class_names, out / name)
        answer[role] = {"path": str(path), **results, "figures": list(map(str, figure))}
    if teacher is not None:
        answer["against_teacher"] = evaluation.against(predicted["teacher"], predicted["model"], images.labels)
    return answer


def _check_takes(path: Path, runner: "Runner", name: str, images: "AnyImages") -> None:
    """Checks that images are of the network's size and classes.

    Raises:
        ExperimentError: if not.
    """
    from spkd_keras.export.evaluation import differing_class
    from spkd_keras.export.runners import by_side, fits

    own, given = runner.class_names, images.class_names
    if not fits(images.image_shape, runner.image_shape):
        raise ExperimentError(
            f"{path} takes images of {by_side(runner.image_shape)}. Received: {name} with images of "
            f"{by_side(images.image_shape)}."
        )
    if runner.classes != len(given):
        raise ExperimentError(f"{path} has {runner.classes} classes. Received: {name} with {len(given)} classes.")
    number = differing_class(own, given)
    if own is not None and number is not None:
        kind = "the same classes in another order" if sorted(own) == sorted(given) else "other classes"
        raise ExperimentError(
            f"{path} and {name} have {kind}: number {number} is {own[number]} for the network and {given[number]} in "
            "the data. Give the data that it was trained on, or export it with the names that belong to its logits."
        )


def _show_evaluation(answer: dict[str, Any]) -> None:
    roles = [role for role in ("model", "teacher") if role in answer]
    for role in roles:
        result = answer[role]
        say(
            f"{result['path']}: accuracy {result['accuracy']:.2%} on {result['images']:,} {answer['part']} images of "
            f"{answer['data']}; expected calibration error {100 * result['expected_calibration_error']:.2f}%, "
            f"mean confidence {result['mean_confidence']:.2%}"
        )
    if "against_teacher" in answer:
        both = answer["against_teacher"]
        say(
            f"Student and teacher agree on {both['agreement']:.2%}. Right: both {both['both_right']:,}, only the "
            f"teacher {both['only_teacher_right']:,}, only the student {both['only_student_right']:,}, neither "
            f"{both['both_wrong']:,}."
        )
    table = Table(box=box.SIMPLE)
    columns = ["class", "images", *(f"{role}\n{word}, %" for role in roles for word in ("recall", "precision"))]
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", overflow="fold")
    rows = list(zip(*(answer[role]["per_class"] for role in roles), strict=True))
    for row in rows[:MOST_SHOWN_CLASSES]:
        cells = [_percent(result[word]) for result in row for word in ("recall", "precision")]
        table.add_row(escape(row[0]["class"]), f"{row[0]['images']:,}", *cells)
    answers.print(table)
    if len(rows) > MOST_SHOWN_CLASSES:
        say(f"The first {MOST_SHOWN_CLASSES} of {len(rows)} classes; --json has all.")
    say(f"Drawn: {', '.join(figure for role in roles for figure in answer[role]['figures'])}")


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.2f}"
