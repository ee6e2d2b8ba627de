"""The laboratory: its engine computes what the library computes, and its page keeps what it promises to a reader."""

import base64
import html
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import axe_playwright_python
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from subspace_lib import Data, Projection, SubspaceOptimizer, intrinsic_dimension, load_dataset, make_projection
from subspace_lib.press.lab import KINDS, Lab, engine_source, pack, script, style
from subspace_lib.press.pages import FLAGS
from subspace_lib.press.scripts import hoist_scripts

pytestmark = pytest.mark.browser
AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")
ENGINE = Path(__file__).resolve().parents[1] / "subspace_lib/press/lab/engine.js"
MEASURE_MEMORY_AT_ONCE = "--enable-blink-features=ForceEagerMeasureMemory"
PIXELS, HIDDEN, CLASSES, BATCH = 784, 200, 10, 64


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    """Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=[*FLAGS, MEASURE_MEMORY_AT_ONCE])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def engine(browser: Any) -> Iterator[Any]:
    """An empty page with the engine in it."""
    page = browser.new_page()
    network = ENGINE.with_name("network.js").read_text(encoding="utf-8")
    page.add_script_tag(content=f"{ENGINE.read_text(encoding='utf-8')}; const JOBS = {{}}; {network}")
    yield page
    page.close()


class InputMajorMLP(nn.Module):
    """The network of the page: its first matrix is kept pixel by pixel."""

    def __init__(self) -> None:
        super().__init__()
        first, second = nn.Linear(PIXELS, HIDDEN), nn.Linear(HIDDEN, CLASSES)
        self.W1, self.b1 = nn.Parameter(first.weight.detach().T.contiguous()), first.bias
        self.W2, self.b2 = second.weight, second.bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.W1 + self.b1) @ self.W2.T + self.b2


WEIGHTS = PIXELS * HIDDEN + HIDDEN + HIDDEN * CLASSES + CLASSES


class Coordinates(Projection):
    """Single weights, for the comparison: column j has its one entry in row place[j]."""

    name = "coordinates"

    def __init__(self, D: int, d: int, seed: int = 0) -> None:
        super().__init__(D, d, seed)
        self.place = torch.randperm(D, generator=torch.Generator().manual_seed(5))[:d]

    def _multiply(self, z: Tensor) -> Tensor:
        return z.new_zeros(*z.shape[:-1], self.D).index_copy_(-1, self.place, z)

    def _multiply_transposed(self, v: Tensor) -> Tensor:
        return v[..., self.place]


def handed_over(P: Projection | None) -> tuple[str, list[Any]]:
    """The call that makes the same P in the page, and its arguments: indices and signs."""
    if P is None:
        return "identity(D)", [WEIGHTS]
    D, d = P.D, P.d
    if P.name == "coordinates":
        return "coordinates(D, d, new Int32Array(a))", [D, d, P.place.tolist()]
    if P.name == "one_hot":
        # Coordinate j set to j + 1 over the size of its entries shows which one a weight follows, and its sign.
        size = torch.bincount(torch.arange(D) % d, minlength=d).to(P.dtype)
        signed = P(torch.arange(1, d + 1) * size.sqrt())
        column = signed.abs().round().long() - 1
        return "oneHot(D, d, new Int32Array(a))", [D, d, torch.where(signed > 0, column, column + d).tolist()]
    if P.name == "sparse":
        dense = P.to_dense()
        entries = []
        for j in range(d):
            rows = dense[:, j].nonzero()[:, 0]
            entries += torch.where(dense[rows, j] > 0, rows, rows + D).tolist()
        return "sparse(D, d, new Int32Array(a))", [D, d, entries]
    groups = []
    for i, (count, n) in enumerate(P.groups):
        source, entries, signs = (P.get_buffer(f"{part}_{i}").flatten() for part in ("source", "entries", "row_signs"))
        groups.append(
            {"count": count, "n": n, "source": source.tolist(), "entries": entries.tolist(), "rowSigns": signs.tolist()}
        )
    return "hadamard(D, d, a, b, c)", [D, d, groups, P.followed.tolist(), P.followed_entries.tolist()]


FAMILIES = {
    "one_hot": (lambda: make_projection("one_hot", WEIGHTS, 200, seed=3), 0.03),
    "hadamard": (lambda: make_projection("hadamard", WEIGHTS, 200, seed=3), 0.03),
    "hadamard, few blocks": (lambda: make_projection("hadamard", WEIGHTS, 12_000, seed=3), 0.03),
    "sparse": (lambda: make_projection("sparse", WEIGHTS, 200, seed=3), 0.03),
    "identity": (lambda: None, 1e-3),
    "coordinates": (lambda: Coordinates(WEIGHTS, 200), 0.03),
}

HAND_OVER = """text => {
  const [kind, theta0, starts, places, ink, labels, blank] = JSON.parse(text), Numbers = window[kind];
  window.given = {theta0: new Numbers(theta0), digits: {starts: new Int32Array(starts), blank,
    places: new Uint16Array(places), ink: new Numbers(ink), labels: new Uint8Array(labels)}};
}"""
TWENTY_STEPS = """text => {
  const [make, [D, d, a, b, c], rate, optimiser] = JSON.parse(text), P = eval(make);
  const net = new MLP(784, 200, 10, 64), losses = [];
  const run = training(net, given.digits, given.theta0, P, optimiser);
  for (let step = 0; step < 20; step++) {
    losses.push(run.step(Int32Array.from({length: 64}, (_, i) => 64 * step + i), rate));
  }
  let bytes = "";
  for (const byte of new Uint8Array(run.theta.buffer)) bytes += String.fromCharCode(byte);
  return {theta: btoa(bytes), losses, D: net.D};
}"""


@pytest.fixture(scope="module")
def batches() -> tuple[Tensor, Tensor, list[Any]]:
    """Twenty batches of sparse grey images, and the same in the form of the page."""
    generator = np.random.default_rng(0)
    blank, span = -0.4242, 3.2457
    ink = generator.integers(0, 4, (20 * BATCH, PIXELS)) * (generator.random((20 * BATCH, PIXELS)) < 0.25)
    labels = generator.integers(0, CLASSES, 20 * BATCH)
    images = torch.from_numpy(blank + span * ink / 3)
    starts, places, values = [0], [], []
    for row in ink:
        marked = np.nonzero(row)[0]
        filling = [0] * (-len(marked) % 4)
        places += marked.tolist() + filling
        values += (span * row[marked] / 3).tolist() + filling
        starts.append(len(places))
    form = [starts, places, values, labels.tolist(), blank]
    return images, torch.from_numpy(labels), form


@pytest.fixture(scope="module", params=["Float32Array", "Float64Array"])
def engine_of(
    request: pytest.FixtureRequest, browser: Any, batches: tuple[Tensor, Tensor, list[Any]]
) -> Iterator[tuple[Any, torch.dtype]]:
    """A page with the engine, as it is or with numbers of double precision, and with theta0 and the batches."""
    page = browser.new_page()
    page.add_script_tag(content=ENGINE.read_text(encoding="utf-8").replace("Float32Array", request.param))
    dtype = {"Float32Array": torch.float32, "Float64Array": torch.float64}[request.param]
    theta0 = nn.utils.parameters_to_vector(fresh_network(dtype).parameters())
    page.evaluate(HAND_OVER, json.dumps([request.param, theta0.tolist(), *batches[2]]))
    yield page, dtype
    page.close()


def fresh_network(dtype: torch.dtype) -> InputMajorMLP:
    torch.manual_seed(1)
    return InputMajorMLP().to(dtype)


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
@pytest.mark.parametrize("family", FAMILIES)
def test_twenty_steps_agree_with_pytorch(
    family: str,
    optimiser: str,
    engine_of: tuple[Any, torch.dtype],
    batches: tuple[Tensor, Tensor, list[Any]],
) -> None:
    engine, dtype = engine_of
    make, rate = FAMILIES[family]
    net, P = fresh_network(dtype), make()
    theta0 = nn.utils.parameters_to_vector(net.parameters()).detach().clone()
    inner = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[optimiser]
    rate = rate if optimiser == "adam" else 0.1
    weights = net.parameters()
    optimizer = SubspaceOptimizer(net, P.to(dtype), inner, lr=rate) if P is not None else inner(weights, lr=rate)
    images, labels, _ = batches
    losses = []
    for x, y in zip(images.to(dtype).split(BATCH), labels.split(BATCH), strict=True):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    theta = nn.utils.parameters_to_vector(net.parameters()).detach()
    call, arguments = handed_over(P)
    arguments += [None] * (5 - len(arguments))
    found = engine.evaluate(TWENTY_STEPS, json.dumps([call, arguments, rate, optimiser]))
    assert found["D"] == WEIGHTS
    reached = torch.frombuffer(bytearray(base64.b64decode(found["theta"])), dtype=dtype)
    difference = (reached - theta).abs()
    share = (difference < 1e-4).double().mean().item()
    print(
        f"\n{family}, {optimiser}, {dtype}: after twenty steps theta moved {(theta - theta0).abs().max():.1e}, ", end=""
    )
    print(f"difference at most {difference.max():.1e}; {share:.4%} of the weights within 1e-4")
    assert (theta - theta0).abs().max() > 1e-4
    assert share == 1
    assert found["losses"] == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize(("D", "d"), [(1_000, 1), (1_000, 7), (1_003, 300), (159_010, 5), (159_010, 3_000)])
@pytest.mark.parametrize("family", ["one_hot", "hadamard", "sparse", "coordinates", "identity"])
def test_projections_of_the_page_keep_the_contract(family: str, D: int, d: int, engine: Any) -> None:
    """<P z, v> = <z, P^T v>, columns of length 1, and the same P from the same seed."""
    found = engine.evaluate(
        """([family, D, d]) => {
          const P = DRAW[family](D, d, dice(4, PURPOSE.P)), again = DRAW[family](D, d, dice(4, PURPOSE.P));
          const next = dice(1, 9), zero = new Float32Array(D);
          const normal = n => Float32Array.from({length: n}, () => next() + next() + next() - 1.5);
          const times = (P, z) => { const out = new Float32Array(D); P.write(zero, z, out); return out; };
          const back = v => { const out = new Float32Array(P.d); P.pull(v, out); return out; };
          const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
          const z = normal(P.d), v = normal(D), Pz = times(P, z);
          const columns = [0, P.d >> 1, P.d - 1].map(j => times(P, new Float32Array(P.d).fill(1, j, j + 1)));
          return {d: P.d, size: Math.sqrt(dot(z, z) * dot(v, v)), left: dot(Pz, v), right: dot(z, back(v)),
                  norms: columns.map(c => Math.sqrt(dot(c, c))),
                  same: times(again, z).every((value, i) => value === Pz[i])};
        }""",
        [family, D, d],
    )
    assert found["d"] == (D if family == "identity" else d)
    assert found["left"] == pytest.approx(found["right"], abs=1e-5 * found["size"])
    assert found["norms"] == pytest.approx([1, 1, 1], abs=1e-4)
    assert found["same"]


def test_seeds_and_purposes_have_streams_of_their_own(engine: Any) -> None:
    streams = engine.evaluate(
        "[[0, 1], [0, 2], [1, 1], [1, 2], [4294967295, 1]].map(([seed, purpose]) => {"
        "  const next = dice(seed, purpose); return Array.from({length: 2000}, next); })"
    )
    numbers = np.array(streams)
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert np.abs(numbers.mean(1) - 0.5).max() < 0.03
    assert np.abs(np.corrcoef(numbers) - np.eye(len(numbers))).max() < 0.1


@pytest.mark.parametrize("bits", [1, 2, 3, 8, 32])
def test_rounding_keeps_b_bits(bits: int, engine: Any) -> None:
    z = np.random.default_rng(0).normal(size=500).astype(np.float32)
    found = engine.evaluate(
        "([z, bits]) => { const r = round(new Float32Array(z), bits), text = written(r, bits);"
        " return {z: Array.from(r.z), text, back: Array.from(wordOf(text, bits, 500))}; }",
        [z.tolist(), bits],
    )
    rounded = np.array(found["z"], dtype=np.float32)
    assert found["back"] == found["z"] and len(found["text"]) == math.ceil((4 + math.ceil(500 * bits / 8)) * 4 / 3)
    assert len(set(rounded.tolist())) <= 2**bits
    if bits == 32:
        assert (rounded == z).all()
        return

    def error(width: float) -> float:
        levels = width * (np.arange(1 - 2**bits, 2**bits, 2) / 2**bits)
        return float(np.square(np.abs(z[:, None] - levels).min(1)).mean())

    best = min(error(width) for width in np.linspace(0.1, 1.2, 111) * np.abs(z).max())
    assert np.square(rounded - z).mean() < 1.05 * best


def shown(body: str) -> str:
    """A page of its own around the output of a cell."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>A laboratory</title>'
    body = f"<main><h1>A laboratory</h1>{body}</main>"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>'


@pytest.fixture(scope="module")
def digits() -> Data:
    """Few digits, so that a run takes a second or two, called stand-ins."""
    few = load_dataset("mnist").limit(1_280, 200)
    return replace(few, name="mnist-standin", source="offline stand-in for MNIST, drawn by subspace_lib")


@pytest.fixture(scope="module")
def pages(digits: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a page for each laboratory."""
    folder = tmp_path_factory.mktemp("laboratory")
    outputs = {kind: Lab(digits, kind)._repr_html_() for kind in KINDS}
    for kind, output in outputs.items():
        (folder / f"{kind}.html").write_text(shown(output), encoding="utf-8")
    (folder / "two.html").write_text(shown(outputs["plane"] + outputs["spoil"]), encoding="utf-8")
    frame = html.escape(shown(outputs["plane"]), quote=True)
    (folder / "frame.html").write_text(
        f'<!doctype html><iframe sandbox="allow-scripts" width="900" height="900" srcdoc="{frame}"></iframe>',
        encoding="utf-8",
    )
    return folder


@dataclass
class Visit:
    """A laboratory opened from its file, with every request elsewhere refused and every error written down."""

    page: Any
    errors: list[str]

    def lab(self, number: int = 0) -> Any:
        return self.page.locator(".subspace-lab").nth(number)

    def wait(self, state: str, number: int = 0) -> None:
        self.page.wait_for_function(
            "([n, state]) => document.querySelectorAll('.subspace-lab')[n].dataset.state === state",
            arg=[number, state],
            timeout=90_000,
        )

    def press(self, name: str, number: int = 0) -> None:
        """Press a button; a run has begun when this returns, so that `done` from then on is its own."""
        self.lab(number).get_by_role("button", name=name, exact=True).click()

    def choose(self, label: str, value: str, number: int = 0) -> None:
        self.lab(number).get_by_label(label, exact=True).select_option(value)

    def says(self, number: int = 0) -> str:
        text: str = self.lab(number).locator(".live > p[role=status]").first.inner_text()
        return text

    def accuracy(self, number: int = 0) -> float:
        return float(self.lab(number).get_attribute("data-accuracy"))

    def checked(self) -> str:
        """What the check of the exercise says now: right or wrong."""
        exercise = self.lab().locator("details.exercise")
        if exercise.get_attribute("open") is None:
            exercise.locator("summary").click()
        self.press("Check")
        verdict: str = self.lab().get_attribute("data-check")
        return verdict


@pytest.fixture
def visit(browser: Any, pages: Path) -> Iterator[Callable[..., Visit]]:
    opened: list[Visit] = []

    def open_page(
        name: str, fragment: str = "", ready: bool = True, script: str = "", at: str = "", **context: Any
    ) -> Visit:
        page = browser.new_context(**context).new_page()
        visit = Visit(page, [])
        opened.append(visit)
        page.add_init_script(script)
        at = at or pages.as_uri()
        own = (at, "data:", "blob:")
        page.route(lambda url: not url.startswith(own), lambda route: route.abort())
        page.on("request", lambda r: visit.errors.append(r.url) if not r.url.startswith(own) else 0)
        page.on("pageerror", lambda error: visit.errors.append(str(error)))
        page.on("console", lambda message: visit.errors.append(message.text) if message.type == "error" else None)
        page.goto(f"{at}/{name}.html{fragment}")
        if ready:
            page.wait_for_selector(".subspace-lab[data-ready]", timeout=30_000)
        return visit

    yield open_page
    for visit in opened:
        assert visit.errors == []
        visit.page.context.close()


def test_a_plane_trains_stops_and_trains_again(visit: Callable[..., Visit]) -> None:
    opened = visit("plane")
    assert opened.lab().get_attribute("data-state") == "idle"
    assert "not the real digits" in opened.lab().inner_text()
    opened.choose("Epochs", "20")
    opened.press("Train")
    opened.page.wait_for_function("document.querySelector('.subspace-lab').dataset.accuracy")
    opened.press("Stop")
    assert opened.lab().get_attribute("data-state") == "done"
    assert opened.says().startswith("Stopped.")
    opened.choose("Epochs", "2")
    for _ in range(10):
        opened.press("Train")
    opened.wait("done")
    assert "2 epochs and dice 0" in opened.says()
    assert 0 <= opened.accuracy() <= 1
    tiles = opened.lab().locator(".tile span").all_inner_texts()
    assert len(tiles) == 16 and all(re.fullmatch(r"\d [✓✗]", text) for text in tiles)
    assert "lab=plane" in opened.page.url and "epochs=2" in opened.page.url


def test_more_directions_read_more(visit: Callable[..., Visit]) -> None:
    found = {}
    opened = visit("plane", "#lab=plane&v=1&d=500&epochs=5")
    for way in ("A random plane", "All weights", "Single weights"):
        opened.lab().get_by_role("radio", name=way).check()
        opened.press("Train")
        opened.wait("done")
        found[way] = opened.accuracy()
    assert found["All weights"] > found["A random plane"] > found["Single weights"] + 0.1
    assert re.search(r"Your earlier runs, in grey: [0-9.]+% \(d = 500\), [0-9.]+% \(all", opened.lab().inner_text())
    opened.choose("Epochs", "2")  # the chart still holds the runs of five epochs
    corners = opened.page.evaluate(
        "[...document.querySelectorAll('.live polyline')].map(line => Math.max(...[...line.points].map(p => p.x)))"
    )
    assert len(corners) == 5 and max(corners) <= 350
    assert opened.checked() == "right"


def test_a_search_finds_the_crossing(visit: Callable[..., Visit]) -> None:
    opened = visit("dimension", "#lab=dimension&v=1&d=50&epochs=2")
    opened.press("Search for me")
    opened.wait("done")
    result = opened.lab().locator(".live > p[role=status]").last.inner_text()
    if "Not reached" not in opened.says():
        assert "Your intrinsic dimension" in result
        assert "The recorded one is" in result and "differs because" in result
        assert 10 <= float(opened.lab().get_attribute("data-d90")) <= 10_000


def test_crossings_are_those_of_the_library(visit: Callable[..., Visit], pages: Path) -> None:
    source = (ENGINE.parent / "dimension.js").read_text(encoding="utf-8")
    page = visit("plane").page
    page.add_script_tag(content=source.replace("KINDS.dimension = ", "window.unused = "))
    generator = np.random.default_rng(0)
    for _ in range(20):
        points = {
            int(d): float(a) for d, a in zip(np.geomspace(10, 5000, 7), generator.random(7).cumsum() / 5, strict=True)
        }
        wobbly = {d: a + 0.2 * generator.normal() for d, a in points.items()}
        found = page.evaluate("([points, level]) => crossing(points, level)", [list(wobbly.items()), 0.6])
        expected = intrinsic_dimension({d: [a] for d, a in wobbly.items()}, 1.0, share=0.6).d90
        assert found == pytest.approx(expected) if np.isfinite(expected) else found is None


def test_the_check_of_the_plane_wants_a_pair(visit: Callable[..., Visit]) -> None:
    """Right with either kind trained first; wrong before any run, with one kind, with other dice, and at a small d."""

    def train(way: str, seed: str = "0") -> str:
        opened.lab().get_by_role("radio", name=way).check()
        opened.choose("Dice (seed)", seed)
        opened.press("Train")
        opened.wait("done")
        return opened.checked()

    opened = visit("plane", "#lab=plane&v=1&d=500&epochs=2")
    assert opened.checked() == "wrong"
    assert train("A random plane") == "wrong"
    assert train("Single weights", seed="1") == "wrong"
    assert train("Single weights") == "right"
    opened = visit("plane", "#lab=plane&v=1&d=100&epochs=2")
    assert train("Single weights") == "wrong"
    assert train("A random plane") == "right"
    opened = visit("plane", "#lab=plane&v=1&d=50&epochs=2")
    assert [train(way) for way in ("A random plane", "Single weights")] == ["wrong", "wrong"]


@pytest.mark.parametrize("wrong", ["norm=4&factor=0.0625", "norm=4&factor=1", "norm=2&factor=0.5"])
def test_the_check_of_the_spoiled_columns_refuses(wrong: str, visit: Callable[..., Visit]) -> None:
    """The rate of the other optimiser, the same rate, and columns that are hardly spoiled."""
    opened = visit("spoil", f"#lab=spoil&v=1&optimiser=adam&{wrong}&epochs=2")
    assert opened.checked() == "wrong"
    opened.press("Train")
    opened.wait("done")
    assert opened.checked() == "wrong"


def test_the_check_of_the_search_asks_where_it_began(visit: Callable[..., Visit]) -> None:
    opened = visit("dimension", "#lab=dimension&v=1&d=10&epochs=2&seeds=1")
    assert opened.checked() == "wrong"

    def search() -> str:
        opened.press("Search for me")
        opened.wait("done")
        return opened.checked()

    assert search() == "wrong"  # with a single run at each d
    opened.choose("Runs at each d in a search", "3")
    assert search() == "wrong"  # begun far away
    found = float(opened.lab().get_attribute("data-d90"))
    slider = opened.lab().get_by_label("d, directions")
    for _ in range(100):
        if int(re.sub(r"\D", "", slider.get_attribute("aria-valuetext"))) >= found:
            break
        slider.press("ArrowRight")
    assert search() == "right"


@pytest.mark.parametrize(
    ("d", "bits", "verdict"), [(10, 8, "wrong"), (2000, 8, "wrong"), (200, 3, "right"), (300, 2, "right")]
)
def test_the_check_of_the_link_weighs_and_reads(d: int, bits: int, verdict: str, visit: Callable[..., Visit]) -> None:
    """Too few directions, too many bytes, and two files that are small and good."""
    opened = visit("link", f"#lab=link&v=1&d={d}&bits={bits}&epochs=10")
    assert opened.checked() == "wrong"
    opened.press("Train")
    opened.wait("done")
    assert opened.checked() == verdict, (opened.accuracy(), opened.lab().get_attribute("data-bytes"))


@pytest.mark.parametrize(("optimiser", "factor"), [("adam", "1/4"), ("sgd", "1/16")])
def test_a_converted_rate_makes_one_curve(optimiser: str, factor: str, visit: Callable[..., Visit]) -> None:
    share = {"1/4": 0.25, "1/16": 0.0625}[factor]
    opened = visit("spoil", f"#lab=spoil&v=1&optimiser={optimiser}&norm=4&factor={share}&epochs=2")
    opened.press("Train")
    opened.wait("done")
    assert opened.says().startswith("One curve")
    assert opened.checked() == "right"


def test_a_diverging_rate_ends_in_words(visit: Callable[..., Visit]) -> None:
    opened = visit("spoil", "#lab=spoil&v=1&optimiser=sgd&norm=16&factor=64&times=1000&epochs=2")
    opened.press("Train")
    opened.wait("done")
    assert "diverged" in opened.says() and "smaller learning rate" in opened.says()


def test_a_link_gives_the_same_network(visit: Callable[..., Visit]) -> None:
    sent = visit("link", "#lab=link&v=1&d=100&epochs=2&seed=3&bits=3")
    sent.press("Train")
    sent.wait("done")
    link = sent.lab().get_by_label("The network as a link").input_value()
    opened = visit("link", "#" + link.partition("#")[2])
    opened.wait("done")
    assert opened.accuracy() == sent.accuracy()
    assert opened.lab().get_attribute("data-mark") == sent.lab().get_attribute("data-mark")
    assert "You have opened a network" in opened.says()
    assert int(sent.lab().get_attribute("data-bytes")) == 14 + math.ceil(100 * 3 / 8)
    for damaged in (link[:-9], link + "AAAA", re.sub("z=.{4}", "z=****", link), link.replace("d=100", "d=200")):
        broken = visit("link", "#" + damaged.partition("#")[2])
        broken.page.wait_for_function("document.querySelector('.live > p[role=status]').innerText.includes('damaged')")
        assert broken.lab().get_attribute("data-state") == "idle"
    broken.lab().locator("details.draw summary").click()
    broken.lab().locator(".paper").press("ArrowDown")
    broken.page.wait_for_function("document.querySelector('.draw p[role=status]').innerText.includes('no network yet')")


@pytest.mark.parametrize(
    "fragment",
    [
        "#lab=",
        "#lab=plane",
        "#lab=plane&v=2&d=100",
        "#lab=plane&v=1&d=NaN",
        "#lab=plane&v=1&d=-1&epochs=1e9",
        "#lab=plane&v=1&family=%3Cimg src=x onerror=alert(1)%3E",
        "#lab=<script>alert(1)</script>",
        "#lab=plane&v=1&d=%E0%A4%A",
        "#lab=plane&v=1&d=" + "9" * 1_000_000,
        "#lab=__proto__&v=1",
        "#lab=link&v=1&d=100",
        "#lab=plane&v=1&n=7",
        "#lab=plane&v=1&d=123",
    ],
    ids=lambda fragment: fragment[:40],
)
def test_a_hostile_address_gives_the_usual_settings(fragment: str, visit: Callable[..., Visit]) -> None:
    opened = visit("plane", fragment)
    assert "damaged or of another version, or for another page" in opened.says()
    assert opened.lab().get_by_label("Epochs", exact=True).input_value() == "10"
    assert opened.page.locator("img").count() == 0


@pytest.mark.parametrize("fragment", ["", "#a-heading", "#lab=plane&v=1&n=1&d=100", "#lab=plane&v=1&d=100"])
def test_other_addresses_are_no_complaint(fragment: str, visit: Callable[..., Visit]) -> None:
    assert visit("plane", fragment).says() == "Choose d and press Train."


def test_two_laboratories_on_one_page(visit: Callable[..., Visit]) -> None:
    opened = visit("two")
    opened.lab(1).scroll_into_view_if_needed()
    opened.page.wait_for_function("document.querySelectorAll('.subspace-lab[data-ready]').length === 2")
    for number in (0, 1):
        opened.choose("Epochs", "2", number)
        opened.press("Train", number)
    for number in (0, 1):
        opened.wait("done", number)
    ids = opened.page.evaluate("[...document.querySelectorAll('[id]')].map(node => node.id)")
    assert len(ids) == len(set(ids))


def test_in_a_frame_as_colab_has(visit: Callable[..., Visit]) -> None:
    opened = visit("frame", ready=False)
    frame = opened.page.frame_locator("iframe")
    frame.get_by_label("Epochs", exact=True).select_option("2")
    frame.get_by_role("button", name="Train", exact=True).click()
    frame.locator(".subspace-lab[data-state=done]").wait_for(timeout=60_000)
    assert float(frame.locator(".subspace-lab").get_attribute("data-accuracy")) >= 0


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("delete window.Worker", "no workers"),
        ("delete window.DecompressionStream", "no DecompressionStream"),
        ("window.Worker = class { constructor() { throw new Error('refused') } }", "allows no workers"),
    ],
)
def test_an_old_browser_gets_the_picture_and_the_reason(script: str, reason: str, visit: Callable[..., Visit]) -> None:
    opened = visit("plane", ready=False, script=script)
    opened.page.wait_for_function("document.querySelector('.why').textContent")
    assert reason in opened.lab().locator(".why").inner_text()
    assert opened.lab().locator(".still svg").is_visible()


@pytest.fixture(scope="module")
def hoisted(pages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page of a plane as the book has it: its script in a file."""
    folder = tmp_path_factory.mktemp("hoisted")
    page = (pages / "plane.html").read_text(encoding="utf-8")
    (folder / "plane.html").write_text(hoist_scripts(page, folder / "scripts", "scripts"), encoding="utf-8")
    return folder


def test_a_server_may_forbid_all_code_but_its_own(
    hoisted: Path, serve: Callable[..., str], visit: Callable[..., Visit]
) -> None:
    """And the same page works from a file."""
    for address in (serve(hoisted, {"Content-Security-Policy": "script-src 'self'"}), hoisted.as_uri()):
        opened = visit("plane", at=address)
        opened.choose("Epochs", "2")
        opened.press("Train")
        opened.wait("done")
        assert "2 epochs" in opened.says()


def test_a_server_that_forbids_workers_gets_the_picture_and_the_reason(
    hoisted: Path, serve: Callable[..., str], visit: Callable[..., Visit]
) -> None:
    address = serve(hoisted, {"Content-Security-Policy": "script-src 'self'; worker-src 'none'"})
    opened = visit("plane", at=address, ready=False)
    opened.lab().locator(".why", has_text="the server of this page allows none").wait_for()
    assert opened.lab().locator(".still svg").is_visible()
    assert len(opened.errors) == 1 and "worker-src 'none'" in opened.errors.pop()


def test_without_javascript_there_is_a_picture(visit: Callable[..., Visit]) -> None:
    opened = visit("plane", ready=False, java_script_enabled=False)
    assert opened.lab().locator(".still svg").is_visible()
    assert "A finished run" in opened.lab().inner_text()
    assert "With JavaScript" in opened.lab().inner_text()


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_is_shut_out(kind: str, visit: Callable[..., Visit]) -> None:
    """axe finds nothing, in both themes; nothing is wider than a phone; all is reached by keyboard."""
    opened = visit(kind, viewport={"width": 320, "height": 700})
    page = opened.page
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    page.evaluate(AXE.read_text(encoding="utf-8"))
    for theme, ground in (("light", "#fff"), ("dark", "#121212")):
        found = page.evaluate(
            "async ([theme, ground]) => { document.documentElement.dataset.theme = theme;"
            " document.body.style.background = ground; document.body.style.color = theme === 'dark' ? '#eee' : '#111';"
            " const found = await axe.run(document, {resultTypes: ['violations'], preload: false});"
            " return found.violations.map(rule => [rule.id, rule.nodes[0].html.slice(0, 200)]); }",
            [theme, ground],
        )
        assert found == []
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.textContent.slice(0, 20)"))
    assert {"Train", "Stop", "Check"} <= reached


def test_a_drawn_digit_is_read(visit: Callable[..., Visit]) -> None:
    opened = visit("plane")
    opened.choose("Epochs", "2")
    opened.press("Train")
    opened.wait("done")
    lab = opened.lab()
    lab.locator("details.draw summary").click()
    verdict = lab.locator("details.draw p[role=status]")
    opened.press("Read it")
    assert "empty" in verdict.inner_text()
    paper = lab.locator(".paper")
    paper.focus()
    for _ in range(7):
        opened.page.keyboard.press("ArrowDown")
    opened.page.wait_for_function("document.querySelector('.paper').dataset.guess")
    assert re.search("The network reads a [0-9]|not sure: perhaps a [0-9]", verdict.inner_text())
    opened.press("Clear")
    paper.evaluate("canvas => canvas.getContext('2d').fillRect(0, 0, 280, 280)")
    opened.press("Read it")
    assert "covered" in verdict.inner_text()


def test_a_hidden_page_pauses(visit: Callable[..., Visit]) -> None:
    opened = visit("plane")
    hide = "Object.defineProperty(document, 'hidden', {{value: {}, configurable: true}});"
    hide += "document.dispatchEvent(new Event('visibilitychange'))"
    opened.choose("Epochs", "20")
    opened.press("Train")
    opened.page.wait_for_function("document.querySelector('.subspace-lab').dataset.accuracy")
    opened.page.evaluate(hide.format("true"))
    opened.page.wait_for_timeout(300)
    before = opened.says(), opened.lab().locator(".panels").inner_html()
    opened.page.wait_for_timeout(1500)
    assert before == (opened.says(), opened.lab().locator(".panels").inner_html())
    opened.page.evaluate(hide.format("false"))
    opened.press("Stop")


def test_sizes_stay_within_their_limits() -> None:
    for kind in KINDS:
        assert len(script(kind) + style()) <= 40_000
    data = load_dataset("mnist").limit(5_000, 1_000)
    assert len(pack(data)) <= 450_000


def test_the_engine_can_be_shown() -> None:
    assert engine_source("training").startswith("// A training: theta0, P, z and an optimiser.")
    assert engine_source("training").endswith("}\n")
    with pytest.raises(ValueError, match="has no 'nothing'"):
        engine_source("nothing")


def test_bad_input_is_refused(digits: Data) -> None:
    with pytest.raises(ValueError, match="unknown laboratory 'garden'; choose one of: plane, dimension, spoil, link"):
        Lab(digits, "garden")
    with pytest.raises(ValueError, match="data.val is None"):
        Lab(Data(train=digits.train, val=None))
    with pytest.raises(ValueError, match="784 pixels"):
        Lab(Data(train=(torch.zeros(4, 3, 32, 32), torch.zeros(4).long()), val=None))


def test_the_page_is_measured(visit: Callable[..., Visit], engine: Any, pages: Path, serve: Callable[..., str]) -> None:
    """Prints what a reader's machine would feel; asserts only what does not depend on the machine."""
    steps = engine.evaluate(
        """() => {
          const next = dice(1, 9), starts = new Int32Array(65), places = [], ink = [];
          for (let i = 0; i < 64; i++) {
            for (let p = 0; p < 784; p++) if (next() < 0.19) { places.push(p); ink.push(3 * next()); }
            while (places.length % 4) { places.push(0); ink.push(0); }
            starts[i + 1] = places.length;
          }
          const digits = {starts, places: Uint16Array.from(places), ink: Float32Array.from(ink),
                          labels: new Uint8Array(64), blank: -0.42};
          const net = new MLP(784, 200, 10, 64), rows = Int32Array.from({length: 64}, (_, i) => i), found = {};
          for (const [family, d] of [["identity", net.D], ["coordinates", 200], ["one_hot", 200], ["hadamard", 200],
                                     ["hadamard", 2000], ["sparse", 200]]) {
            const P = DRAW[family](net.D, d, dice(0, 2));
            const run = training(net, digits, net.start(dice(0, 1)), P, "adam");
            const times = Array.from({length: 60}, () => {
              const start = performance.now();
              run.step(rows, 1e-4);
              return performance.now() - start;
            }).sort((a, b) => a - b);
            found[`${family}, d = ${d}`] = [times[0], times[30]];
          }
          return found;
        }"""
    )
    for family, (best, middle) in steps.items():
        print(
            f"\n{family}: {best:.1f} ms a step at best, {middle:.1f} in the middle; "
            f"{64_000 / best:,.0f} and {64_000 / middle:,.0f} images/s",
            end="",
        )
    watch = """window.tasks = [];
      new PerformanceObserver(list => list.getEntries().forEach(one => tasks.push([one.startTime, one.duration])))
        .observe({entryTypes: ["longtask"]});"""
    isolated = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
    opened = visit("plane", script=watch, at=serve(pages, isolated))
    before = opened.page.evaluate("performance.now()")
    opened.choose("Epochs", "5")
    opened.press("Train")
    opened.wait("done")
    tasks = opened.page.evaluate("tasks")
    opening, run = ([took for start, took in tasks if (start < before) is early] for early in (True, False))
    print(f"\nlongest block of the page over 50 ms: opening {max(opening, default=0):.0f} ms, ", end="")
    print(f"run {max(run, default=0):.0f} ms")
    found = opened.page.evaluate("performance.measureUserAgentSpecificMemory().then(found => found.breakdown)")
    memory = {"page": 0.0, "worker": 0.0}
    for part in found:
        in_worker = any("Worker" in where["scope"] for where in part["attribution"])
        memory["worker" if in_worker else "page"] += part["bytes"] / 1e6
    code = {kind: len(script(kind) + style()) for kind in KINDS}
    print(f"memory in MB {memory}; bytes of code {code}")
    assert memory["worker"] > 1 and sum(memory.values()) < 100
