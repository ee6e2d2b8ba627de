"""The laboratory: a network that trains in the reader's browser, on the built page, in Jupyter and in Colab alike."""

from __future__ import annotations

import base64
import html
import json
import math
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from subspace_lib.data import Data
from subspace_lib.intrinsic import intrinsic_dimension
from subspace_lib.projections import make_projection
from subspace_lib.study.records import accuracy_over_d, results
from subspace_lib.subspace import SubspaceModel
from subspace_lib.tasks.models import MLP
from subspace_lib.training import fit

FOLDER = Path(__file__).parent
LIMIT_BYTES = 450_000
TRAIN, TEST, PIXELS = 5_000, 1_000, 784
FULL_SIZE = 48_000  # digits that a recorded run trained on: four fifths of 60,000
LEVELS = 4  # grey levels of a pixel
KINDS = {  # and their files: of the worker, of the page
    "plane": ("engine.js worker.js", "page.js digits.js plane.js"),
    "dimension": ("engine.js worker.js", "page.js dimension.js"),
    "spoil": ("engine.js worker.js", "page.js spoil.js"),
    "link": ("engine.js worker.js network.js", "page.js digits.js link.js"),
}
GOAL = {"bytes": 90, "accuracy": 0.65}


class Lab:
    """A laboratory: the MLP of the study, D = 159,010, trained by the reader in a random subspace of their choice.

    Shown as plain HTML with the digits and the code inside: no kernel, no server, no network. It computes in a worker,
    starts when it comes into view, and keeps its settings in the address of the page. Without JavaScript there is a
    picture of a finished run, which is trained here.

    Parameters
    ----------
    data : Data
        One-channel images of 28 x 28. The first 5,000 of ``train`` and the first 1,000 of ``val`` are packed,
        two bits a pixel.
    kind : str
        "plane": train in d directions, all weights, or single weights. "dimension": accuracy over d, and a search.
        "spoil": column norms against learning rates. "link": a network rounded to b bits and sent as a link.

    Raises
    ------
    ValueError
        If the kind is not known, the images are no 28 x 28 grey ones of ten classes at most, there are none to
        validate on, or the packed digits pass 450 kB.

    Examples
    --------
    >>> from subspace_lib import load_dataset
    >>> Lab(load_dataset("mnist")).kind
    'plane'
    """

    def __init__(self, data: Data, kind: str = "plane") -> None:
        if kind not in KINDS:
            raise ValueError(f"unknown laboratory {kind!r}; choose one of: {', '.join(KINDS)}")
        if data.shape.numel() != PIXELS or data.classes > 10:
            raise ValueError(
                f"a laboratory needs grey images of {PIXELS} pixels in ten classes at most, "
                f"got shape {tuple(data.shape)} and {data.classes} classes"
            )
        if data.val is None:
            raise ValueError("a laboratory needs digits to validate on, and data.val is None")
        self.data, self.kind = data.to("cpu").limit(TRAIN, TEST), kind
        self.counts = len(self.data.train[1]), min(TEST, len(data.val[1]))
        self.digits = pack(self.data)
        if len(self.digits) > LIMIT_BYTES:
            raise ValueError(f"the packed digits take {len(self.digits):,} bytes, more than {LIMIT_BYTES:,}; use fewer")

    def _repr_html_(self) -> str:
        images = self.data.train[0]
        train, test = self.counts
        config: dict[str, Any] = {
            "data": {
                "train": train,
                "test": test,
                "pixels": PIXELS,
                "low": float(images.min()),
                "high": float(images.max()),
            }
        }
        if self.data.name.endswith("-standin"):
            config["notice"] = f"These are not the real digits: {self.data.source}. Accuracies are not those of MNIST."
        if self.kind == "dimension":
            config["recorded"] = recorded = recorded_dimension()
            still = picture(
                recorded["curve"],
                "Recorded full-size runs: accuracy against d",
                f"accuracy reaches {recorded['curve'][-1][1]:.3f} at d = {recorded['curve'][-1][0]:,}",
                log=True,
            )
        else:
            accuracies = finished_run(self.data)
            still = picture(
                list(enumerate(accuracies)),
                "A finished run in a random plane, d = 200: accuracy against epochs",
                f"{accuracies[-1]:.1%} of {test:,} digits after {len(accuracies) - 1} epochs",
            )
        if self.kind == "link":
            config["goal"] = GOAL
        return (
            f'<div class="subspace-lab" data-lab="{self.kind}" data-state="idle" data-waiting>'
            f"<style>{style()}</style>"
            f'<figure class="still">{still}</figure><p class="why"></p>'
            "<noscript><p>With JavaScript this picture is a laboratory: the network trains here, in your browser.</p>"
            "</noscript>"
            f'<template class="setup">{html.escape(json.dumps(config))}</template>'
            f'<template class="digits">{self.digits}</template>'
            f"<script>{script(self.kind)}</script></div>"
        )


def pack(data: Data) -> str:
    """Labels and pixels of the digits to train on, then of those to validate on: two bits a pixel, deflated, base64."""
    pairs = [pair for pair in (data.train, data.val) if pair is not None]
    low, high = data.train[0].min(), data.train[0].max()
    images: Tensor = torch.cat([images.flatten(1) for images, _ in pairs])
    levels = ((images - low) / (high - low) * (LEVELS - 1)).round().clamp(0, LEVELS - 1).to(torch.uint8).view(-1, 4)
    packed = levels[:, 0] | levels[:, 1] << 2 | levels[:, 2] << 4 | levels[:, 3] << 6
    labels = torch.cat([labels for _, labels in pairs]).to(torch.uint8)
    return _deflated(torch.cat([labels, packed]).numpy().tobytes())


def script(kind: str) -> str:
    """The code of a page with this laboratory. In a worker the same script does the worker's part, and nothing else."""
    worker, page = (_dense("".join(map(_file, names.split()))) for names in KINDS[kind])
    return (
        f"(() => {{\nconst work = () => {{\n{worker}}};\n"
        f"if (typeof document === 'undefined') return work();\n{page}startLaboratories(work);\n}})();"
    )


def style() -> str:
    """The style sheet of the laboratories, without spaces that it does not need."""
    return re.sub(r"(?<=[:;,{]) | (?=[{}])|^ +", "", _file("lab.css"), flags=re.MULTILINE)


def engine_source(*names: str) -> str:
    """These functions, classes or constants of the engine, with the comments above them, as its file has them.

    Raises
    ------
    ValueError
        If the engine has none of that name.
    """
    found = []
    for name in names:
        start = rf"(?:^//[^\n]*\n)*^(?:function|class|const) {re.escape(name)}\b"
        match = re.search(rf"{start}(?:[^\n]*;\n|.*?^\}}[^\n]*\n)", _file("engine.js"), re.MULTILINE | re.DOTALL)
        if match is None:
            raise ValueError(f"the engine of the laboratory has no {name!r}; see {FOLDER / 'engine.js'}")
        found.append(match.group())
    return "\n".join(found)


def recorded_dimension() -> dict[str, Any]:
    """What the recorded full-size runs of the same network say: curve, baseline, intrinsic dimension."""
    curve, baseline = accuracy_over_d("f1")
    estimate = intrinsic_dimension(curve, baseline)
    rows = [row for row in results("f1") if row["projection"] != "none"]
    return {
        "curve": [[d, sum(values) / len(values)] for d, values in sorted(curve.items())],
        "baseline": estimate.baseline,
        "d90": estimate.d90,
        "low": estimate.low,
        "high": estimate.high,
        "kind": estimate.kind,
        "seeds": len({row["seed"] for row in rows}),
        "epochs": int(max(row["epochs"] for row in rows)),
        "images": FULL_SIZE,
    }


def finished_run(data: Data, d: int = 200, epochs: int = 3) -> list[float]:
    """Accuracy after each epoch of a run like those of the page: the picture where it cannot train."""
    torch.manual_seed(0)
    net = MLP()
    P = make_projection("hadamard", sum(weight.numel() for weight in net.parameters()), d, seed=1)
    return fit(SubspaceModel(net, P), data, epochs=epochs, batch_size=64, lr=0.1, seed=2).val_accuracy


def picture(points: Sequence[Sequence[float]], title: str, says: str, log: bool = False) -> str:
    """A curve as SVG whose colours follow the page, with its caption: accuracy over epochs, or over d on a log axis."""
    xs = [math.log(x) if log else x for x, _ in points]
    left, right = min(xs), max(xs)
    at = [
        (40 + 290 * (x - left) / max(right - left, 1e-9), 166 - 146 * y) for x, (_, y) in zip(xs, points, strict=True)
    ]
    grid = "".join(
        f'<line class="grid" x1="40" x2="330" y1="{166 - 146 * y}" y2="{166 - 146 * y}"/>'
        f'<text x="35" y="{170 - 146 * y}" text-anchor="end">{y:g}</text>'
        for y in (0, 0.5, 1)
    )
    ends = "".join(
        f'<text x="{x}" y="182" text-anchor="middle">{points[i][0]:,}</text>' for x, i in ((40, 0), (330, -1))
    )
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    words = html.escape(f"{title}. {says[0].upper()}{says[1:]}.")
    return (
        f'<svg viewBox="0 0 360 200" role="img" aria-label="{words}">{grid}{ends}'
        f'<polyline class="first" points="{line}"/></svg><figcaption>{words}</figcaption>'
    )


def _deflated(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content, 9)).decode("ascii")


def _file(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _dense(code: str) -> str:
    """Without comments, indents, and spaces around signs, texts aside: a third less to carry in every page."""
    lines = (re.sub(r"(^|\s)// .*|^\"use strict\";", "", line).strip() for line in code.splitlines())
    signs = re.compile(r"""("[^"]*"|`[^`]*`)| ?([=<>!&|?:,;{}()\[\]*%+/]) ?""")
    keep = re.compile("`.*`.*`|\\^")  # a text within a text, a pattern
    return "".join(
        (line if keep.search(line) else signs.sub(lambda found: found[1] or found[2], line)) + "\n"
        for line in lines
        if line
    )
