"""The book's main numbers again, from data/results/*.csv by other code: csv and numpy, none of the study's."""

import csv
import functools
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

DATA = Path(__file__).resolve().parents[1] / "data"
T = {3: 4.302653, 7: 2.446912, 14: 2.160369, 21: 2.085963}
"""Student's t of 95%, for so many pairs, from a printed table."""


@functools.cache
def read(name, folder="results"):
    with (DATA / folder / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def accuracy(rows, **where):
    """Accuracy by seed of the only setting that fits."""
    fitting = [row for row in rows if all(row[column] == str(value) for column, value in where.items())]
    found = {int(row["seed"]): float(row["val_accuracy"]) for row in fitting}
    assert len(found) == len(fitting) > 0
    return np.array([found[seed] for seed in sorted(found)])


def interval(differences):
    margin = T[len(differences)] * np.std(differences, ddof=1) / np.sqrt(len(differences))
    return np.mean(differences), np.mean(differences) - margin, np.mean(differences) + margin


def isotonic(means, weights):
    """The increasing fit by its min-max formula: the largest over starts of the smallest over ends of block means."""
    means = np.asarray(means, dtype=float)
    total, weight = (np.cumsum(np.insert(x, 0, 0, axis=-1), axis=-1) for x in (means * weights, np.asarray(weights)))
    n = len(weights)
    fit = np.full_like(means, -np.inf)
    for i in range(n):
        for a in range(i + 1):
            blocks = [(total[..., b + 1] - total[..., a]) / (weight[b + 1] - weight[a]) for b in range(i, n)]
            fit[..., i] = np.maximum(fit[..., i], np.min(blocks, axis=0))
    return fit


def first_crossing(d, fit, level):
    if fit[0] >= level:
        return d[0]
    above = next((i for i, value in enumerate(fit) if value >= level), None)
    if above is None:
        return np.inf
    return np.exp(np.interp(level, fit[above - 1 : above + 1], np.log(d[above - 1 : above + 1])))


def d90(rows, baseline):
    """The estimate and its interval, with the same resamples of seeds as the book's."""
    curve = {}
    for row in sorted(rows, key=lambda row: (int(row["d"]), int(row["seed"]))):
        if row["projection"] != "none":
            curve.setdefault(int(row["d"]), []).append(float(row["val_accuracy"]))
    d, values = list(curve), list(curve.values())
    own = accuracy(rows, projection="none") if baseline is None else np.array([baseline])
    weights = [len(one) for one in values]
    found = first_crossing(d, isotonic([np.mean(one) for one in values], weights), 0.9 * own.mean())
    near = {max(k for k in d if k <= found), min([k for k in d if k >= found], default=d[-1])}
    around = [len(curve[at]) for at in near]
    seeds = min([*around, *([len(own)] if len(own) > 1 else [])])
    assert seeds == 5
    draws = np.random.default_rng(0).integers(5, size=(2000, 5))
    fits = isotonic(np.stack([np.array(one)[draws % len(one)].mean(1) for one in values], axis=1), weights)
    levels = 0.9 * own[draws % len(own)].mean(1)
    ends = [first_crossing(d, fit, level) for fit, level in zip(fits, levels, strict=True)]
    low, high = np.sort(ends)[[49, 1949]]
    return found, low, high


@pytest.fixture(scope="module")
def dimensions():
    from subspace_lib.study.scorecard import intrinsic_dimensions

    return intrinsic_dimensions()


@pytest.mark.parametrize("name", ["f1", "f2", "f3", "f4"])
def test_intrinsic_dimensions(dimensions, name):
    theirs = dimensions[name]
    for kind, baseline in (("own", None), ("fixed", 1.0 if name in ("f1", "f3") else 0.5)):
        one = theirs[kind]
        assert (one.d90, one.low, one.high) == pytest.approx(d90(read(name), baseline), rel=1e-9)


def ours_beside(row):
    """Accuracies of ours beside one published row, by rules of this file's own."""
    figure, projection = row["experiment"], row["projection"]
    kind = projection.split(" ")[0].removesuffix("_coo").removesuffix("_csr").removesuffix("_csc")
    if figure in ("fig8", "fig9"):
        small = [one for one in read("f" + figure[3]) if one["model"] == "small_lenet"]
        near = [one for one in small if abs(np.log(int(one["D"]) / float(row["D"]))) <= np.log(1.15)]
    elif figure == "fig3" and row["d"] == "150":
        split = [int(part) for part in row["note"][len("split ") :].split("+")]
        near = [one for one in read("split") if one["options"] and json.loads(one["options"])["split"] == split]
    elif figure in ("fig1", "fig2", "fig3", "fig4"):
        rows = read("f" + figure[3])
        near = [r for r in rows if r["projection"] == "none"] if projection == "none" else [
            r for r in rows if r["d"] == row["d"] and r["projection"] != "none"
        ]  # fmt: skip
    else:
        table = "f5" if figure == "fig5-6" else "f7"
        ours = {"gaussian": "hadamard" if table == "f5" else "dense"}
        ours |= {} if table == "f5" else {"ortho": "orthogonal"}
        near = [r for r in read(table) if r["projection"] == ours.get(kind.rstrip(","), f"study_{kind}")]
        near = [r for r in near if r["model"] == ("mlp" if table == "f5" else "lenet")]
        near = [r for r in near if kind.rstrip(",") in ours or float(r["lr"]) == 0.001]
    return [float(one["val_accuracy"]) for one in near]


def test_counts_and_directions_of_the_scorecard():
    from subspace_lib.study.scorecard import by_figure, scorecard

    verdicts, sides = {}, {}
    for row in read("published", "published"):
        if (row["source"], row["quantity"]) != ("minut2023", "val_accuracy"):
            continue
        ours = ours_beside(row)
        difference = np.mean(ours) - float(row["value"])
        far = abs(difference) > {"mnist": 0.02, "cifar10": 0.03}[row["dataset"]]
        verdict = ("better" if difference > 0 else "lower") if far else "replicates"
        verdicts[verdict] = verdicts.get(verdict, 0) + 1
        sides.setdefault(row["experiment"], []).append(difference)
    rows = scorecard()
    assert verdicts == {name: sum(row["verdict"] == name for row in rows) for name in verdicts}
    assert sum(verdicts.values()) == len(rows) == 78
    for row in by_figure(rows):
        mine = sides[row["figure"]]
        assert row["mean difference"] == pytest.approx(np.mean(mine))
        assert (row["under"], row["points"]) == (sum(np.array(mine) < 0), len(mine))


@pytest.fixture(scope="module")
def found():
    from subspace_lib.study.findings import findings

    return {claim: (one.mean, one.low, one.high) for claim, one in findings()}


CORNERS = ("study_sparse_original", "sparser_shared_unit", "sparser_independent_long", "sparser_independent_unit")


def rates_by_loss(rows):
    """Each corner's rate of the lowest mean validation loss."""
    losses = {}
    for row in rows:
        losses.setdefault(row["projection"], {}).setdefault(row["lr"], []).append(float(row["val_loss"]))
    return {name: min(at, key=lambda lr: np.mean(at[lr])) for name, at in losses.items()}


@pytest.mark.parametrize("which", ["lowest", "highest", "own"])
def test_rows_and_lengths_of_the_two_by_two(found, which):
    rows = read("f5_corners" if which == "own" else "f5")
    tried = sorted({row["lr"] for row in rows if row["projection"] in CORNERS}, key=float)
    rates = rates_by_loss(rows) if which == "own" else dict.fromkeys(CORNERS, tried[-(which == "highest")])
    shared_long, shared_short, long, short = (accuracy(rows, projection=p, lr=rates[p]) for p in CORNERS)
    expected = {
        "independent above shared rows": (long + short - shared_long - shared_short) / 2,
        "long above short columns, independent rows": long - short,
        "long above short columns, shared rows": shared_long - shared_short,
        "length gains more with independent rows": (long - short) - (shared_long - shared_short),
    }
    said = "each at its best rate" if which == "own" else f"rate {float(rates[CORNERS[0]]):g}"
    for claim, differences in expected.items():
        assert found[f"{claim}, {said}"] == pytest.approx(interval(differences), rel=1e-5)


def test_the_pooled_effect_of_pooling(found):
    pairs = {}
    for row in read("restated"):
        at = pairs.setdefault((row["d"], row["options"], row["seed"]), {})
        at[bool(row["model_options"])] = float(row["val_accuracy"])
    differences = [at[True] - at[False] for at in pairs.values() if len(at) == 2]
    assert found["average above max pooling, at the study's splits"] == pytest.approx(interval(differences), rel=1e-5)


def test_orthogonal_against_gaussian_columns(found):
    rows = read("f7")
    for name in ("orthogonal", "hadamard"):
        gain = accuracy(rows, model="lenet", projection=name) - accuracy(rows, model="lenet", projection="dense")
        claim = f"{name} above dense Gaussian columns, CIFAR-10 LeNet"
        assert found[claim] == pytest.approx(interval(gain), rel=1e-5)


def test_claims_that_have_runs_at_fitted_rates_take_the_best_that_is_no_edge():
    from subspace_lib.study.findings import at_inner_rate

    losses = {0.1: (0.5, 0.6), 0.3: (0.4, 0.6), 1.0: (0.3, None)}
    rows = [{"lr": lr, "val_loss": loss} for lr, each in losses.items() for loss in each]
    assert at_inner_rate(rows) == rows[2:4], "a run without a loss is the worst"
    assert at_inner_rate(rows[:4]) == at_inner_rate([]) == []


def losses_in_subspaces(name, folder):
    """Validation loss by point, rate and seed."""
    losses = {}
    for row in read(name, folder):
        if row["projection"] != "none":
            point = row["dataset"], row["model"], row["projection"], row["options"], row["model_options"], row["d"]
            losses.setdefault(point, {}).setdefault(row["lr"], {})[row["seed"]] = float(row["val_loss"] or "inf")
    return losses


@pytest.mark.parametrize("name", ["f1", "f2", "f3", "f4", "f7", "f8", "f9"])
def test_no_rate_that_was_given_up_is_the_better_one(name):
    """By more than 1%, over the seeds that both rates have: then a rate was taken from a size too far away."""
    now = losses_in_subspaces(name, "results")
    compared = 0
    for point, rates in losses_in_subspaces(name, "results/replaced").items():
        for before, after in itertools.product(rates.values(), now.get(point, {}).values()):
            common = before.keys() & after.keys()
            compared += len(common)
            better = np.mean([after[seed] for seed in common]) / np.mean([before[seed] for seed in common])
            assert better <= 1.01, (point, rates.keys(), now[point].keys())
    assert compared >= 3


def test_width_and_depth(found):
    shapes = {}
    for row in read("width_depth"):
        shape = json.loads(row["model_options"])
        one = shapes.setdefault((shape["hidden"], shape["depth"], row["seed"]), {})
        one["D" if row["projection"] == "none" else int(row["d"])] = float(row["val_accuracy"])
    at = {}
    for key, one in shapes.items():
        d = sorted(k for k in one if k != "D")
        at[key] = first_crossing(d, isotonic([one[k] for k in d], [1] * len(d)), 0.9 * one["D"])
    widths = [np.polyfit(range(4), [at[h, 1, s] for h in (50, 100, 200, 400)], 1)[0] for s in "012"]
    depths = [np.polyfit(range(3), [at[200, n, s] for n in (1, 2, 3)], 1)[0] for s in "012"]
    assert found["d_int90 rises with each doubling of the width"] == pytest.approx(interval(widths), rel=1e-5)
    assert found["d_int90 rises with each layer more"] == pytest.approx(interval(depths), rel=1e-5)


@pytest.mark.parametrize(("small", "own", "name"), [("f8", "f3", "MNIST"), ("f9", "f4", "CIFAR-10")])
def test_small_networks_against_projected_ones(found, small, own, name):
    leads = {}
    for seed in "012":
        rows = [row for row in read(own) + read(small) if row["seed"] == seed]
        curve = {int(row["d"]): float(row["val_accuracy"]) for row in rows if row["projection"] == "hadamard"}
        d = sorted(curve)
        for row in rows:
            if row["model"] == "small_lenet":
                size = int(row["D"])
                assert d[0] <= size <= d[-1]
                line = np.interp(np.log(size), np.log(d), [curve[k] for k in d])
                leads.setdefault(seed, []).append((size, float(row["val_accuracy"]) - line))
    for low, high in ((250, 500), (500, 1000), (1000, 2000), (2000, 3000), (3000, 6000)):
        for which, of in (("median", np.median), ("best", np.max)):
            claim = f"the {which} small network above the projected LeNet, {name}, {low:,} to {high:,} weights"
            gains = [of([lead for size, lead in leads[seed] if low <= size < high]) for seed in "012"]
            assert found[claim] == pytest.approx(interval(gains), rel=1e-5)


@pytest.mark.parametrize("start", ["digits", "digits_cooled"])
def test_starts_of_fine_tuning(found, start):
    words = {"digits": "a network of digits", "digits_cooled": "a cooled network of digits"}[start]
    labels = {
        "inverted digits": "mnist/inverted",
        "shifted labels": "mnist/shifted",
        "grey photographs": "cifar10/grey",
    }
    labels |= {"turned digits": "mnist/rotated_30"} if start == "digits" else {}
    for d, size in (("20", "d = 20"), ("200", "d = 200"), ("1000", "d = 1,000"), ("159010", "all weights")):
        gaps = {label: accuracies(task, start, d) - accuracies(task, "random", d) for label, task in labels.items()}
        both = "inverted digits and shifted labels together"
        gaps[both] = (gaps["inverted digits"] + gaps["shifted labels"]) / 2
        for label, gap in gaps.items():
            assert found[f"{words} above a random start, {label}, {size}"] == pytest.approx(interval(gap), abs=1e-6)


def test_order_that_chapter_11_tells(found):
    """Its sentences on the negative control, and on the cooled start, hold as long as these verdicts do."""
    sizes = ("d = 20", "d = 200", "d = 1,000", "d = 5,000", "all weights")

    def verdicts(start, label):
        said = [found[f"{start} above a random start, {label}, {size}"] for size in sizes]
        return ["ahead" if low > 0 else "behind" if high < 0 else "open" for _, low, high in said]

    both = "inverted digits and shifted labels together"
    sure, cooled = "a network of digits", "a cooled network of digits"
    assert verdicts(sure, "turned digits") == ["ahead"] * 5
    assert verdicts(sure, both) == ["behind"] * 2 + ["ahead"] * 3
    for one in ("inverted digits", "shifted labels"):
        assert verdicts(sure, one) == ["behind", "open", "open", "ahead", "ahead"]
        assert verdicts(cooled, one)[2:] == ["ahead"] * 3
    assert verdicts(sure, "grey photographs") == ["open"] + ["behind"] * 4
    assert verdicts(cooled, both) == ["open"] + ["ahead"] * 4
    assert verdicts(cooled, "grey photographs") == ["open"] * 5
    for task in ("mnist/inverted", "mnist/shifted"):
        for baselines in (("digits", "digits_cooled", "random"), ("random",) * 3):
            digits, cool, random = map(needed, [task] * 3, ("digits", "digits_cooled", "random"), baselines)
            assert (cool < np.minimum(digits, random)).all()
    random = needed("mnist/inverted", "random", "random")
    assert (needed("mnist/inverted", "digits", "digits") > random).all()
    assert (needed("mnist/inverted", "digits", "random") < random).all()
    assert (3 * needed("mnist/rotated_30", "digits", "digits") < needed("mnist/rotated_30", "random", "random")).all()


def needed(task, start, baseline):
    """Where the accuracies of each seed reach 90% of those of a baseline, with all weights; on a line over log d."""
    sizes = [d for d in ("20", "50", "200", "1000", "5000") if task == "mnist/rotated_30" or d != "50"]
    curve = np.array([accuracies(task, start, d) for d in sizes])
    level = 0.9 * accuracies(task, baseline, "159010")
    return np.array([first_crossing([int(d) for d in sizes], *pair) for pair in zip(curve.T, level, strict=True)])


def accuracies(task, start, d):
    """Accuracies of seeds 0 to 2 at the rate of the lowest loss of seed 0."""
    here = [
        row
        for row in read("finetune") + read("finetune_control")
        if (row["dataset"], row["model_options"], row["d"]) == (task, json.dumps({"start": start}), d)
    ]
    best = min((row for row in here if row["seed"] == "0"), key=lambda row: float(row["val_loss"] or "inf"))["lr"]
    of_seed = {row["seed"]: float(row["test_accuracy"]) for row in here if row["lr"] == best}
    return np.array([of_seed[seed] for seed in "012"])


def test_adapters_at_equal_numbers_trained(found):
    rows = read("finetune_adapters")
    other_seeds = {(row["model_options"], row["d"], row["lr"]) for row in rows if row["seed"] == "2"}

    def accuracies(d, projection, kind):
        """The one setting of three seeds, in their order."""
        fits = [
            row
            for row in rows
            if (row["d"], row["projection"]) == (str(d), projection)
            and json.loads(row["model_options"]).get("adapter", {}).get("kind") == kind
            and (row["model_options"], row["d"], row["lr"]) in other_seeds
        ]
        assert [row["seed"] for row in fits] == ["0", "1", "2"]
        return np.array([float(row["test_accuracy"]) for row in fits])

    here = {
        "LoRA-XS above one_hot, 200": accuracies(200, "none", "lora_xs") - accuracies(200, "one_hot", None),
        "Uni-LoRA above one_hot, 200": accuracies(200, "one_hot", "lora") - accuracies(200, "one_hot", None),
        "one_hot above Uni-LoRA, 1,194": accuracies(1194, "one_hot", None) - accuracies(1194, "one_hot", "lora"),
        "Uni-LoRA above LoRA of rank 1, 1,194": accuracies(1194, "one_hot", "lora") - accuracies(1194, "none", "lora"),
    }
    for claim, differences in here.items():
        mean, low, high = found[f"{claim} numbers, turned digits"]
        assert (mean, low, high) == pytest.approx(interval(differences), abs=1e-6)
        assert (low > 0) == (claim != "Uni-LoRA above one_hot, 200") and high > 0, "chapter 11 tells this order"


def test_the_readme_holds_both_tables_as_they_are_now():
    from subspace_lib.study.findings import PARTS, parts

    written = parts((DATA / "README.md").read_text(encoding="utf-8"))
    assert written == {name: make() for name, make in PARTS.items()}, "run python -m subspace_lib.study.findings"
