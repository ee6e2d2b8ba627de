"""Networks of every kind: SubspaceModel does with them what they do themselves, or says that it cannot."""

import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from subspace_lib import Data, SubspaceModel, SubspaceOptimizer, count_parameters, fit, make_projection

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)
        self.prepare()

    def prepare(self):
        pass

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


class OneLayerTwoNames(Net):
    def prepare(self):
        self.c = self.a

    def forward(self, x):
        return self.b(self.c(torch.tanh(self.a(x))))


class ParametersInForward(Net):
    def forward(self, x):
        return super().forward(x) + sum(i * p.norm() for i, p in enumerate(self.parameters()))


class KeptActivations(Net):
    def forward(self, x):
        self.last = self.a(x)
        self.all = [{"a": self.last}]
        return self.b(self.last)


class Recurrent(Net):
    def prepare(self):
        self.rnn = nn.LSTM(6, 3, num_layers=2, bidirectional=True)

    def forward(self, x):
        return self.rnn(self.a(x)[:, None])[0][:, 0]


class Lists(Net):
    def prepare(self):
        self.several = nn.ParameterList([torch.randn(3), torch.ones(3)])
        self.scalar = nn.Parameter(torch.tensor(2.0))
        self.nothing = nn.Parameter(torch.zeros(0, 2), requires_grad=False)

    def forward(self, x):
        return super().forward(x) * self.several[0] * self.scalar + self.several[1]


class SparseGradients(Net):
    def prepare(self):
        self.embed = nn.EmbeddingBag(9, 6, sparse=True)

    def forward(self, x):
        return super().forward(x + self.embed(torch.tensor([[1, 2, 2]])))


class TwoTypes(Net):
    def prepare(self):
        self.b.bfloat16()

    def forward(self, x):
        return self.b(self.a(x).bfloat16()).float()


def changed(change):
    def make():
        net = Net()
        change(net.a)
        net(X)
        return net

    return make


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize(
    "make",
    [
        Net,
        OneLayerTwoNames,
        ParametersInForward,
        KeptActivations,
        Recurrent,
        Lists,
        SparseGradients,
        TwoTypes,
        changed(nn.utils.weight_norm),
        changed(parametrizations.weight_norm),
        changed(nn.utils.spectral_norm),
        changed(lambda layer: prune.l1_unstructured(layer, "weight", 0.5)),
        lambda: nn.TransformerEncoderLayer(6, 2, 8, dropout=0.1),
    ],
)
def test_the_model_does_what_the_merged_network_does(make):
    torch.manual_seed(0)
    net = make()
    P = make_projection("one_hot", count_parameters(net), 5)
    model = SubspaceModel(net, P)
    assert [name for name, _ in model.merge().named_parameters()] == [name for name, _ in net.named_parameters()]
    with torch.no_grad():
        model.z.normal_()
    outputs, gradients = [], []
    for module in (model, merged := model.merge()):
        torch.manual_seed(3)
        outputs.append(module(X))
        outputs[-1].square().sum().backward()
    torch.testing.assert_close(*outputs)
    for p in merged.parameters():
        if p.requires_grad:
            gradients.append((torch.zeros_like(p) if p.grad is None else p.grad.to_dense()).flatten().float())
    torch.testing.assert_close(model.z.grad, P.adjoint(torch.cat(gradients)), rtol=1e-4, atol=1e-3)
    assert model.z.grad.norm() > 0
    torch.testing.assert_close(model.merge().eval()(X), model.eval()(X))


class WeightsInAList(Net):
    def prepare(self):
        self.layers = [(self.a.weight, self.a.bias)]

    def forward(self, x):
        return self.b(F.linear(x, *self.layers[0]))


class WeakReference(Net):
    def prepare(self):
        self.reference = weakref.ref(self.a.weight)

    def forward(self, x):
        return self.b(F.linear(x, self.reference()))


class Checkpointed(Net):
    def forward(self, x):
        return self.b(checkpoint(self.a, x, use_reentrant=False))


class Reentrant(Net):
    def forward(self, x):
        return self.b(checkpoint(self.a, x.clone().requires_grad_(), use_reentrant=True))


class HoldsItself(Net):
    def prepare(self):
        self.function = lambda x: self.a(x)

    def forward(self, x):
        return self.b(self.function(x))


@pytest.mark.parametrize(
    "make", [WeightsInAList, WeakReference, Checkpointed, Reentrant, HoldsItself, lambda: torch.jit.script(Net())]
)
def test_what_the_model_cannot_serve_the_optimizer_can(make):
    net = make()
    P = make_projection("one_hot", count_parameters(net), 5)
    with pytest.raises(ValueError, match="SubspaceOptimizer"):
        SubspaceModel(net, P)(X).sum().backward()
    optimizer = SubspaceOptimizer(net, P, torch.optim.SGD, lr=0.1)
    before = net(X).sum()
    before.backward()
    optimizer.step()
    assert net(X).sum() < before


def test_fit_trains_weights_in_a_list():
    net = WeightsInAList()
    model = SubspaceModel(net, make_projection("one_hot", count_parameters(net), 5))
    fit(model, Data(train=(X, X[:, :3].argmax(1)), val=None, test=None), epochs=2, lr=0.1, batch_size=8)
    merged = model.merge()
    assert merged.layers[0][0] is merged.a.weight
    torch.testing.assert_close(torch.cat([p.detach().flatten() for p in merged.parameters()]), model.theta().detach())


def test_parameters_keep_their_class_and_attributes():
    class Marked(nn.Parameter):
        pass

    net = Net()
    net.a.weight = Marked(torch.randn(6, 6))
    net.a.weight.rate = 3
    merged = SubspaceModel(net, make_projection("one_hot", count_parameters(net), 5)).merge()
    assert (type(merged.a.weight), merged.a.weight.rate) == (Marked, 3)


def test_shared_and_expanded_buffers_stay_so():
    net = Net()
    net.a.register_buffer("mean", torch.zeros(3))
    net.b.register_buffer("mean", net.a.mean)
    net.register_buffer("wide", torch.ones(1).expand(4))
    model = SubspaceModel(net, make_projection("one_hot", count_parameters(net), 5))
    merged = model.merge()
    assert merged.a.mean is merged.b.mean
    merged.a.mean.add_(1)
    model.take(model.z, merged)
    assert torch.equal(model.net.b.mean, torch.ones(3))
    assert torch.equal(model.net.wide, torch.ones(4))


def test_a_compiled_model_is_the_model():
    net = Net()
    model = SubspaceModel(net, make_projection("one_hot", count_parameters(net), 5))
    gradients = []
    for module in (model, torch.compile(model, backend="aot_eager")):
        model.z.grad = None
        module(X).sum().backward()
        gradients.append(model.z.grad)
    torch.testing.assert_close(*gradients)


def test_a_state_of_another_P_is_refused_before_anything_is_loaded():
    net = Net()
    one, two = (SubspaceModel(net, make_projection("dense", count_parameters(net), 5, seed)) for seed in (0, 1))
    with torch.no_grad():
        one.z.fill_(1.0)
    with pytest.raises(ValueError, match="this z belongs to another P"):
        two.load_state_dict(one.state_dict())
    assert not two.z.any()
    one.load_state_dict(one.state_dict())


class ClampsItself(Net):
    def forward(self, x):
        with torch.no_grad():
            self.a.weight.clamp_(-0.1, 0.1)
        return super().forward(x)


class ClampsLast(Net):
    def forward(self, x):
        output = super().forward(x).detach()
        with torch.no_grad():
            self.a.weight.clamp_(-0.1, 0.1)
        return output


class ReplacesAWeight(Net):
    def forward(self, x):
        self.a.weight = nn.Parameter(0.9 * self.a.weight)
        return super().forward(x)


@pytest.mark.parametrize(
    ("make", "words"),
    [(ClampsItself, "in place"), (ClampsLast, "in place"), (ReplacesAWeight, "replaces the weight 'weight'")],
)
def test_weights_that_a_forward_pass_changes_are_not_lost_in_silence(make, words):
    net = make()
    model = SubspaceModel(net, make_projection("one_hot", count_parameters(net), 5))
    with pytest.raises(ValueError, match=words):
        model(X)
    assert [name for name, _ in model.merge().named_parameters()] == [name for name, _ in net.named_parameters()]


def test_outputs_in_an_object_are_looked_into():
    class Output:
        def __init__(self, scores):
            self.scores = scores

    class Elsewhere(Net):
        def prepare(self):
            self.reference = weakref.ref(self.a.weight)

        def forward(self, x):
            return Output(self.b(F.linear(x, self.reference())))

    net = Elsewhere()
    with pytest.raises(ValueError, match="SubspaceOptimizer trains the network itself"):
        SubspaceModel(net, make_projection("one_hot", count_parameters(net), 5))(X)


def test_threads_share_a_model():
    net = nn.Sequential(*[nn.Linear(60, 60) for _ in range(6)])
    model = SubspaceModel(net, make_projection("one_hot", count_parameters(net), 5))
    x = torch.randn(200, 60)
    expected = model(x)
    with ThreadPoolExecutor(3) as pool:
        for output in pool.map(lambda _: model(x), range(40)):
            torch.testing.assert_close(output, expected)


def test_an_average_of_a_model_is_a_model():
    net = Net()
    model = SubspaceModel(net, make_projection("one_hot", count_parameters(net), 5))
    average = torch.optim.swa_utils.AveragedModel(model)
    for value in (1.0, 3.0):
        with torch.no_grad():
            model.z.fill_(value)
        average.update_parameters(model)
    assert torch.equal(average.module.z, torch.full((5,), 2.0))
    torch.testing.assert_close(average(X), average.module.merge()(X))


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_sparse_buffers(layout, tmp_path):
    class Graph(Net):
        def prepare(self):
            self.register_buffer("edges", torch.eye(16).to_sparse(layout=layout))

        def forward(self, x):
            return self.b(self.edges @ self.a(x) if len(x) == 16 else self.a(x))

    P = make_projection("one_hot", count_parameters(Graph()), 5)
    model = SubspaceModel.from_seed(Graph, P, 0)
    data = Data(train=(X, X[:, :3].argmax(1)), val=(X, X[:, :3].argmax(1)))
    fit(model, data, epochs=2, lr=0.1, batch_size=16)
    torch.testing.assert_close(model.merge()(X), model(X))
    model.save(tmp_path / "rebuilt")
    torch.testing.assert_close(SubspaceModel.load(tmp_path / "rebuilt", Graph)(X), model(X))
    with pytest.raises(ValueError, match="cannot save the buffer 'edges', which is sparse"):
        SubspaceModel(Graph(), P).save(tmp_path / "written")


def test_buffers_that_grow_or_appear_train_and_are_saved(tmp_path):
    class Remembers(Net):
        def prepare(self):
            self.register_buffer("seen", torch.zeros(0), persistent=False)
            self.register_buffer("first", None)

        def forward(self, x):
            self.seen = torch.cat([self.seen, x[:1, 0]])
            self.first = x[0].clone()
            return super().forward(x)

    P = make_projection("one_hot", count_parameters(Remembers()), 5)
    model = SubspaceModel.from_seed(Remembers, P, 0)
    data = Data(train=(X, X[:, :3].argmax(1)), val=(X, X[:, :3].argmax(1)))
    fit(model, data, epochs=2, lr=0.1, batch_size=8)
    model.save(tmp_path / "file")
    assert torch.equal(SubspaceModel.load(tmp_path / "file", Remembers).net.first, model.net.first)


def test_the_default_device_has_no_influence(tmp_path):
    model = SubspaceModel.from_seed(Net, make_projection("one_hot", 63, 5), 0)
    data = Data(train=(X, X[:, :3].argmax(1)), val=None)
    with torch.device("meta"):
        again = SubspaceModel.from_seed(Net, make_projection("one_hot", 63, 5), 0)
        fit(again, data, epochs=1, lr=0.1, batch_size=8)
        again.save(tmp_path / "file")
        again = SubspaceModel.load(tmp_path / "file", Net)
    fit(model, data, epochs=1, lr=0.1, batch_size=8)
    assert torch.equal(again.theta(), model.theta())
