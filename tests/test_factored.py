"""Layers that compute with the factors of P: the same numbers as with the weights formed, in every use."""

import copy
import io
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from subspace_lib import (
    MLP,
    Data,
    LayerwiseProjection,
    SubspaceModel,
    evaluate,
    fit,
    fit_many,
    make_projection,
)
from subspace_lib.factored import FactoredConv2d, FactoredLinear
from subspace_lib.products import LinearOnProducts, Products
from subspace_lib.projections import KroneckerProjection
from subspace_lib.projections.testing import ProjectionContract


class TestKroneckerOfALayer(ProjectionContract):
    """The contract, of blocks in the shape of a layer: with its bias where D is odd."""

    family = KroneckerProjection

    def make(self, D, d, seed=0, dtype=torch.float32):
        m, n = next((m, D // m) for m in range(math.isqrt(max(D, 0)), 0, -1) if D % m == 0) if D > 0 else (1, 1)
        return KroneckerProjection(D, d, seed, shape=(m, n - D % 2 if n > 1 else n), dtype=dtype)

    def test_memory(self):
        """A and B are as long as the layer's sides."""
        P = KroneckerProjection(200 * 2353, 2500, shape=(200, 2352), ranks=(25, 100))
        assert P.nbytes == 4 * (200 * 25 + 2353 * 100)


def test_a_layer_of_3_by_2_by_hand():
    """Theta = Theta0 + z A B^T with A = (1, 2, -1), B = (3, -1), and 2 for the bias."""
    net = nn.Linear(2, 3)
    P = LayerwiseProjection.over(net, {"*": ("kronecker", (1, 1))})
    with torch.no_grad():
        P.blocks[0].A.copy_(torch.tensor([[1.0], [2.0], [-1.0]]))
        P.blocks[0].B.copy_(torch.tensor([[3.0], [-1.0], [2.0]]))
        net.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        net.bias.zero_()
        model = SubspaceModel(net, P).factored()
        model.z.fill_(0.5)
    # x Theta0^T = (4, 5, 9), x B = 3 * 4 - 5 + 2 = 9, times z 4.5, times A^T (4.5, 9, -4.5)
    assert model(torch.tensor([[4.0, 5.0]])).tolist() == [[8.5, 14.0, 4.5]]
    assert model.theta().tolist() == [2.5, -0.5, 3.0, 0.0, -0.5, 1.5, 1.0, 2.0, -1.0]


@pytest.mark.parametrize("bias", [False, True])
def test_rows_of_P_stand_as_the_layer_has_its_weights(bias):
    P = KroneckerProjection(7 * (4 + bias), 6, 3, shape=(7, 4), ranks=(3, 2))
    rows = torch.kron(P.A, P.B).view(7, 4 + bias, 6)
    expected = torch.cat([rows[:, :4].reshape(28, 6), rows[:, 4:].reshape(-1, 6)])
    torch.testing.assert_close(P.to_dense(), expected)
    torch.testing.assert_close(expected.norm(dim=0), torch.ones(6))


def test_P_of_a_layer_never_changes():
    """Recorded runs and saved networks depend on it."""
    z = torch.arange(1.0, 7.0)
    P = KroneckerProjection(35, 6, 3, shape=(7, 4), ranks=(3, 2))
    assert P(z)[[0, 27, 34]].tolist() == pytest.approx([-0.491966, -1.978769, 1.119557], abs=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"shape": (7, 5)}, ValueError, r"shape = \(7, 5\) has 35 weights, 42 with a bias, but D is 28"),
        ({"shape": (7, 4), "ranks": (8, 2)}, ValueError, r"ranks = \(8, 2\) must be at most \(7, 4\)"),
        ({"shape": (7, 4), "ranks": (2, 2)}, ValueError, r"their product at least d = 6"),
        ({"ranks": (3, 2)}, ValueError, "give its shape as well"),
        ({"shape": 28}, TypeError, "shape must be a pair of integers, got 28"),
        ({"shape": (7.0, 4)}, TypeError, r"shape\[0\] must be an integer, got 7.0"),
        ({"shape": (0, 4)}, ValueError, r"shape\[0\]"),
    ],
)
def test_shapes_that_cannot_be_are_refused(options, error, words):
    with pytest.raises(error, match=words):
        KroneckerProjection(28, 6, **options)


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        (
            {"*": ("kronecker", (2, 2))},
            r"'\*': ranks \(2, 2\) are those of one layer.*\(5, 4\), \(5,\), \(5,\), \(5,\)",
        ),
        ({"0.*": ("kronecker", (2, 2)), "1.*": ("kronecker", (2, 2))}, r"'1\.\*'.*the weights are \(5,\), \(5,\)"),
        ({"0.*": ("hadamard", (2, 2)), "1.*": ("identity", None)}, r"'0\.\*': d must be an integer"),
    ],
)
def test_over_refuses_ranks_of_what_is_no_layer(blocks, words):
    with pytest.raises((ValueError, TypeError), match=words):
        LayerwiseProjection.over(nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5)), blocks)


class Everything(nn.Module):
    """Convolutions of every kind, layers with and without bias, a frozen one, norms, and a layer used twice."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(4, 6, 3, padding=1, stride=2),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 6, (3, 2), groups=3, dilation=(1, 2), padding="same", padding_mode="circular", bias=False),
            nn.Tanh(),
            nn.Conv2d(6, 6, 3, groups=6, padding=(1, 0), padding_mode="reflect"),
        )
        self.twice = nn.Linear(6, 6, bias=False)
        self.fixed = nn.Linear(6, 6).requires_grad_(False)
        self.mixed = nn.Linear(6, 5)
        self.norm = nn.LayerNorm(5)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = self.body(x).mean((2, 3))
        return self.head(self.norm(self.mixed(self.twice(torch.tanh(self.twice(x)) + self.fixed(x)))))


def everything(dtype=torch.float64):
    torch.manual_seed(0)
    net = Everything().to(dtype)
    return SubspaceModel(net, over_everything(net))


def over_everything(net):
    blocks = {
        "body.0.*": ("kronecker", (4, 7)),
        "body.[15].*": ("one_hot", 20),
        "body.3.*": ("kronecker", (3, 3), 2.0),
        "twice.*": ("kronecker", (2, 6)),
        "mixed.weight": ("kronecker", (2, 5)),
        "mixed.bias": ("identity", None),
        "norm.*": ("identity", None),
        "head.*": ("kronecker", (3, 6)),
    }
    return LayerwiseProjection.over(net, blocks, seed=1)


def depthwise():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=4, padding=1, padding_mode="reflect"), nn.Flatten(), nn.Linear(288, 3)
    )
    net = net.double()
    P = 0.5 * LayerwiseProjection.over(net, {"0.*": ("kronecker", (8, 2)), "2.*": ("kronecker", (3, 9), 2.0)})
    return SubspaceModel(net, P)


def trained(model, steps=150):
    """A batch in every step, its own random numbers, Adam."""
    random, optimizer = torch.Generator().manual_seed(7), torch.optim.Adam([model.z], lr=1e-2)
    losses = []
    for _ in range(steps):
        x = torch.randn(8, 4, 6, 6, generator=random, dtype=torch.float64)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), torch.randint(0, 3, (8,), generator=random))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


@pytest.mark.parametrize("make", [everything, depthwise])
def test_the_same_way_for_150_steps(make):
    formed, factored = make(), make().factored()
    a, b = trained(formed), trained(factored)
    assert (a[0] - a[-1]).abs() > 0.05, "nothing was trained"
    torch.testing.assert_close(b, a, rtol=0, atol=1e-12)
    torch.testing.assert_close(factored.z, formed.z, rtol=0, atol=1e-12)
    states = formed.state_dict(), factored.state_dict()
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=1e-12)  # with the statistics of batch norm


def test_which_layers_are_factored_is_seen():
    model = everything().factored()
    kinds = {name: type(module) for name, module in model.net.named_modules()}
    factored = {name for name, kind in kinds.items() if kind in (FactoredLinear, FactoredConv2d)}
    assert factored == {"body.0", "body.3", "twice", "mixed", "head"}
    assert "FactoredConv2d(4, 6" in repr(model) and "FactoredLinear(in_features=5" in repr(model)
    assert list(model.parameters()) == [model.z]


def test_theta_is_formed_when_it_is_asked_for_only(monkeypatch):
    torch.manual_seed(0)
    net = MLP(30, hidden=8)
    P = LayerwiseProjection.over(net, {"1.*": ("kronecker", (2, 5)), "3.*": ("kronecker", (4, 4))})
    model = SubspaceModel(net, P).factored()

    def never(*_):
        raise AssertionError("a product with P was made")

    for one in ("_multiply", "_multiply_transposed"):
        monkeypatch.setattr(KroneckerProjection, one, never)
    model(torch.randn(4, 30)).sum().backward()
    assert model.z.grad.norm() > 0
    with pytest.raises(AssertionError, match="a product with P"):
        model.merge()


def test_it_is_the_model_in_every_other_use(tmp_path):
    """merge, theta, state, files, copies, evaluation mode: those of the model it was made of."""
    model = everything(torch.float32)
    factored, x = model.factored(), torch.randn(5, 4, 6, 6)
    with torch.no_grad():
        factored.z.normal_(std=0.1)
        model.z.copy_(factored.z)
    assert model.factoring is None and factored.factored().factoring is not None
    factored(x)  # moves the statistics of its batch norm
    assert factored.state_dict().keys() == model.state_dict().keys()
    model.load_state_dict(factored.state_dict())
    assert torch.equal(factored.theta(), model.theta())
    torch.testing.assert_close(factored(x), model(x))
    for one in (factored, model):
        one.eval()
    torch.testing.assert_close(factored(x), model(x), rtol=1e-5, atol=1e-6)
    merged = factored.merge()
    assert {type(one) for one in merged.modules()}.isdisjoint({FactoredLinear, FactoredConv2d})
    torch.testing.assert_close(merged(x), factored(x), rtol=1e-5, atol=1e-6)
    factored.save(tmp_path / "model.safetensors")
    loaded = SubspaceModel.load(tmp_path / "model.safetensors", Everything)
    assert torch.equal(loaded.factored().eval()(x), factored(x))
    other = copy.deepcopy(factored)
    with torch.no_grad():
        other.z.zero_()
    assert not torch.equal(other(x), factored(x))
    torch.testing.assert_close(factored(x), model(x), rtol=1e-5, atol=1e-6)
    assert factored.double()(x.double()).dtype == torch.float64


def test_it_is_compiled_pickled_and_mapped_like_the_model():
    model, x = small().factored(), pictures().train[0]
    with torch.no_grad():
        model.z.normal_()
    expected = model.eval()(x)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager")(x), expected)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), expected)
    zs = torch.stack([model.z.detach(), torch.zeros_like(model.z)])
    outputs = torch.vmap(lambda z: torch.func.functional_call(model, {"z": z}, (x,)))(zs)
    torch.testing.assert_close(outputs[0], expected)
    assert (outputs[1] - expected).abs().max() > 0.1


def test_autocast_is_that_of_the_layers():
    model = depthwise().float()
    with torch.no_grad():
        model.z.normal_(std=0.1)
    x = torch.randn(5, 4, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        short = model.factored()(x)
    assert short.dtype == torch.bfloat16
    torch.testing.assert_close(short.float(), model(x), rtol=0.05, atol=0.05)
    assert not torch.equal(short.float(), model(x))


def tied():
    net = nn.ModuleDict({"in": nn.Embedding(5, 4), "out": nn.Linear(4, 5, bias=False)})
    net["in"].weight = net["out"].weight
    return net


@pytest.mark.parametrize(
    ("net", "blocks", "words"),
    [
        (nn.Linear(4, 5), {"*": ("one_hot", 3)}, "P, a layerwise projection, has no block in the shape of a layer"),
        (nn.Embedding(5, 4), {"*": ("kronecker", (2, 2))}, "'weight' cannot be factored: a Embedding is no Linear or"),
        (nn.ConvTranspose2d(2, 3, 2), {"weight": ("kronecker", (2, 2)), "bias": ("dense", 1)}, "a ConvTranspose2d is"),
        (tied(), {"*": ("kronecker", (2, 2))}, "'in.weight' cannot be factored"),
        (
            nn.MultiheadAttention(4, 2),
            {"in*weight": ("kronecker", (2, 2)), "out*weight": ("identity", None), "*bias": ("dense", 1)},
            "'in_proj_weight' cannot be factored: a MultiheadAttention is no",
        ),
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), {"*1": ("kronecker", (2, 2)), "*": ("dense", 1)}, ""),
        (nn.Linear(4, 5).bfloat16(), {"*": ("kronecker", (2, 2))}, "it is torch.bfloat16, and P torch.float32"),
    ],
)
def test_what_cannot_be_factored_is_refused_by_name(net, blocks, words):
    if not words:
        blocks = {"bias": ("dense", 1), "*original0": ("dense", 1), "*original1": ("kronecker", (2, 2))}
        words = "'parametrizations.weight.original1' cannot be factored"
    model = SubspaceModel(net, LayerwiseProjection.over(net, blocks))
    with pytest.raises(ValueError, match=words):
        model.factored()


def test_a_block_on_other_rows_than_a_layers_is_refused():
    net = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 4, bias=False))
    for sizes, shape in (((30, 18), (5, 6)), ((24, 24), (4, 6))):
        blocks = [KroneckerProjection(sizes[0], 4, shape=shape), make_projection("dense", sizes[1], 2)]
        with pytest.raises(ValueError, match=r"'0.weight' cannot be factored: its"):
            SubspaceModel(net, LayerwiseProjection(blocks)).factored()
    apart = LayerwiseProjection(
        [KroneckerProjection(24, 4, shape=(6, 4)), make_projection("dense", 24, 2)], [[0, 12], [1, 24], [0, 12]]
    )
    with pytest.raises(ValueError, match=r"cannot be factored"):
        SubspaceModel(net, apart).factored()


def test_a_weight_that_is_reached_in_another_way_is_never_the_start_in_silence():
    """The fast path of an encoder layer takes linear1.weight itself; it is left out, and who takes it is told."""
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    blocks = {"linear[12].bias": ("dense", 1), "linear1.weight": ("kronecker", (2, 4)), "linear2.weight": ("dense", 1)}
    P = LayerwiseProjection.over(net, blocks | {"self*": ("one_hot", 5), "norm*": ("identity", None)})
    formed = SubspaceModel(net, P).eval()
    with torch.no_grad():
        formed.z.normal_()
        x, factored = torch.randn(2, 3, 8), formed.factored()
        torch.testing.assert_close(factored(x), formed(x))
    factored.net.register_forward_pre_hook(lambda layer, _: layer.linear1.weight.sum())
    with pytest.raises(ValueError, match=r"the weight 'linear1.weight' is used in a way"):
        factored(x)


def pictures(dtype=torch.float64, n=96):
    random = torch.Generator().manual_seed(3)
    x, y = torch.randn(n, 3, 5, 4, generator=random, dtype=dtype), torch.randint(0, 4, (n,), generator=random)
    return Data(train=(x[: n // 2], y[: n // 2]), val=(x[n // 2 :], y[n // 2 :]), test=(x[-9:], y[-9:]))


def small(bias=True, **blocks):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(60, 8, bias=bias), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    given = {"1.*": ("kronecker", (2, 9)), "2.*": ("identity", None), "4.*": ("kronecker", (4, 5))} | blocks
    return SubspaceModel(net.double(), LayerwiseProjection.over(net, given))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"1.*": ("kronecker", (2, 9), 3.0)},
        {"1.*": ("kronecker", (2, 55))},
    ],
)
def test_fit_goes_the_way_of_the_formed_model_for_150_steps(options):
    """On products with the data, in the last case without; batch norm and test set included."""
    formed = small(options.get("bias", True), **{k: v for k, v in options.items() if k != "bias"})
    factored, data = formed.factored(), pictures()
    how = {"epochs": 25, "lr": 3e-3, "batch_size": 8}
    a, b = fit(formed, data, **how), fit(factored, data, **how)
    assert a.steps == 150
    for one in ("train_loss", "val_loss"):
        torch.testing.assert_close(torch.tensor(getattr(b, one)), torch.tensor(getattr(a, one)), rtol=0, atol=1e-12)
    assert (a.best_epoch, a.test_accuracy) == (b.best_epoch, b.test_accuracy)
    torch.testing.assert_close(factored.z, formed.z, rtol=0, atol=1e-12)
    torch.testing.assert_close(factored.net[2].running_var, formed.net[2].running_var, rtol=0, atol=1e-12)
    assert evaluate(factored, *data.test) == pytest.approx((b.test_loss, b.test_accuracy), abs=1e-12)
    assert type(Products(factored, data).model.net[1]) is (
        FactoredLinear if options.get("1.*", (0, 0))[1] == (2, 55) else LinearOnProducts
    )


def test_products_with_a_bias_of_another_block():
    blocks = {"1.weight": ("kronecker", (2, 9)), "1.bias": ("identity", None)}
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(60, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    P = LayerwiseProjection.over(
        net, {"0.weight": blocks["1.weight"], "0.bias": ("identity", None), "2.*": ("dense", 3)}
    )
    formed, data = SubspaceModel(net, P), pictures()
    data = Data(train=(data.train[0].flatten(1), data.train[1]), val=None)
    factored = formed.factored()
    assert type(Products(factored, data).model.net[0]) is LinearOnProducts
    a, b = (fit(one, data, epochs=5, lr=1e-2, batch_size=8) for one in (formed, factored))
    torch.testing.assert_close(torch.tensor(b.train_loss), torch.tensor(a.train_loss), rtol=0, atol=1e-12)


def test_products_are_kept_only_where_nobody_could_tell():
    data, x = pictures(), torch.randn(2, 60).double()

    def kept(model, data=data):
        return type(Products(model, data).model.net[1]) is LinearOnProducts

    model = small().factored()
    assert kept(model)
    assert not kept(small()), "it is formed"
    assert not kept(model, Data(train=[data.train], val=None)), "batches may differ from epoch to epoch"
    assert not kept(model, Data(train=data.train, val=[data.val]))
    assert not kept(model, Data(train=(data.train[0].float(), data.train[1]), val=None)), "to be refused by the layer"
    for module in (model, model.net, model.net[0], model.net[1]):
        for hook in (module.register_forward_pre_hook(lambda *_: None), module.register_forward_hook(lambda *_: None)):
            assert not kept(model), f"{type(module).__name__} has a hook"
            hook.remove()
    assert kept(model)
    augmented = nn.Sequential(nn.Dropout(0.5), nn.Linear(60, 8), nn.Linear(8, 4)).double()
    P = LayerwiseProjection.over(augmented, {"1.*": ("kronecker", (2, 9)), "2.*": ("dense", 4)})
    assert not kept(SubspaceModel(augmented, P).factored(), Data(train=(x, torch.tensor([0, 1])), val=None))


@pytest.mark.parametrize("change", ["data", "array", "rows", "theta0", "data of theta0", "state"])
def test_what_is_changed_while_products_are_kept_is_refused(change):
    model, data = small().factored(), pictures()
    array, other = data.train[0].numpy(), small().factored().state_dict()

    def meddle(_):
        with torch.no_grad():
            if change == "data":
                data.train[0].neg_()
            elif change == "array":
                array[3] += 0.01
            elif change == "rows":
                array[[0, 1]] = array[[1, 0]]
            elif change == "data of theta0":
                model.theta0.data[7] += 0.01
            elif change == "theta0":
                model.theta0.mul_(2)
            else:
                model.load_state_dict(other | {"theta0": 2 * model.theta0})

    with pytest.raises(ValueError, match="were changed while fit keeps what the first layer makes"):
        fit(model, data, epochs=3, lr=1e-2, batch_size=8, on_epoch=meddle)


def test_a_callback_sees_the_model_where_it_is_now():
    model, data, seen = small().factored(), pictures(), []
    history = fit(
        model, data, epochs=3, lr=1e-2, batch_size=8, on_epoch=lambda _: seen.append(evaluate(model, *data.val)[0])
    )
    assert seen == pytest.approx(history.val_loss[1:], abs=1e-12)
    assert type(model.net[1]) is FactoredLinear and model.training


def test_fit_many_forms_them():
    models, data = [small().factored(), small().factored()], pictures()
    alone = fit(small(), data, epochs=2, lr=1e-2, batch_size=8)
    for one in fit_many(models, data, epochs=2, lr=1e-2, batch_size=8):
        assert one.val_loss == pytest.approx(alone.val_loss, abs=1e-12)
