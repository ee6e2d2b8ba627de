"""How long the chapters take on a GPU: their training steps, counted without taking them, at what a step costs there.

    python tests/steps.py [--profile full] [CHAPTER ...]

By hand, since it takes minutes. All other code of a chapter runs, on the CPU. A training counts as many epochs as it
may take, as if nothing stopped it early, and finds what is made up. In a loop of a chapter's own, a cell's first steps
are real.
"""

import argparse
import collections
import contextlib
import io
import json
import math
import time
import traceback
from pathlib import Path
from unittest import mock

import matplotlib
import torch

from subspace_lib import SubspaceOptimizer, loop
from subspace_lib.press import chapters, widgets
from subspace_lib.steps import Runs

BOOK = Path(__file__).resolve().parents[1] / "book"
MILLISECONDS = {"convolutions": 3.6, "others": 2.0}
"""A step of one network in a subspace, on an H100, by PyTorch alone: what it launches takes less than the launches."""
EACH = 1.2
"""Side by side, milliseconds more for the P of every run."""
REAL = 50
"""Steps of its own loop that a cell really takes."""

counted: collections.Counter[str] = collections.Counter()
in_this_cell, within = 0, False


def epochs(self: loop.Loop, runs: Runs, histories: list[loop.History], best: list[dict[str, torch.Tensor]]) -> None:
    """Count what ``Loop._epochs`` would do, and make up what it would find."""
    each = math.ceil(len(self.data.train[1]) / self.batch_size)
    kind = "convolutions" if runs.convolves else "others"
    counted[kind if runs.count == 1 else f"{runs.count} x {kind}"] += each * self.epochs
    for i, history in enumerate(histories):
        moved = ((name, tensor) for name, tensor in best[i].items() if tensor.is_floating_point())
        best[i] |= {name: tensor + 0.01 * torch.randn_like(tensor) for name, tensor in moved}
        if self.data.val is not None:
            history.val_loss, history.val_accuracy = [2.3], [0.1]
        for epoch in range(1, self.epochs + 1):
            history.train_loss.append(2.3 * 0.9**epoch)
            history.steps, history.best_epoch = each * epoch, epoch
            if self.data.val is not None:
                history.val_loss.append(2.3 * 0.9**epoch)
                history.val_accuracy.append(1 - 0.9 ** (epoch + 1))
            if self.on_epoch is not None:
                self.on_epoch(history)


def evaluated(self: Runs, rows: object, size: int = 1000) -> list[tuple[float, float]]:
    """What ``Runs.evaluate`` might find."""
    return [(2.0, 0.2)] * self.count


def seldom(function):
    """``function``, but not any more once its cell has taken its steps."""
    return lambda *given, **named: function(*given, **named) if in_this_cell < REAL else None


def counting(function):
    """A ``step`` that counts itself, but not the one it takes within, and is taken at first only."""

    def step(*given, **named):
        global in_this_cell, within
        if within:
            return function(*given, **named)
        counted["others"] += 1
        in_this_cell += 1
        within = True
        try:
            return function(*given, **named) if in_this_cell < REAL else None
        finally:
            within = False

    return step


def run(name: str, profile: str, broken: list[str]) -> float:
    """Run a chapter at a profile, and name the cells that break; the seconds that this took a core."""
    global in_this_cell
    counted.clear()
    names = {"__name__": "__main__", "display": lambda *_: None}
    began = time.process_time()
    for number, cell in enumerate(json.loads((BOOK / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]):
        if cell["cell_type"] == "code":
            source, in_this_cell = "".join(cell["source"]), 0
            if "parameters" in cell["metadata"].get("tags", []):
                source = f"PROFILE = {profile!r}"
            try:
                exec(compile(source, f"{name}, cell {number}", "exec"), names)
            except Exception:
                traceback.print_exc()
                broken.append(f"{name}, cell {number}")
            matplotlib.pyplot.close("all")
    return time.process_time() - began


def cost(kind: str) -> float:
    """Milliseconds of a step."""
    count, _, one = kind.rpartition(" x ")
    return MILLISECONDS[one] + EACH * int(count or 0)


def main() -> None:
    """Count, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("chapters", nargs="*", default=chapters.chapter_names(BOOK))
    parser.add_argument("--profile", default="full")
    chosen = parser.parse_args()
    matplotlib.use("Agg")
    adam, sgd = torch.optim.Adam, torch.optim.SGD
    patches = [mock.patch.object(kind, "step", counting(kind.step)) for kind in (adam, sgd, SubspaceOptimizer)]
    patches += [mock.patch.object(torch.Tensor, "backward", seldom(torch.Tensor.backward))]
    patches += [mock.patch.object(loop.Loop, "_epochs", epochs), mock.patch.object(Runs, "evaluate", evaluated)]
    patches += [mock.patch.object(widgets, "FrameSlider", lambda *_, **__: None)]
    for patch in patches:
        patch.start()
    lines: list[str] = []
    broken: list[str] = []
    for name in chosen.chapters:
        with contextlib.redirect_stdout(io.StringIO()):
            seconds = run(name, chosen.profile, broken)
        training = sum(steps * cost(kind) for kind, steps in counted.items()) / 1000
        said = ", ".join(f"{steps:,} of {kind}" for kind, steps in sorted(counted.items()))
        lines.append(f"{name:28s} {training:5.0f} s of training, {seconds:4.0f} s of the rest here; steps: {said}")
        print(lines[-1], flush=True)
    print("=== all", *lines, sep="\n")
    if broken:
        raise SystemExit(f"steps are missing: these cells broke: {'; '.join(broken)}")


if __name__ == "__main__":
    main()
