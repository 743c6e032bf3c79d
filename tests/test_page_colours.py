"""The colours of the page: how far apart they are to any eye, and that each method keeps its own.

Distances are CIEDE2000, of which a difference of one is just seen side by side. Dichromats see as Machado, Oliveira and
Fernandes (2009) simulate it, and those without blue cones also as Brettel, Viénot and Mollon (1997) do, which is nearer
to what they tell.
"""

import re
from itertools import combinations

import numpy as np
import pytest
from coloraide import Color
from fake_runs import write_run, write_runs, write_trial
from matplotlib.colors import same_color

from spkd_keras import page as pages
from spkd_keras import plots, report
from spkd_keras.experiment import Experiment
from spkd_keras.page import figures, looks
from spkd_keras.page.svg import INK, SERIES, SOFT

VISIONS = {
    "normal": (None, None),
    "protanopia": ("protan", "machado"),
    "deuteranopia": ("deutan", "machado"),
    "tritanopia": ("tritan", "machado"),
    "tritanopia after Brettel": ("tritan", "brettel"),
}
SCHEMES = ("light", "dark")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The page's text, and its Matplotlib panels by the name of the figure."""
    root, panels = tmp_path_factory.mktemp("runs"), {}
    write_runs(root / "tiny")
    write_run(root / "tiny", "at", 0, 0.375, [0.5, 0.25, 0.25])
    epochs = Experiment.model_fields["schedule"].default.epochs
    write_trial(root, 0, 300.0, {"validation_error": 0.2, "epochs": epochs})
    inline = figures.inline

    def keeping_inline(figure, identity, description):
        panels[identity.removeprefix("experiment-0-")] = figure.axes[0]
        return inline(figure, identity, description)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "inline", keeping_inline)
        path = pages.write_page(report.read_runs(root), root / "report", report.read_trials(root))
    return path.read_text(encoding="utf-8"), panels


def test_curves_are_medians_within_ranges(monkeypatch):
    panels = []
    monkeypatch.setattr(figures, "inline", lambda figure, *_: panels.append(figure.axes[0]) or "")
    curves = {"sp": np.array([[1.0, 2.0], [3.0, 4.0], [8.0, 9.0]])}
    figures.learning_curves(curves, "error", looks.looks_of(["sp"]), "x", "a figure to be seen")
    (line,), (band,) = panels[0].lines, panels[0].collections
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([1, 2], [3.0, 4.0])
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (1.0, 9.0)


@pytest.fixture(scope="module", params=SCHEMES)
def palette(drawn, request):
    """The colours of the page's style sheet by name, in light or in dark."""
    light, dark = re.findall(r":root \{(.*?)\}", drawn[0], flags=re.DOTALL)
    return dict(re.findall(r"--([\w-]+): (#\w{6});", dark if request.param == "dark" else light))


def seen(colour, vision):
    kind, method = VISIONS[vision]
    return Color(colour).filter(kind, method=method).clip("srgb") if kind else Color(colour)


def nearest(colours, vision):
    """The least distance between any two of some colours."""
    views = [seen(colour, vision) for colour in colours]
    return min(one.delta_e(other, method="2000") for one, other in combinations(views, 2))


# --- how far apart ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vision", VISIONS)
def test_methods_are_told_apart_with_any_colour_vision(palette, vision):
    series = [palette[f"series-{index}"] for index in range(len(SERIES))]
    assert f"series-{len(SERIES)}" not in palette
    assert nearest([*series[:5], palette["ink"]], vision) >= 15, "five methods and the student alone"
    assert nearest([*series, palette["ink"], palette["soft"]], vision) >= 11, "all, and the teacher"


def test_all_is_seen_on_the_paper(palette):
    paper = Color(palette["paper"])
    least = {"ink": 7.0, "soft": 4.5, "link": 4.5, **{f"series-{index}": 3.0 for index in range(len(SERIES))}}
    for name, contrast in least.items():  # WCAG 2.1: text 4.5, graphics 3
        assert paper.contrast(palette[name], method="wcag21") >= contrast, name


def test_colours_that_are_not_told_apart_are_found():
    assert nearest(["#c24e00", "#a86f00"], "deuteranopia") < 2, "a brown and an ochre"
    assert nearest(["#c24e00", "#a86f00"], "normal") > 15
    # The first pair of Sharma, Wu and Dalal (2005), by whose values implementations of CIEDE2000 are tested.
    one, other = Color("lab-d65", [50, 2.6772, -79.7751]), Color("lab-d65", [50, 0, -82.7485])
    assert one.delta_e(other, method="2000") == pytest.approx(2.0425, abs=1e-4)


# --- one look for each method ----------------------------------------------------------------------------------------


def look_of(line):
    return line.get_color(), line.get_marker()


def test_a_method_looks_the_same_in_every_figure(drawn):
    _, panels = drawn
    curves = {line.get_label(): look_of(line) for line in panels["curves"].lines}
    assert list(curves) == ["student alone", "at", "kd", "sp", "sp-1000"]
    assert curves["student alone"] == (INK, "o")
    assert {colour for colour, _ in curves.values()} == {INK, *SERIES[:4]}
    assert len({marker for _, marker in curves.values()}) == 5

    rows = [label.get_text() for label in panels["errors"].get_yticklabels()]
    medians, dots = panels["errors"].lines[::2], panels["errors"].lines[1::2]
    errors = dict(zip(rows, [(line.get_markeredgecolor(), line.get_marker()) for line in dots], strict=True))
    assert errors == {"teacher": (SOFT, looks.OTHER.marker), **curves}
    assert [line.get_color() for line in medians] == [colour for colour, _ in errors.values()]

    classes = {line.get_label(): look_of(line) for line in panels["classes"].lines if line.get_marker() != "None"}
    assert classes == {method: look for method, look in curves.items() if method != "student alone"}
    (zero,) = [line for line in panels["classes"].lines if line.get_marker() == "None"]
    assert zero.get_color() == INK, "the student alone"

    weights = {bars.get_label(): bars.lines[0] for bars in panels["weight-0"].containers}
    assert {name: look_of(line) for name, line in weights.items()} == {
        "sp": curves["sp"],
        "sp-1000": curves["sp-1000"],
        "other runs": (SOFT, looks.OTHER.marker),
    }
    assert {name: list(line.get_xdata()) for name, line in weights.items()} == {
        "sp": [100.0],
        "sp-1000": [1000.0],
        "other runs": [300.0],
    }
    (alone,) = [line for line in panels["weight-0"].lines if line.get_label() == "student alone"]
    assert alone.get_color() == INK
    (band,) = panels["weight-0"].patches
    assert same_color(band.get_facecolor()[:3], INK)


def test_a_curve_of_one_method_is_all_of_it(tmp_path):
    for seed, weight in enumerate((10.0, 100.0)):
        terms = [{"loss": "similarity_preserving", "weight": weight}]
        write_run(tmp_path / f"at-{seed}", "sp", 0, 0.5, [0.5] * 3, terms=terms)
    (one, _) = report.summarise(report.read_runs(tmp_path))
    assert looks.methods_by_weight(one.weights[0], []) == {10.0: "sp", 100.0: "sp"}


def test_more_methods_than_colours_differ_in_markers_and_dashes():
    methods = [f"method-{index}" for index in range(3 * len(SERIES))]
    found = looks.looks_of(["teacher", "student", *methods])
    assert list(found) == ["student alone", "teacher", *methods]
    assert found["method-0"].colour == found["method-7"].colour
    assert len({(look.colour, look.marker) for look in found.values()}) == len(found)
    assert len({(look.colour, str(look.dash)) for look in found.values()}) == len(found)


def test_the_page_s_style_sheet_colours_the_figures(drawn):
    text, _ = drawn
    for name in ("currentColor", "var(--soft)", "var(--grid)", *(f"var(--series-{index})" for index in range(4))):
        assert f"stroke: {name}" in text
    assert len(set(re.findall("stroke-dasharray: ([^;]+);", text))) == 4, "methods differ in their dashes too"
    for colour in (INK, SOFT, *SERIES):
        assert colour not in text, "a name that nothing stands for"


# --- long names ------------------------------------------------------------------------------------------------------


def test_long_names_leave_the_figures_their_room(tmp_path):
    shark = "great-white-shark-man-eater-man-eating-shark-Carcharodon-carcharias"
    short = "great-white-shark…arodon-carcharias"
    assert plots.shortened(shark) == short
    assert plots.shortened(shark[: plots.LONGEST_NAME]) == shark[: plots.LONGEST_NAME]
    assert len(plots.shortened(shark[: plots.LONGEST_NAME + 1])) < plots.LONGEST_NAME + 1
    for method, errors in (("student", [0.5] * 3), (shark, [0.25, 0.25, 0.0])):
        summary = write_run(tmp_path / "tiny", method, 0, errors[0], errors) / "summary.json"
        text = summary.read_text(encoding="utf-8")
        summary.write_text(text.replace('"owl"', f'"{shark}"'), encoding="utf-8")
    # Matplotlib warns, which is an error here, where names leave no room.
    page = pages.write_page(report.read_runs(tmp_path), tmp_path).read_text(encoding="utf-8")
    assert f">{short}</text>" in page
    assert f">{shark}</text>" not in page
    assert f"-50.0 points ({shark})" in page, "the caption has all of it"
    report.write_report(report.read_runs(tmp_path), tmp_path / "report")
