"""What the recorded runs say and where they stand: claims of order, each by the same test, and what is still to run.

``python -m subspace_lib.study.findings`` writes both into ``data/README.md``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean, median
from typing import Any

from subspace_lib.files import write_text
from subspace_lib.intrinsic import crossing, increasing
from subspace_lib.study.claims import Comparison, compare, of_differences
from subspace_lib.study.experiments import EXPERIMENTS, FINE_TUNING, best_rate, experiment, rates_tried, task_of
from subspace_lib.study.records import DATA, Spec, at_best_rate, curves, loss_of, results
from subspace_lib.study.scorecard import pooling_effect
from subspace_lib.tasks.profiles import get_profile

CORNERS = {
    ("shared", "long"): "study_sparse_original",
    ("shared", "short"): "sparser_shared_unit",
    ("independent", "long"): "sparser_independent_long",
    ("independent", "short"): "sparser_independent_unit",
}
"""The 2 x 2 of rows and column norms at density 1/sqrt(D), in "f5"."""
SIZES = ((250, 500), (500, 1000), (1000, 2000), (2000, 3000), (3000, 6000))

START_TASKS = {
    ("mnist/rotated_30",): "turned digits",
    ("mnist/inverted",): "inverted digits",
    ("mnist/shifted",): "shifted labels",
    ("mnist/inverted", "mnist/shifted"): "inverted digits and shifted labels together",
    ("cifar10/grey",): "grey photographs",
}
FULL, LARGE = 159_010, 4_652_008
"""D of the two networks that are fine-tuned."""
_SURE, _LOOSE = {"start": "imagenet", "norm": "frozen"}, {"start": "random", "norm": "batch"}
_FACTORS, _BATCH = {"adapter": {"kind": "lora", "rank": 4}}, {"start": "imagenet", "norm": "batch"}
LARGE_CLAIMS = (
    ("1,000 above 200 numbers", (_SURE, 1000), (_SURE, 200)),
    ("5,000 above 1,000 numbers", (_SURE, 5000), (_SURE, 1000)),
    ("all weights above 5,000 numbers", (_SURE, None), (_SURE, 5000)),
    ("ImageNet's weights above a random start, d = 1,000", (_SURE, 1000), (_LOOSE, 1000)),
    ("ImageNet's weights above a random start, all weights", (_SURE, None), (_LOOSE, None)),
    ("frozen statistics above those of the batch, d = 1,000", (_SURE, 1000), (_BATCH, 1000)),
    (
        "ImageNet's weights above a random start, both with the batch's statistics, d = 1,000",
        (_BATCH, 1000),
        (_LOOSE, 1000),
    ),
    ("Uni-LoRA above one_hot, 200 numbers", (_SURE | _FACTORS, 200), (_SURE, 200)),
    ("Uni-LoRA above one_hot, 1,000 numbers", (_SURE | _FACTORS, 1000), (_SURE, 1000)),
)
"""Pairs of options and d of the large network (None: all its weights), the first of which may be ahead."""

Row = dict[str, Any]
Finding = tuple[str, Comparison]


def findings(folder: Path = DATA / "results") -> list[Finding]:
    """Each claim, in words that hold where its verdict is "ahead", and what the paired runs say."""
    study = (_corners, _families, _single_weights, _layers, _shapes, _small_networks)
    return [finding for part in (*study, _starts, _adapters, large_network) for finding in part(folder)]


def table(found: list[Finding]) -> str:
    """The claims as a table in Markdown."""
    lines = ["| claim | mean difference (95% interval) | pairs | |", "| :-- | :-- | --: | :-- |"]
    for claim, one in found:
        digits = 1 if abs(one.mean) >= 1 else 4
        numbers = f"{one.mean:+.{digits}f} ({one.low:+.{digits}f} to {one.high:+.{digits}f})"
        lines.append(f"| {claim} | {numbers} | {one.n} | {one.verdict} |")
    return "\n".join(lines) + "\n"


def _corners(folder: Path) -> Iterator[Finding]:
    rows = results("f5", folder)
    for lr in sorted({row["lr"] for row in rows if row["projection"] in CORNERS.values()}):
        at = {corner: [r for r in rows if (r["projection"], r["lr"]) == (name, lr)] for corner, name in CORNERS.items()}
        yield from _two_by_two(at, f"rate {lr:g}")
    rows = results("f5_corners", folder)
    fitted = {corner: at_inner_rate([r for r in rows if r["projection"] == name]) for corner, name in CORNERS.items()}
    if all(fitted.values()):
        yield from _two_by_two(fitted, "each at its best rate")


def _two_by_two(at: dict[tuple[str, str], list[Row]], rate: str) -> Iterator[Finding]:
    lengths = {length: _by_seed(at["independent", length], at["shared", length]) for length in ("long", "short")}
    common = sorted(lengths["long"].keys() & lengths["short"].keys())
    rows_effect = [fmean(lengths[length][seed] for length in lengths) for seed in common]
    yield f"independent above shared rows, {rate}", of_differences(rows_effect)
    for kind in ("independent", "shared"):
        yield f"long above short columns, {kind} rows, {rate}", compare(at[kind, "long"], at[kind, "short"])
    both = [lengths["long"][seed] - lengths["short"][seed] for seed in common]
    yield f"length gains more with independent rows, {rate}", of_differences(both)


def at_inner_rate(rows: list[Row]) -> list[Row]:
    """The runs at the rate of lowest mean validation loss; none while that is the lowest or highest of those tried."""
    losses: dict[float, list[float]] = {}
    for row in rows:
        losses.setdefault(row["lr"], []).append(loss_of(row))
    best = min(losses, key=lambda lr: fmean(losses[lr]), default=math.nan)
    return [row for row in rows if row["lr"] == best and min(losses) < best < max(losses)]


def _families(folder: Path) -> Iterator[Finding]:
    ours = {name: [r for r in results("f5", folder) if r["projection"] == name] for name in ("hadamard", "kronecker")}
    one_hot = [row for row in results("f5", folder) if row["projection"] == "one_hot"]
    for name, rows in ours.items():
        yield f"one_hot above {name}, CIFAR-10 MLP", compare(one_hot, rows)
    lenet = [row for row in results("f7", folder) if row["model"] == "lenet"]
    of = {name: [row for row in lenet if row["projection"] == name] for name in ("orthogonal", "dense", "hadamard")}
    for name in ("orthogonal", "hadamard"):
        yield f"{name} above dense Gaussian columns, CIFAR-10 LeNet", compare(of[name], of["dense"])
    own, shared = (
        [row for row in lenet if row["projection"] == name] for name in ("sparse_independent_rows", "study_sparse")
    )
    if own:
        yield "rows of each column's own above shared rows, CIFAR-10 LeNet, the study's rate", compare(own, shared)


def _single_weights(folder: Path) -> Iterator[Finding]:
    if alone := at_inner_rate(results("single_weights", folder)):
        directions = [row for row in results("f1", folder) if row["d"] == alone[0]["d"]]
        yield f"{alone[0]['d']} directions above as many single weights, MNIST MLP", compare(directions, alone)


def _layers(folder: Path) -> Iterator[Finding]:
    rows = results("gaussian", folder)
    blocks, one = ([row for row in rows if ("split" in row["options"]) == split] for split in (True, False))
    by_d = [
        _by_seed([r for r in one if r["d"] == d], [r for r in blocks if r["d"] == d]) for d in {r["d"] for r in one}
    ]
    seeds = sorted(set.intersection(*map(set, by_d)))
    yield "one P above a P a layer, mean over d", of_differences([fmean(at[seed] for at in by_d) for seed in seeds])
    splits: dict[str, list[Row]] = {}
    for row in results("split", folder):
        if row["options"]:
            splits.setdefault("+".join(map(str, json.loads(row["options"])["split"])), []).append(row)
    for name, rows in sorted(splits.items()):
        others = [row for other, those in splits.items() if other != name for row in those]
        mean = [
            {"seed": s, "val_accuracy": fmean(r["val_accuracy"] for r in others if r["seed"] == s)} for s in range(3)
        ]
        yield f"split {name} above the mean of the other five", compare(rows, mean)
    yield "average above max pooling, at the study's splits", pooling_effect(folder.parent)


def _shapes(folder: Path) -> Iterator[Finding]:
    found: dict[tuple[int, int], dict[int, float]] = {}
    rows = results("width_depth", folder)
    for options in sorted({row["model_options"] for row in rows}):
        shape = json.loads(options)
        for seed in range(3):
            mine = [row for row in rows if (row["model_options"], row["seed"]) == (options, seed)]
            curve = {row["d"]: row["val_accuracy"] for row in mine if row["projection"] != "none"}
            [direct] = [row["val_accuracy"] for row in mine if row["projection"] == "none"]
            d90 = crossing(increasing(curve, dict.fromkeys(curve, 1)), 0.9 * direct)
            found.setdefault((shape["hidden"], shape["depth"]), {})[seed] = d90
    for trait, shapes, steps in (
        ("doubling of the width", [(50, 1), (100, 1), (200, 1), (400, 1)], range(4)),
        ("layer more", [(200, 1), (200, 2), (200, 3)], range(3)),
    ):
        yield f"d_int90 rises with each {trait}", of_differences([
            _slope([(float(step), found[shape][seed]) for step, shape in zip(steps, shapes, strict=True)])
            for seed in range(3)
        ])  # fmt: skip


def _small_networks(folder: Path) -> Iterator[Finding]:
    for name, dataset in (("f8", "MNIST"), ("f9", "CIFAR-10")):
        leads = small_leads(name, folder)
        for low, high in SIZES:
            here = [[lead for D, lead in one if low <= D < high] for one in leads.values()]
            for which, of in (("median", median), ("best", max)):
                yield (
                    f"the {which} small network above the projected LeNet, {dataset}, {low:,} to {high:,} weights",
                    of_differences([of(one) for one in here]),
                )


def _starts(folder: Path) -> Iterator[Finding]:
    """Fine-tuning from a network of digits, sure of its answers or cooled, beside a random start."""
    at: dict[tuple[str, str], dict[int, list[Row]]] = {}
    for name in ("finetune", "finetune_control"):
        for (task, options, size), rows in at_best_rate(name, folder).items():
            at.setdefault((task, json.loads(options)["start"]), {})[size] = rows
    for start, words in (("digits", "a network of digits"), ("digits_cooled", "a cooled network of digits")):
        for tasks, label in START_TASKS.items():
            for d in FINE_TUNING:
                sides = [[at.get((task, one), {}).get(d or FULL, []) for task in tasks] for one in (start, "random")]
                if all(map(all, sides)):
                    gaps = [_by_seed(one, other, "test_accuracy") for one, other in zip(*sides, strict=True)]
                    means = [fmean(gap[seed] for gap in gaps) for seed in sorted(set.intersection(*map(set, gaps)))]
                    where = f"d = {d:,}" if d else "all weights"
                    yield f"{words} above a random start, {label}, {where}", of_differences(means)


def large_network(folder: Path = DATA / "results") -> Iterator[Finding]:
    """What the runs of EfficientNet say, as far as both sides have two seeds or more."""
    points: dict[tuple[str, int | None], list[Row]] = {}
    for (_, options, d), rows in at_best_rate("finetune_network", folder).items():
        points[options, d if d != LARGE else None] = rows
    for claim, *sides in LARGE_CLAIMS:
        one, other = (points.get((json.dumps(options, sort_keys=True), size), []) for options, size in sides)
        if len(_by_seed(one, other, "test_accuracy")) > 1:
            yield f"{claim}, photographs", compare(one, other, quantity="test_accuracy")


def _adapters(folder: Path) -> Iterator[Finding]:
    kinds: dict[tuple[str, int], list[Row]] = {}
    for (_, options, d), rows in at_best_rate("finetune_adapters", folder).items():
        kind = json.loads(options).get("adapter", {"kind": "one_hot"})["kind"]
        kinds["unilora" if kind == "lora" and rows[0]["projection"] == "one_hot" else kind, d] = rows
    if kinds:
        for claim, one, other in (
            ("LoRA-XS above one_hot, 200 numbers", ("lora_xs", 200), ("one_hot", 200)),
            ("Uni-LoRA above one_hot, 200 numbers", ("unilora", 200), ("one_hot", 200)),
            ("one_hot above Uni-LoRA, 1,194 numbers", ("one_hot", 1194), ("unilora", 1194)),
            ("Uni-LoRA above LoRA of rank 1, 1,194 numbers", ("unilora", 1194), ("lora", 1194)),
        ):
            yield f"{claim}, turned digits", compare(kinds[one], kinds[other], quantity="test_accuracy")


def small_leads(experiment: str, folder: Path = DATA / "results") -> dict[int, list[tuple[int, float]]]:
    """By seed: D of each small network of "f8" or "f9", and its accuracy above that of the projected LeNet at d = D.

    The projected LeNet is read between two recorded d, of the same seed, on a line over log d.
    """
    rows = results(experiment, folder)
    projected = [*results({"f8": "f3", "f9": "f4"}[experiment], folder), *rows]
    found: dict[int, list[tuple[int, float]]] = {}
    for seed in sorted({row["seed"] for row in rows}):
        curve = sorted({row["d"]: row["val_accuracy"] for row in projected if _is_projected(row, seed)}.items())
        small = [row for row in rows if row["projection"] == "none" and row["seed"] == seed]
        found[seed] = [(row["D"], row["val_accuracy"] - _at(curve, row["D"])) for row in small]
    return found


def _is_projected(row: Row, seed: int) -> bool:
    return bool(row["projection"] != "none" and row["seed"] == seed)


def _at(curve: list[tuple[int, float]], size: int) -> float:
    i = min(max(sum(d <= size for d, _ in curve) - 1, 0), len(curve) - 2)
    (d, below), (next_d, above) = curve[i : i + 2]
    return below + (above - below) * math.log(size / d) / math.log(next_d / d)


def _by_seed(a: list[Row], b: list[Row], quantity: str = "val_accuracy") -> dict[int, float]:
    other = {row["seed"]: row[quantity] for row in b}
    return {row["seed"]: row[quantity] - other[row["seed"]] for row in a if row["seed"] in other}


def _slope(points: list[tuple[float, float]]) -> float:
    x, y = fmean(x for x, _ in points), fmean(y for _, y in points)
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)


def standing(folder: Path = DATA / "results") -> str:
    """By experiment, as a table in Markdown: runs, those of code that is in no commit, and what is still to run."""
    lines = ["| experiment | runs | of changed code | replaced | still to run |", "| :-- | --: | --: | --: | :-- |"]
    for name in EXPERIMENTS:
        rows = results(name, folder)
        dirty = sum(row["commit"].endswith("-dirty") for row in rows)
        known = {Spec(**record["spec"]).key for record in curves(name, folder)}
        try:
            missing = sum(spec.key not in known for spec in experiment(name, get_profile("full"), folder))
        except ValueError:
            left = "waits for learning rates"
        else:
            left = f"{missing}" if missing else "nothing"
        lines.append(f"| `{name}` | {len(rows)} | {dirty} | {len(results(name, folder / 'replaced'))} | {left} |")
    return "\n".join(lines) + "\n"


def rates(folder: Path = DATA / "results") -> str:
    """The rate chosen at each size, in bold, and the mean loss of every rate tried, as a table in Markdown."""
    lines = ["| data | network | d | rates and their losses |", "| :-- | :-- | --: | :-- |"]
    tasks = {task_of(setting) for name in ("lr", "lr_small") for setting in EXPERIMENTS[name](name, folder)}
    for dataset, model, projected in sorted(tasks):
        for d, losses in sorted(rates_tried(dataset, model, projected, folder).items()):
            chosen = best_rate(losses)
            said = (
                f"**{lr:g}: {losses[lr]:.4f}**" if lr == chosen else f"{lr:g}: {losses[lr]:.4f}"
                for lr in sorted(losses)
            )
            lines.append(f"| {dataset} | `{model}` | {d:,}{'' if projected else ' (all)'} | {', '.join(said)} |")
    return "\n".join(lines) + "\n"


def parts(text: str) -> dict[str, str]:
    """What stands between the marks of each part in the text of ``data/README.md``."""
    return {name: text.split(f"<!-- {name} -->\n")[1].split(f"<!-- end of {name} -->\n")[0] for name in PARTS}


def write(readme: Path = DATA / "README.md") -> None:
    """Put the tables between their marks in ``data/README.md``."""
    text = readme.read_text(encoding="utf-8")
    for name, old in parts(text).items():
        start = f"<!-- {name} -->\n"
        text = text.replace(start + old, start + PARTS[name]())
    write_text(readme, text)


PARTS: dict[str, Callable[[], str]] = {"findings": lambda: table(findings()), "standing": standing, "rates": rates}

if __name__ == "__main__":
    write()
