"""Ours beside the published figures: what replicated, and to which side the rest differs."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from subspace_lib.intrinsic import Estimate, crossing, intrinsic_dimension
from subspace_lib.study.claims import Comparison, compare, of_differences, sign_test
from subspace_lib.study.experiments import STUDY_RATE, TASKS
from subspace_lib.study.records import DATA, accuracy_over_d, published, results

TOLERANCE = {"mnist": 0.02, "cifar10": 0.03}
"""How far the mean of our seeds may lie from a published accuracy to replicate it: a choice, made once."""

RULE_DATE = "2026-11-24T09:50:49+00:00"
"""When the rule was committed."""

SAME_SIZE = 1.15
"""Small networks are compared with those of ours whose D differs by at most this factor."""

FIXED_BASELINE = {"mnist": 1.0, "cifar10": 0.5}
"""The fixed baselines of Li et al. (2018)."""

Row = dict[str, Any]


def scorecard(folder: Path = DATA) -> list[Row]:
    """Every accuracy that the study published, beside ours.

    A figure **replicates** if the mean of our seeds lies within ``TOLERANCE`` of it, is **better** if ours lies
    above that, **lower** if below, and **not run** where there is no table.

    Returns
    -------
    list of dict
        ``figure``, ``dataset``, ``model``, ``projection``, ``d``, ``note``, ``published``, ``ours`` (mean), ``lowest``,
        ``highest``, ``seeds`` (how many runs), ``below`` (the share of them that lie below the published one), ``runs``
        (their names: rows that rest on the same runs have the same), ``difference``, ``verdict``.
    """
    rows = published(folder / "published", source="minut2023", quantity="val_accuracy")
    return [_compare(row, _ours(row, folder / "results")) for row in rows]


def by_figure(rows: Sequence[Row]) -> list[Row]:
    """For each figure of ``rows`` of ``scorecard``, in which direction ours differ.

    Returns
    -------
    list of dict
        ``figure``, ``points``, ``sets of runs`` (distinct ones), ``replicates``, ``better``, ``lower``, ``above`` and
        ``under`` (points at which ours are higher, lower, whatever the tolerance), ``sign test`` (its p), ``mean
        difference``, and ``low`` and ``high``, its 95% interval over the points, None of a single one.
    """
    found = []
    for figure in sorted({row["figure"] for row in rows if row["seeds"]}):
        here = [row for row in rows if row["figure"] == figure and row["seeds"]]
        differences = [row["difference"] for row in here]
        interval = of_differences(differences) if len(here) > 1 else None
        verdicts = Counter(row["verdict"] for row in here)
        found.append(
            {
                "figure": figure,
                "points": len(here),
                "sets of runs": len({row["runs"] for row in here}),
                **{verdict: verdicts[verdict] for verdict in ("replicates", "better", "lower")},
                "above": sum(each > 0 for each in differences),
                "under": sum(each < 0 for each in differences),
                "sign test": sign_test(differences),
                "mean difference": fmean(differences),
                "low": interval and interval.low,
                "high": interval and interval.high,
            }
        )
    return found


def restated_differences(folder: Path = DATA) -> list[float]:
    """Ours minus published at the splits of figure 3, with the study's columns, rate and average pooling, and z = 0."""
    runs = [run for run in results("restated", folder / "results") if "average" in run["model_options"]]
    differences = []
    for row in published(folder / "published", source="minut2023", experiment="fig3", quantity="val_accuracy"):
        ours = [run["val_accuracy"] for run in runs if (run["d"], _split(run)) == (row["d"], _published_split(row))]
        if ours:
            differences.append(fmean(ours) - row["value"])
    return differences


def pooling_effect(folder: Path = DATA) -> Comparison:
    """Average pooling against max pooling, over all pairs of those splits and seeds."""
    runs = results("restated", folder / "results")
    average, maximum = (
        [run for run in runs if ("average" in run["model_options"]) == averaging] for averaging in (True, False)
    )
    return compare(average, maximum, by=("d", "options", "seed"))


def in_words(estimate: Estimate) -> str:
    """An intrinsic dimension with its ends, each as "not reached by" the largest d tried where it is none."""
    largest = f"{max(estimate.curve):,}"
    low, high = (
        f"{end:,.0f}" if math.isfinite(end) else f"more than {largest}" for end in (estimate.low, estimate.high)
    )
    d90 = f"{estimate.d90:,.0f}" if math.isfinite(estimate.d90) else f"not reached by {largest}"
    return f"{d90} ({estimate.kind} {low} to {high})"


def intrinsic_dimensions(folder: Path = DATA) -> dict[str, dict[str, Estimate]]:
    """d_int90 of the four tasks, by experiment: of the network's ``own`` baseline, and of a ``fixed`` one."""
    found: dict[str, dict[str, Estimate]] = {}
    for name, (dataset, _) in TASKS.items():
        curve, own = accuracy_over_d(name, folder / "results")
        if curve and own:
            fixed = intrinsic_dimension(curve, FIXED_BASELINE[dataset])
            found[name] = {"own": intrinsic_dimension(curve, own), "fixed": fixed}
    return found


def studys_dimension(name: str, folder: Path = DATA) -> float:
    """Where the study's own published curve reaches 90% of its own direct training; it published no such number."""
    curve: dict[int, list[float]] = {}
    own = []
    figure = name.replace("f", "fig")
    for row in published(folder / "published", source="minut2023", experiment=figure, quantity="val_accuracy"):
        if row["projection"] == "none":
            own.append(row["value"])
        else:
            curve.setdefault(int(row["d"]), []).append(row["value"])
    return crossing({d: fmean(values) for d, values in curve.items()}, 0.9 * fmean(own))


def why(row: Row, folder: Path = DATA) -> str:
    """A sentence on a figure that does not replicate, with the recorded numbers that it rests on.

    Parameters
    ----------
    row : dict
        One of ``scorecard``.
    folder : Path
        Where ``results`` are.

    Returns
    -------
    str
        Empty where there is nothing to explain, or our runs do not tell.
    """
    if row["verdict"] in ("replicates", "not run"):
        return ""
    if row["verdict"] == "lower" and row["projection"] == "sparse2":
        signed = _ours(row | {"experiment": row["figure"], "projection": "sparse2full"}, folder / "results")
        if signed:
            return (
                f"entries of one sign: ours end at {row['lowest']:.3f} to {row['highest']:.3f}; with random signs they "
                f"reach {fmean(run['val_accuracy'] for run in signed):.3f}"
            )
    if row["figure"] == "projection types":
        figures = published(folder / "published", source="minut2023", experiment="fig7", quantity="val_accuracy")
        again = [other["value"] for other in figures if other["projection"] == _without_layout(row["projection"])]
        if again:
            return (
                f"the study ran this P twice, and its other run (fig7) reached {again[0]:.3f}; "
                f"ours reach {row['lowest']:.3f} to {row['highest']:.3f}"
            )
    if row["verdict"] == "lower" and row["figure"] == "fig3":
        runs = [run for run in results("restated", folder / "results") if _split(run) == _published_split(row)]
        maximum, average = (
            {run["seed"]: run["val_accuracy"] for run in runs if ("average" in run["model_options"]) == averaging}
            for averaging in (False, True)
        )
        if common := maximum.keys() & average.keys():
            pooled = [fmean(values[seed] for seed in common) for values in (maximum, average)]
            seeds = f"{len(common)} seed{'s' if len(common) > 1 else ''}"
            return (
                f"with the study's columns and learning rate ours reach {pooled[0]:.3f} with max pooling, and "
                f"{pooled[1]:.3f} with average pooling ({seeds})"
            )
    return ""


def _ours(row: Row, folder: Path) -> list[Row]:
    """Our runs that answer one published figure."""
    figure, projection = row["experiment"], row["projection"]
    if figure == "fig3" and row["d"] == 150:
        return [run for run in results("split", folder) if _split(run) == _published_split(row)]
    if figure in ("fig1", "fig2", "fig3", "fig4"):
        runs = [run for run in results(figure.replace("fig", "f"), folder) if run["d"] == row["d"]]
        return [run for run in runs if (run["projection"] == "none") == (projection == "none")]
    if figure in ("fig8", "fig9"):
        small = [run for run in results(figure.replace("fig", "f"), folder) if run["model"] == "small_lenet"]
        return [run for run in small if 1 / SAME_SIZE <= run["D"] / row["D"] <= SAME_SIZE]
    name = _without_layout(projection)
    if figure == "fig5-6":
        same = {"gaussian": "hadamard"}
        runs = results("f5", folder)
    else:
        same = {"gaussian": "dense", "ortho": "orthogonal"}
        runs = [run for run in results("f7", folder) if run["model"] == "lenet"]
    wanted = same.get(name, f"study_{name}")
    return [run for run in runs if run["projection"] == wanted and (name in same or run["lr"] == STUDY_RATE)]


def _without_layout(projection: str) -> str:
    """Layouts of one P are one projection: sparse_coo, sparse_csr, sparse (coo)."""
    return projection.replace(" (coo)", "").removesuffix("_coo").removesuffix("_csc").removesuffix("_csr")


def _published_split(row: Row) -> str:
    return str(row["note"]).removeprefix("split ")


def _split(run: Row) -> str:
    options = json.loads(run["options"]) if run["options"] else {}
    return "+".join(map(str, options.get("split", [])))


def _compare(row: Row, runs: list[Row]) -> Row:
    about = {key: row[key] for key in ("dataset", "model", "projection", "d", "note")} | {"figure": row["experiment"]}
    ours = [run["val_accuracy"] for run in runs]
    compared = about | {"published": row["value"], "seeds": len(ours), "runs": tuple(sorted(map(_name, runs)))}
    if not ours:
        nothing = dict.fromkeys(("ours", "lowest", "highest", "below", "difference"))
        return compared | nothing | {"verdict": "not run"}
    difference = fmean(ours) - row["value"]
    tolerance = TOLERANCE[row["dataset"]]
    verdict = "replicates" if abs(difference) <= tolerance else "better" if difference > 0 else "lower"
    below = sum(one < row["value"] for one in ours) / len(ours)
    numbers = {"ours": fmean(ours), "lowest": min(ours), "highest": max(ours), "below": below}
    return compared | numbers | {"difference": difference, "verdict": verdict}


def _name(run: Row) -> str:
    what = ("experiment", "model", "projection", "d", "options", "model_options", "lr", "seed")
    return " ".join(f"{column}={run[column]}" for column in what)
