"""The scorecard: the right runs beside each published figure, and the verdict by its rule."""

import json
import shutil

import numpy as np
import pytest

from subspace_lib.intrinsic import crossing, intrinsic_dimension
from subspace_lib.study.records import COLUMNS, DATA, published
from subspace_lib.study.scorecard import (
    by_figure,
    in_words,
    intrinsic_dimensions,
    pooling_effect,
    restated_differences,
    scorecard,
    studys_dimension,
    why,
)

RUN = dict.fromkeys(COLUMNS, "") | {"dataset": "mnist", "model": "lenet", "projection": "hadamard", "lr": 0.03}


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(DATA / "published", tmp_path / "published")
    (tmp_path / "results").mkdir()
    return tmp_path


def put(folder, experiment, runs):
    def cell(value):
        return '"' + str(value).replace('"', '""') + '"'

    rows = [RUN | {"seed": i} | run for i, run in enumerate(runs)]
    lines = [",".join(COLUMNS)] + [",".join(cell(row[column]) for column in COLUMNS) for row in rows]
    (folder / "results" / f"{experiment}.csv").write_text("\n".join(lines) + "\n")


def test_every_published_accuracy_of_the_study_has_a_row(folder):
    rows = scorecard(folder)
    assert len(rows) == len(published(source="minut2023", quantity="val_accuracy"))
    assert {row["verdict"] for row in rows} == {"not run"}


@pytest.mark.parametrize(
    ("ours", "verdict"), [((0.92, 0.94), "replicates"), ((0.94, 0.96), "better"), ((0.9, 0.88), "lower")]
)
def test_the_verdict_follows_the_mean_and_the_tolerance(folder, ours, verdict):
    runs = [{"d": 350, "val_accuracy": value} for value in ours]
    put(folder, "f3", [*runs, {"d": 450, "val_accuracy": 0.1}, {"d": 350, "projection": "none", "val_accuracy": 0.1}])
    [row] = [row for row in scorecard(folder) if row["figure"] == "fig3" and row["d"] == 350]
    assert (row["published"], row["seeds"], row["verdict"]) == (0.9284, 2, verdict)
    assert row["ours"] == pytest.approx(sum(ours) / 2)
    assert (row["lowest"], row["highest"]) == (min(ours), max(ours))
    assert row["difference"] == pytest.approx(sum(ours) / 2 - 0.9284)
    assert row["below"] == sum(value < 0.9284 for value in ours) / 2


def test_splits_variants_and_small_networks_find_their_runs(folder):
    split = json.dumps({"split": [12, 25, 75, 25, 13]})
    put(folder, "split", [{"d": 150, "val_accuracy": 0.86, "options": split}, {"d": 150, "val_accuracy": 0.1}])
    study = {"d": 5050, "dataset": "cifar10", "model": "mlp", "projection": "study_sparse"}
    put(folder, "f5", [study | {"lr": lr, "val_accuracy": lr} for lr in (0.001, 0.03)])
    small = {"model": "small_lenet", "projection": "none"}
    put(folder, "f8", [small | {"D": D, "val_accuracy": D / 1000} for D in (250, 261, 390, 900)])
    rows = {(row["figure"], row["projection"], row["d"], row["note"]): row["ours"] for row in scorecard(folder)}
    assert rows["fig3", "gaussian, per layer", 150, "split 12+25+75+25+13"] == 0.86
    assert rows["fig3", "gaussian, per layer", 150, "split 65+25+25+25+10"] is None
    for layout in ("sparse", "sparse_coo", "sparse_csr", "sparse_csc"):
        assert next(ours for key, ours in rows.items() if key[:2] == ("fig5-6", layout)) == 0.001
    assert rows["fig8", "none", 261, ""] == pytest.approx((0.250 + 0.261) / 2)


def test_a_difference_is_explained_by_recorded_runs_or_not_at_all(folder):
    put(
        folder,
        "f1",
        [{"model": "mlp", "d": 300, "val_accuracy": 0.83}, {"model": "mlp", "d": 500, "val_accuracy": 0.87}],
    )
    put(folder, "f3", [{"d": 125, "val_accuracy": 0.81}])

    def sentences():
        return {(row["figure"], row["d"]): why(row, folder) for row in scorecard(folder)}

    assert sentences()["fig1", 300] == sentences()["fig3", 125] == ""  # nothing is recorded that would tell
    average = {"d": 125, "options": json.dumps({"split": [25] * 5}), "model_options": '{"pooling": "average"}'}
    other = average | {"options": json.dumps({"split": [50, 25, 25, 25]})}
    runs = [average | {"seed": i, "val_accuracy": a} for i, a in enumerate((0.84, 0.86))]
    runs.append(other | {"val_accuracy": 0.1})
    put(folder, "restated", runs)
    assert sentences()["fig3", 125] == ""  # nothing to compare with
    maximum = average | {"model_options": "{}", "val_accuracy": 0.81}
    unpaired = maximum | {"seed": 2, "val_accuracy": 0.7}  # compared are the seeds that both have
    put(folder, "restated", [*runs, *(maximum | {"seed": i} for i in range(2)), unpaired])
    assert sentences()["fig1", 500] == ""  # replicates
    assert sentences()["fig1", 300] == ""  # better, and no runs of ours would say why
    found = sentences()["fig3", 125]
    assert found.endswith("0.810 with max pooling, and 0.850 with average pooling (2 seeds)")


def test_directions_are_counted_by_figure_and_shared_runs_once(folder):
    points = {125: 0.80, 250: 0.90, 350: 0.92, 450: 0.99}  # published: .8504, .9022, .9284, .9447
    put(folder, "f3", [{"d": d, "val_accuracy": value, "seed": s} for d, value in points.items() for s in (0, 1)])
    sparse = {"d": 5050, "dataset": "cifar10", "model": "mlp", "projection": "study_sparse", "lr": 0.001}
    put(folder, "f5", [sparse | {"val_accuracy": 0.4}])
    rows = scorecard(folder)
    found = {row["figure"]: row for row in by_figure(rows)}
    assert list(found) == ["fig3", "fig5-6"]
    differences = [points[row["d"]] - row["published"] for row in rows if row["figure"] == "fig3" and row["seeds"]]
    fig3 = found["fig3"]
    assert (fig3["points"], fig3["sets of runs"], fig3["above"], fig3["under"]) == (4, 4, 1, 3)
    assert (fig3["replicates"], fig3["better"], fig3["lower"], fig3["sign test"]) == (2, 1, 1, 0.625)
    margin = 3.1824463 * np.std(differences, ddof=1) / 2
    assert fig3["mean difference"] == pytest.approx(np.mean(differences))
    assert (fig3["low"], fig3["high"]) == pytest.approx((np.mean(differences) - margin, np.mean(differences) + margin))
    assert (found["fig5-6"]["points"], found["fig5-6"]["sets of runs"]) == (4, 1)


def test_the_restated_study_is_compared_split_by_split(folder):
    def runs(pooling, *accuracies):
        at = {"d": 125, "options": json.dumps({"split": [25] * 5}), "model_options": pooling}
        return [at | {"seed": seed, "val_accuracy": value} for seed, value in enumerate(accuracies)]

    put(folder, "restated", [*runs('{"pooling": "average"}', 0.84, 0.86, 0.9), *runs("", 0.80, 0.83)])
    [row] = [row for row in published(source="minut2023", experiment="fig3") if row["d"] == 125]
    assert restated_differences(folder) == pytest.approx([(0.84 + 0.86 + 0.9) / 3 - row["value"]])
    effect = pooling_effect(folder)
    assert (effect.n, effect.mean) == (2, pytest.approx(0.035))


def test_a_dimension_that_is_not_reached_is_said_to_be_so():
    reached = intrinsic_dimension({10: [0.5] * 5, 1000: [0.9] * 5}, 0.8)
    assert in_words(reached).startswith(f"{reached.d90:,.0f} (interval ")
    never = intrinsic_dimension({10: [0.5] * 5, 1000: [0.6] * 5}, 0.8)
    assert in_words(never) == "not reached by 1,000 (interval more than 1,000 to more than 1,000)"


def test_one_sign_is_compared_with_random_signs(folder):
    study = {"d": 3500, "dataset": "cifar10", "lr": 0.001}

    def sentence():
        [row] = [row for row in scorecard(folder) if row["figure"] == "fig7" and row["projection"] == "sparse2"]
        return why(row, folder)

    put(folder, "f7", [study | {"projection": "study_sparse2", "val_accuracy": 0.1}])
    assert sentence() == ""
    signed = [study | {"projection": "study_sparse2full", "val_accuracy": a} for a in (0.46, 0.48)]
    one_sign = [study | {"projection": "study_sparse2", "val_accuracy": a} for a in (0.1, 0.4)]
    put(folder, "f7", [*one_sign, *signed])
    assert sentence() == "entries of one sign: ours end at 0.100 to 0.400; with random signs they reach 0.470"


def test_two_runs_of_the_study_are_named_where_it_ran_one_p_twice(folder):
    run = {"d": 3500, "dataset": "cifar10", "lr": 0.001, "projection": "study_sparse", "val_accuracy": 0.44}
    put(folder, "f7", [run])
    sentences = {row["figure"]: why(row, folder) for row in scorecard(folder) if row["seeds"]}
    assert sentences["fig7"] == ""
    assert "its other run (fig7) reached 0.427; ours reach 0.440" in sentences["projection types"]


def test_dimensions_pair_seeds_and_know_both_baselines(folder):
    points = {100: 0.8, 200: 0.85, 400: 0.95}
    runs = [
        {"seed": seed, "d": d, "val_accuracy": value + 0.01 * seed} for d, value in points.items() for seed in (2, 0, 1)
    ]
    put(folder, "f3", [*runs, *({"seed": s, "d": 61706, "projection": "none", "val_accuracy": 0.98} for s in range(3))])
    found = intrinsic_dimensions(folder)
    assert list(found) == ["f3"]
    means = {d: value + 0.01 for d, value in points.items()}
    assert found["f3"]["own"].d90 == pytest.approx(crossing(means, 0.9 * 0.98))
    assert found["f3"]["fixed"].d90 == pytest.approx(crossing(means, 0.9))
    assert found["f3"]["own"].high == pytest.approx(crossing(points, 0.9 * 0.98))
    assert found["f3"]["own"].kind == "range"


def test_the_studys_own_curve_is_read_where_it_crosses():
    assert 150 < studys_dimension("f3") < 250
    assert 3500 < studys_dimension("f4") < 6000
