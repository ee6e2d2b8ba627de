"""Tables, the crossing of a curve, and the figures and sliders made of them."""

import base64
import io
import math
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from subspace_lib.intrinsic import crossing
from subspace_lib.press import figures
from subspace_lib.press.widgets import FrameSlider
from subspace_lib.study.experiments import EXPERIMENTS
from subspace_lib.study.records import DATA, at_best_rate, curves, published, results
from subspace_lib.study.scorecard import scorecard


def test_published_figures_can_be_picked():
    points = published(source="minut2023", experiment="fig3")
    assert len(points) == 14
    assert all(0 < point["value"] <= 1 and point["d"] > 0 for point in points)
    with pytest.raises(ValueError, match="unknown column 'figure'; the table has: source, experiment"):
        published(figure="3")


def test_figures_are_picked_by_number_or_text_alike():
    by_text = published(d="150")
    assert len(by_text) > 3 and by_text == published(d=150) == published(d=150.0)
    assert [row["d"] for row in by_text] == [150] * len(by_text)
    assert published(D="1000-1500", quantity="val_accuracy_median")
    with pytest.raises(ValueError, match="'none' was found in column 'd'"):
        published(d="none")


def test_results_are_empty_until_there_is_a_table(tmp_path):
    assert results("f3", tmp_path) == []
    (tmp_path / "f3.csv").write_text("experiment,d,val_accuracy,device\nf3,100,0.5,cpu\n")
    assert results("f3", tmp_path) == [{"experiment": "f3", "d": 100, "val_accuracy": 0.5, "device": "cpu"}]


def test_runs_are_read_at_the_rate_of_the_lowest_loss_of_seed_0_if_it_lies_inside(tmp_path):
    rows = [
        ("a", 0, 0.1, 0.5),
        ("a", 0, 0.3, 0.4),
        ("a", 0, 1, ""),
        ("a", 1, 0.3, 0.6),
        ("a", 1, 0.1, 0.1),
        ("b", 0, 0.1, ""),
        ("b", 1, 1, 2),
        ("c", 0, 0.1, 0.5),
        ("c", 0, 0.3, 0.4),
    ]
    lines = [f"mnist/x,{start},20,{seed},{lr},{loss}" for start, seed, lr, loss in rows]
    (tmp_path / "t.csv").write_text("dataset,model_options,d,seed,lr,val_loss\n" + "\n".join(lines) + "\n")
    assert list(found := at_best_rate("t", tmp_path)) == [("mnist/x", "a", 20)]
    assert [(row["seed"], row["lr"]) for row in found["mnist/x", "a", 20]] == [(0, 0.3), (1, 0.3)]
    assert at_best_rate("u", tmp_path) == {}


def test_a_column_has_one_type_whatever_its_cells_look_like(tmp_path):
    (tmp_path / "f3.csv").write_text(
        "commit,torch,lr,seed,val_loss,diverged,options\n8201384,2.13,1,3,,False,\n1e5,nan,0.5,4,2,True,{}\n"
    )
    first, second = results("f3", tmp_path)
    assert first == {
        "commit": "8201384", "torch": "2.13", "lr": 1.0, "seed": 3, "val_loss": None, "diverged": False, "options": ""
    }  # fmt: skip
    assert isinstance(first["lr"], float)
    assert (second["commit"], second["torch"], second["diverged"]) == ("1e5", "nan", True)
    for cells, message in (
        ("commit,seed\na,1.5", "'1.5' was found in column 'seed'"),
        ("age\n1", "unknown column 'age'"),
        ("d\nnan", "'nan' was found in column 'd'"),
        ("d,seed\n1,2\n3", "line 3 has more or fewer cells than the line of the columns"),
        ("d,seed\n1,2,3", "line 2 has more or fewer cells"),
        ("val_loss\ninf", "'inf' was found in column 'val_loss'"),
        ("lr\nnan", "'nan' was found in column 'lr'"),
        ("val_accuracy\n97.1", "'97.1' was found in column 'val_accuracy'"),
        ("d,seed\n1,2\n1,3\n1,2", "line 4 stands there twice"),
        ("d,seed,d\n1,2,3", "it has two columns 'd'"),
        ("commit\n" + "a" * 200_000, "field larger than field limit"),
    ):
        (tmp_path / "f3.csv").write_text(cells + "\n")
        with pytest.raises(ValueError, match=f"f3.csv cannot be read: {message}"):
            results("f3", tmp_path)


def test_a_table_that_lacks_a_column_or_all_is_named(tmp_path):
    lines = (DATA / "results" / "f3.csv").read_text().splitlines()
    (tmp_path / "f3.jsonl").touch()
    (tmp_path / "f3.csv").write_text("".join(line.partition(",")[2] + "\n" for line in lines))
    with pytest.raises(ValueError, match=r"f3\.csv cannot be read: it has no column 'experiment'"):
        results("f3", tmp_path)
    (tmp_path / "f3.csv").write_text("")
    with pytest.raises(ValueError, match=r"f3\.csv cannot be read: it is empty"):
        results("f3", tmp_path)
    (tmp_path / "published.csv").write_text("source,value\n")
    with pytest.raises(ValueError, match=r"published\.csv cannot be read: it has no column 'experiment'"):
        published(tmp_path)
    (tmp_path / "published.csv").write_text((DATA / "published" / "published.csv").read_text().splitlines()[0])
    assert published(tmp_path, source="minut2023") == []


def test_every_recorded_row_names_a_commit_as_text():
    tables = {experiment: results(experiment) for experiment in EXPERIMENTS}
    assert sum(map(bool, tables.values())) >= 15
    for rows in tables.values():
        assert all(re.fullmatch(r"[0-9a-f]{7,}(-dirty)?", row["commit"]) for row in rows)
        assert all(isinstance(row[name], int) for row in rows for name in ("D", "d", "seed", "steps"))


def test_an_installed_library_brings_its_tables(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    root = Path(__file__).resolve().parents[1]
    for name in ("subspace_lib", "data/published", "data/results"):
        shutil.copytree(root / name, tmp_path / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "LICENSE-text"):
        shutil.copy(root / name, tmp_path / "source" / name)
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    pip = [sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", str(tmp_path), str(tmp_path / "source")]
    subprocess.run(pip, check=True)
    [wheel] = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    script = (
        "import subspace_lib; from subspace_lib.study.records import curves, published, results\n"
        "from subspace_lib.study.scorecard import scorecard\n"
        "print(subspace_lib.__file__, len(results('f1')), len(curves('f1')), len(published()), len(scorecard()))"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-P", "-c", script], env=environment, cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    where, *counts = done.stdout.decode().split()
    assert Path(where).is_relative_to(tmp_path / "site")
    rows = scorecard()
    assert [int(n) for n in counts] == [len(results("f1")), len(curves("f1")), len(published()), len(rows)]
    assert counts[0] != "0" and {row["verdict"] for row in rows} != {"not run"}


def test_crossing_is_exact_on_a_line_in_log_d():
    accuracy = {d: 0.2 * math.log10(d) for d in (1, 10, 100, 1000)}
    assert crossing(accuracy, 0.3) == pytest.approx(10**1.5)
    assert crossing(accuracy, 0.0) == 1
    assert crossing(accuracy, 0.61) == math.inf
    assert crossing({1: 0.1, 10: 0.5, 100: 0.4, 1000: 0.9}, 0.5) == pytest.approx(10)
    with pytest.raises(ValueError, match="at least one point"):
        crossing({}, 0.5)


def test_plot_shows_mean_range_and_both_lines():
    _, ax = plt.subplots()
    figures.plot_against_d(ax, {10: [0.1, 0.3], 100: [0.6, 0.6]}, "a curve", baseline=[0.9, 0.7])
    line = ax.containers[0].lines[0]
    assert list(line.get_xdata()) == [10, 100]
    assert list(line.get_ydata()) == pytest.approx([0.2, 0.6])
    heights = sorted(float(each.get_ydata()[0]) for each in ax.lines if len(set(each.get_ydata())) == 1)
    assert 0.8 in [pytest.approx(h) for h in heights]
    assert 0.72 in [pytest.approx(h) for h in heights]
    assert ax.get_xscale() == "log"
    plt.close()


def draw(value):
    figure, ax = plt.subplots(figsize=(3, 2))
    ax.plot([0, value])
    return figure


def test_slider_is_plain_html_with_one_frame_visible():
    before = plt.get_fignums()
    slider = FrameSlider(draw, [1, 2, 3], label="slope & more", alt=lambda v: f'a line of "slope" {v}', start=1)
    page = slider._repr_html_()
    images = re.findall(r"<img [^>]*>", page)
    assert [("hidden" in image) for image in images] == [True, False, True]
    assert 'alt="a line of &quot;slope&quot; 3"' in images[2]
    assert "slope &amp; more" in page
    assert 'min="0" max="2"' in page and ">2</output>" in page
    assert not re.search(r"https?://", page)
    assert not re.search(r"<[^>]* on\w+=", page), "a page may forbid code inside it"
    sizes = {Image.open(io.BytesIO(base64.b64decode(frame))).size for frame in slider.frames}
    assert len(sizes) == 1
    assert plt.get_fignums() == before, "the figures must be closed"
    assert re.findall(r'id="([^"]+)"', page) != re.findall(r'id="([^"]+)"', slider._repr_html_())


def test_a_thin_line_keeps_its_colour_beside_a_picture_of_many():
    def crowded(value):
        fig, ax = plt.subplots(figsize=(4, 3))
        ax.imshow(np.random.default_rng(value).random((20, 20)), extent=(0, 1, 7, 9), aspect="auto", cmap="gray")
        for i, colour in enumerate(figures.COLOURS):
            ax.plot([0, 1], [i, i + 0.5], color=colour)
        return fig

    frames = FrameSlider(crowded, [1, 2], label="noise", alt="lines").frames
    for frame in frames:
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(frame))).convert("RGB"), int)
        for colour in figures.COLOURS:
            assert abs(shown - list(bytes.fromhex(colour[1:]))).max(-1).min() <= 15


def pixels_of(picture):
    """The pixels of an <img> of the page, or of its data alone."""
    data = re.sub(r'.*base64,|".*', "", picture)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), dtype=float)


def assert_near(one, other):
    """The same picture, to a palette."""
    assert np.abs(one - other).max() < 40


def test_frames_share_one_palette():
    def colourful(value):
        figure, ax = plt.subplots(figsize=(3, 2))
        ax.imshow(np.linspace(0, value, 100).reshape(10, 10), cmap="hsv", vmin=0, vmax=3)
        return figure

    slider = FrameSlider(colourful, [1, 2, 3], label="x", alt="y")
    palettes = {tuple(Image.open(io.BytesIO(base64.b64decode(f))).getpalette()) for f in slider.frames}
    assert len(palettes) == 1


def test_the_ground_of_a_frame_is_white():
    def lines(value):
        figure, ax = plt.subplots(figsize=(4, 3))
        for number in range(60):
            ax.plot([0, number], [value, 60 - number], lw=0.3, color="black")
            ax.plot([0, 60], [number, number * value], lw=0.5, color="grey")
        return figure

    for frame in FrameSlider(lines, [1, 2], label="x", alt="y").frames:
        assert pixels_of(frame)[0, 0].tolist() == [255, 255, 255]


def test_a_live_slider_draws_what_is_chosen():
    slider = FrameSlider(draw, [1, 3], label="slope", alt=lambda v: f"a <line> of slope {v}", format="{}°")
    before = plt.get_fignums()
    picture, control = slider.live(range(1, 9)).children
    assert [label for label, _ in control.options] == [f"{value}°" for value in range(1, 9)]
    shown = [pixels_of(frame) for frame in slider.frames]
    assert_near(pixels_of(picture.value), shown[0])
    control.value = 3
    assert_near(pixels_of(picture.value), shown[1])
    assert "a &lt;line&gt; of slope 3" in picture.value
    control.value = 7
    assert "slope 7" in picture.value
    assert all(np.abs(pixels_of(picture.value) - frame).max() > 100 for frame in shown)
    assert plt.get_fignums() == before, "the figures must be closed"
    with pytest.raises(ValueError, match="values to choose from"):
        slider.live([])


def test_slider_refuses_what_would_not_work(monkeypatch):
    with pytest.raises(ValueError, match="at least two values, got 1"):
        FrameSlider(draw, [1], label="x", alt="y")
    with pytest.raises(ValueError, match="start must lie between 0 and 1, got 2"):
        FrameSlider(draw, [1, 2], label="x", alt="y", start=2)
    monkeypatch.setattr("subspace_lib.press.widgets.LIMIT_BYTES", 100)
    with pytest.raises(ValueError, match="the 2 frames take"):
        FrameSlider(draw, [1, 2], label="x", alt="y")
