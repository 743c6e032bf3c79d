"""The page of results in a browser: that it is drawn, in light and in dark, and is no wider than a phone."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from fake_runs import write_run, write_runs

from spkd_keras import page as pages
from spkd_keras import report

PHONES = (360, 412)  # pixels of the style sheet
LONG = "a_name_without_a_space_that_is_far_longer_than_a_telephone_is_wide_and_goes_on"
# A browser's window is at least 500 pixels wide: narrower ones are frames. Measures each, and what sticks out of it.
FRAMES = """<!DOCTYPE html>
<title>frames</title>
<style>iframe { border: 0; height: 20000px; }</style>
%s
<script>
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map((frame) => {
    const root = frame.contentDocument.documentElement;
    const regions = [...root.querySelectorAll(".wide")];
    const wide = [...root.querySelectorAll("body *")].filter((one) =>
      one.getBoundingClientRect().right > frame.width && !regions.some((region) => region.contains(one)));
    return {
      width: root.clientWidth, needed: root.scrollWidth, wide: wide.map((one) => one.tagName),
      regions: regions.length, scrolling: regions.filter((one) => one.scrollWidth > one.clientWidth).length,
    };
  });
  const answer = document.createElement("pre");
  answer.textContent = JSON.stringify(found);
  document.body.replaceChildren(answer);
});
</script>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    write_runs(root / "tiny")
    for method, error in (("student", 0.5), (LONG, 0.25)):
        folder = write_run(root / LONG, method, 0, error, [error] * 3, name=f"{LONG}_experiment")
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        summary["class_names"] = ["cat", f"{LONG}_class", "owl"]
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
        plain = (folder / "experiment.yaml").read_text(encoding="utf-8")
        (folder / "experiment.yaml").write_text(re.sub("a paper .*", f"https://example.org/{LONG}", plain))
    return pages.write_page(report.read_runs(root), tmp_path_factory.mktemp("report"))


def browse(address, *options):
    """What the browser makes of a page, and what it has to complain of."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("there is no chromium")
    settings = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    done = subprocess.run([browser, *settings, *options, address], capture_output=True, text=True, timeout=120)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it(page, tmp_path, scheme):
    import matplotlib.image

    picture = tmp_path / "page.png"
    setting = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    _, complaints = browse(page.as_uri(), setting, "--window-size=1200,3000", f"--screenshot={picture}")
    assert complaints == []
    pixels = matplotlib.image.imread(picture)[..., :3]
    assert pixels.shape[1] == 1200
    background = np.median(pixels.reshape(-1, 3), axis=0).mean()
    assert background < 0.2 if scheme == "dark" else background > 0.9
    assert (np.abs(pixels - background).max(axis=-1) > 0.3).mean() > 0.02, "there is something on it"


@pytest.mark.slow
def test_it_is_no_wider_than_a_phone(page, tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text(
        "<!DOCTYPE html><title>x</title><p style='width: 500px'>wide</p><script>nothing.here</script>", encoding="utf-8"
    )

    def measured(*frames):
        around = tmp_path / "frames.html"
        around.write_text(FRAMES % "".join(f'<iframe width="{w}" src="{uri}"></iframe>' for uri, w in frames))
        text, complaints = browse(around.as_uri(), "--allow-file-access-from-files", "--hide-scrollbars", "--dump-dom")
        return json.loads(html.unescape(re.search("<pre>(.*?)</pre>", text)[1])), complaints

    (found,), complaints = measured((broken.as_uri(), PHONES[0]))
    assert found["needed"] > PHONES[0], "a page that is too wide is found"
    assert found["wide"] == ["P"]
    assert "nothing is not defined" in " ".join(complaints), "a browser that does not tell would prove nothing"

    found, complaints = measured(*((page.as_uri(), width) for width in PHONES))
    assert complaints == []
    for width, one in zip(PHONES, found, strict=True):
        assert (one["width"], one["needed"]) == (width, width)
        assert one["wide"] == []
        assert one["regions"] == 4, "the tables of two experiments"
        assert one["scrolling"] > 0, "tables scroll in their own region"
