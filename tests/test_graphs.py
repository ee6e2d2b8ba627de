"""Recorded steps, on a CPU: what would be launched on a GPU is written down, and done again at every replay.

test_cuda.py does the same on a GPU.
"""

import contextlib
import dataclasses
import functools
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from subspace_lib import (
    PROJECTIONS,
    Data,
    LayerwiseProjection,
    LeNet,
    MatrixProjection,
    SubspaceModel,
    SubspaceOptimizer,
    count_parameters,
    fit,
    fit_many,
    graphs,
    make_projection,
)
from subspace_lib.projections import HadamardProjection, kernels
from subspace_lib.steps import One, OneSubspace

SYNCHRONISE = {"_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2"}
"""Operations for whose answer the CPU has to wait, which no CUDA graph can hold."""
pytestmark = pytest.mark.filterwarnings("error:no step can be recorded")
FULL, ROWS, REST = 6, 14, 5
"""Full batches of an epoch, and the rows of one and of the last."""


class Writing(TorchDispatchMode):
    """Writes down every operation with the tensors that it reads and makes, and what it writes over."""

    def __init__(self):
        super().__init__()
        self.done, self.before, self.made = [], [], set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if operation.namespace != "aten":  # the profiler's
            return operation(*args, **kwargs)
        if operation._schema.name.removeprefix("aten::") in SYNCHRONISE:
            raise RuntimeError(f"{operation} is not permitted when stream is capturing\nand more")
        given = dict(zip((one.name for one in operation._schema.arguments), args, strict=False)) | kwargs
        for argument in operation._schema.arguments:
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written or argument.name.startswith("running_"):  # batch normalisation does not say that it writes
                there = [t for t in tree_leaves(given.get(argument.name)) if tensor(t) and id(t) not in self.made]
                self.before += [(t, t.clone()) for t in there]
        found = operation(*args, **kwargs)
        new = all(one.alias_info is None for one in operation._schema.returns)
        self.done.append((operation, args, kwargs, tree_leaves(found) if new else []))
        self.made |= {id(t) for t in self.done[-1][-1]}
        return found

    def read(self):
        """The tensors of a batch's length that were there before."""
        seen = {id(t): t for _, args, kwargs, _ in self.done for t in tree_leaves((args, kwargs)) if tensor(t)}
        return [t for t in seen.values() if t.shape[:1] == (ROWS,) and id(t) not in self.made and t._base is None]


class Recorder:
    """Stands for a GPU: a recording leaves no trace in memory; a replay does its operations, and nothing of Python."""

    kind = "cpu"

    @staticmethod
    def usable():
        return True

    def __init__(self, device):
        Recorder.recorded = Recorder.replayed = Recorder.beside_it = 0

    @contextlib.contextmanager
    def beside(self):
        Recorder.beside_it += 1
        yield

    def record(self, compute):
        Recorder.recorded += 1
        random, writing = torch.get_rng_state(), Writing()
        try:
            with writing:
                result = compute()
        finally:
            torch.set_rng_state(random)
            with below_autograd():
                for one, value in reversed(writing.before):
                    one.copy_(value)
        return lambda: self.replay(writing), result

    def replay(self, writing):
        Recorder.replayed += 1
        with below_autograd():
            for operation, args, kwargs, outputs in writing.done:
                for old, new in zip(outputs, tree_leaves(operation(*args, **kwargs)), strict=False):
                    if tensor(old):
                        old.copy_(new if new.shape == old.shape else new.reshape(old.shape))  # squeezed since


class Deaf(Recorder):
    """A GPU that goes on with the batch it recorded."""

    def replay(self, writing):
        if Recorder.replayed == 0:
            self.first = [(one, one.clone()) for one in writing.read()]
        for one, value in self.first:
            one.copy_(value)
        super().replay(writing)


def tensor(one):
    return isinstance(one, torch.Tensor)


@contextlib.contextmanager
def below_autograd():
    """Where nothing counts the versions of a tensor, as on a GPU."""
    guard = torch._C._AutoDispatchBelowAutograd()
    try:
        yield
    finally:
        del guard


@pytest.fixture(autouse=True)
def on_a_gpu(monkeypatch):
    """A CPU that passes for a GPU: no kernels of our own, and weights are watched by their versions alone."""
    monkeypatch.setattr(graphs, "Recorder", Recorder)
    monkeypatch.setattr(graphs, "_failed", [])
    monkeypatch.setattr(kernels, "taking", lambda *tensors: None)
    write = SubspaceOptimizer._write

    def unkept(self):
        write(self)
        self._kept = []

    monkeypatch.setattr(SubspaceOptimizer, "_write", unkept)
    Recorder(None)


@pytest.fixture
def data():
    x = torch.randn(FULL * ROWS + REST, 8, generator=torch.Generator().manual_seed(0))
    y = x[:, :3].argmax(1)
    return Data(train=(x, y), val=(x[:30], y[:30]), test=(x[50:], y[50:]))


def plain(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


def subspace(name="hadamard", seed=0, **options):
    D = count_parameters(plain())
    d = D if PROJECTIONS[name].square else 20
    return SubspaceModel(plain(seed), make_projection(name, D, d, seed, **options))


def layerwise():
    return SubspaceModel(
        plain(), LayerwiseProjection.over(plain(), {"[01].*": ("one_hot", 9), "4.*": ("identity", None)})
    )


def several():
    return [subspace("hadamard", 0), subspace("one_hot", 1), subspace("fastfood", 2)]


def lenets():
    D = count_parameters(LeNet())
    return [SubspaceModel.from_seed(LeNet, make_projection("one_hot", D, 30, i), seed=i) for i in range(2)]


def results(switch, make, data, monkeypatch, change=None, **how):
    """All that a history says, and all numbers of the models, after training with graphs, or switched off by "0"."""
    monkeypatch.setenv(graphs.GRAPHS, switch)
    model = make()
    if change is not None:
        how["on_epoch"] = functools.partial(change, model)
    how = {"epochs": 3, "lr": 0.02, "batch_size": ROWS} | how
    torch.manual_seed(1)
    histories = fit_many(model, data, **how) if isinstance(model, list) else [fit(model, data, **how)]
    models = model if isinstance(model, list) else [model]
    numbers = [{name: t.numpy().tobytes() for name, t in one.state_dict().items()} for one in models]
    return [vars(history) | {"seconds": 0} for history in histories], numbers


def assert_same(*given, **how):
    assert results("", *given, **how) == results("0", *given, **how)


def counts():
    return Recorder.beside_it, Recorder.recorded, Recorder.replayed


@pytest.mark.parametrize(
    "make",
    [plain, layerwise, several, *(functools.partial(subspace, name) for name in PROJECTIONS)],
    ids=["plain", "layerwise", "several", *PROJECTIONS],
)
def test_replays_are_the_steps_to_the_last_bit(make, data, monkeypatch):
    monkeypatch.setattr(SubspaceOptimizer, "_take_in", lambda self: pytest.fail("the weights were not changed"))
    assert_same(make, data, monkeypatch)
    assert counts() == (3, 1, 3 * FULL - 3)


@pytest.mark.parametrize(
    "make", [lambda: lenets()[0].merge(), lambda: lenets()[0], lenets], ids=["plain", "subspace", "several"]
)
def test_convolutions(make, monkeypatch):
    x = torch.randn(FULL * ROWS, 1, 28, 28)
    assert_same(make, Data(train=(x, x[:, 0, 0, :9].argmax(1)), val=None), monkeypatch, epochs=1)
    assert counts() == (3, 1, FULL - 3)


def test_a_replay_that_does_not_see_its_batch_is_found_out(data, monkeypatch):
    monkeypatch.setattr(graphs, "Recorder", Deaf)
    found, expected = (results(switch, plain, data, monkeypatch)[0][0]["train_loss"] for switch in ("", "0"))
    assert found[0] != expected[0] and counts() == (3, 1, 3 * FULL - 3)


@pytest.mark.parametrize("make", [plain, subspace])
def test_a_full_batch_is_one_replay(make, data, monkeypatch):
    taken = []
    step = One.step
    monkeypatch.setattr(One, "step", lambda self, *batch: taken.append(len(batch[1])) or step(self, *batch))
    results("", make, data, monkeypatch)
    assert counts() == (3, 1, 3 * FULL - 3)
    assert taken == [ROWS] * 4 + [REST] * 3, "three steps and the recording, and the last batch of every epoch"


def freeze(model, history):
    if len(history.train_loss) == 1:
        model[0].requires_grad_(False)


def drop(model, history):
    model[3].p = 0.1 * len(history.train_loss)


def rest(model, history):
    model[1].momentum = 0.5
    with torch.no_grad():
        model[4].weight.mul_(0.5)
        model[4].bias.data = torch.zeros(3)


def watch(model, history):
    if len(history.train_loss) == 2:
        model[0].register_forward_hook(lambda module, inputs, output: 2 * output)


@pytest.mark.parametrize(("change", "epochs"), [(freeze, 3), (drop, 3), (rest, 3), (watch, 2)])
def test_what_on_epoch_changes_is_recorded_anew(change, epochs, data, monkeypatch):
    assert_same(plain, data, monkeypatch, change=change)
    assert counts() == (3 * epochs, epochs, (FULL - 3) * epochs)


def test_weights_that_were_changed_between_epochs_are_taken_in(data, monkeypatch):
    made, form = [], SubspaceModel.train_form
    monkeypatch.setattr(SubspaceModel, "train_form", lambda *a, **k: made.append(form(*a, **k)) or made[-1])

    def back(model, history):
        net, optimizer = made[-1]
        taken.append(optimizer.z.norm().item())
        with torch.no_grad():
            nn.utils.vector_to_parameters(optimizer.theta0, before := [p.detach() for p in net.parameters()])
            for p, start in zip(net.parameters(), before, strict=True):
                p.copy_(start)

    taken = []
    assert_same(subspace, data, monkeypatch, change=back)
    assert taken[:3] == taken[3:] and counts()[1] == 3


@pytest.mark.parametrize("make", [plain, subspace, several])
def test_patience_and_the_best_epoch(make, data, monkeypatch):
    assert_same(make, data, monkeypatch, patience=1, lr=0.3, epochs=8)
    assert counts()[:2] == (3, 1) and FULL - 3 <= Recorder.replayed < 7 * FULL, "patience ended it"


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("make", [plain, subspace, several])
def test_optimisers(optimizer, make, data, monkeypatch):
    x = data.train[0]
    regression = Data(train=(x, x[:, :3]), val=None)
    assert_same(make, regression, monkeypatch, optimizer_class=optimizer, loss=nn.MSELoss(), metric=F.l1_loss, epochs=2)
    assert counts() == (3, 1, 2 * FULL - 3)


def test_a_schedule_goes_without(data, monkeypatch):
    assert_same(subspace, data, monkeypatch, schedule=lambda done: 1 - done)
    assert counts() == (0, 0, 0)


@pytest.mark.filterwarnings("default:no step can be recorded")
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("change", [None, drop])
def test_a_recording_that_fails_leaves_no_trace(late, change, data, monkeypatch):
    """Before the gradient of z is there, or when theta is written and not yet known as ours."""
    name = "write" if late else "pull"
    method = getattr(HadamardProjection, name)

    def synchronises(self, *vectors):
        found = method(self, *vectors)
        vectors[0].sum().item()
        return found

    monkeypatch.setattr(HadamardProjection, name, synchronises)

    def through(model, history):
        if change is not None:
            change(model.net, history)

    expected = results("0", subspace, data, monkeypatch, change=through)
    with pytest.warns(UserWarning, match=r"no step can be recorded here.*\(.* is not permitted when .* capturing\)"):
        assert results("", subspace, data, monkeypatch, change=through) == expected
    assert counts() == (3, 1, 0)
    assert results("", subspace, data, monkeypatch, change=through) == expected
    assert counts() == (3, 1, 0), "nothing is recorded after that, and nothing said again"


def test_a_metric_may_change_the_network(data, monkeypatch):
    def plainly():
        nonlocal calls
        calls, net = 0, plain()
        measured.append(net)
        return net

    def metric(outputs, targets):
        nonlocal calls
        calls += 1
        measured[-1][3].p = 0.1 * calls
        return (outputs.argmax(1) == targets).double().mean()

    calls, measured = 0, []
    assert_same(plainly, data, monkeypatch, metric=metric)
    assert counts() == (9, 3, 3 * FULL - 9)


def test_batches_to_validate_on_are_somebody_s_code(data, monkeypatch):
    x, y = data.val
    assert_same(plain, Data(train=data.train, val=[(x, y)]), monkeypatch)
    assert counts() == (9, 3, 3 * FULL - 9)


def test_a_held_output_keeps_its_ends_and_the_weights_get_others():
    """Those that PyTorch made on another stream would pull it into a recording, which fails."""
    net = plain().double()
    places, outputs = [p.data_ptr() for p in net.parameters()], net(torch.ones(5, 8, dtype=torch.float64)).sum()
    held = [torch.autograd.graph.get_gradient_edge(p).node for p in net.parameters()]
    graphs._renew(net.parameters())
    ends = [torch.autograd.graph.get_gradient_edge(p).node for p in net.parameters()]
    assert not any(one is other for one, other in zip(held, ends, strict=True))
    assert [p.data_ptr() for p in net.parameters()] == places and {p.dtype for p in net.parameters()} == {torch.float64}
    outputs.backward()
    assert all(p.grad is not None for p in net.parameters())


class Own(nn.Linear):
    def forward(self, x):
        return super().forward(x)


def hooked(net):
    net[0].register_forward_hook(lambda *_: None)


def replaced(net):
    net[0].forward = net[0].forward


def of_all_batches(net):
    net[1].momentum = None


def own(net):
    net[4] = Own(16, 3)


def parametrised(net):
    parametrizations.orthogonal(net[4])


def seen(net):
    net[4].weight.register_post_accumulate_grad_hook(lambda p: None)


def doubled(net):
    net[4].weight.register_hook(lambda gradient: 2 * gradient)


def compiled(net):
    net._compiled_call_impl = net._call_impl  # as compile() leaves it


@pytest.mark.parametrize(
    "change",
    [hooked, replaced, of_all_batches, own, parametrised, seen, doubled, compiled],
    ids=lambda one: one.__name__,
)
def test_other_networks_go_without(change, data):
    net = plain()
    runs = One(net, F.cross_entropy, None, torch.optim.Adam(net.parameters(), fused=True))
    assert graphs.is_certain(runs, data)
    change(net)
    assert not graphs.is_certain(runs, data)


@pytest.mark.parametrize(
    ("loss", "optimizer"),
    [
        (lambda outputs, targets: F.cross_entropy(outputs, targets), torch.optim.Adam),
        (F.cross_entropy, functools.partial(torch.optim.Adam, fused=False)),
        (F.cross_entropy, torch.optim.RMSprop),
        (F.cross_entropy, type("Adam", (torch.optim.Adam,), {})),
    ],
)
def test_other_losses_and_optimisers_go_without(loss, optimizer, data):
    net = plain()
    options = {} if optimizer is torch.optim.RMSprop or isinstance(optimizer, functools.partial) else {"fused": True}
    assert not graphs.is_certain(One(net, loss, None, optimizer(net.parameters(), **options)), data)


def test_optimisers_that_somebody_watches_go_without(data):
    net = plain()
    runs = One(net, F.cross_entropy, None, torch.optim.Adam(net.parameters(), fused=True))
    assert graphs.is_certain(runs, data)
    torch.optim.lr_scheduler.StepLR(runs.optimizer, 1)
    assert not graphs.is_certain(runs, data), "a scheduler counts its steps"
    runs.optimizer = torch.optim.Adam(net.parameters(), fused=True)
    handle = register_optimizer_step_post_hook(lambda *_: None)
    assert not graphs.is_certain(runs, data)
    handle.remove()
    runs.optimizer.register_step_pre_hook(lambda *_: None)
    assert not graphs.is_certain(runs, data)


class OwnP(HadamardProjection):
    name = "own"


@pytest.mark.parametrize(
    "draw",
    [
        lambda D: make_projection("sparse", D, 20, layout="csr"),
        lambda D: make_projection("dense", D, 20, store=False),
        lambda D: MatrixProjection(torch.eye(D)[:, :20].to_sparse_csr()),
        lambda D: 2 * OwnP(D, 20),
    ],
)
def test_maps_that_need_the_cpu_go_without(draw, data):
    D = count_parameters(plain())
    for P, certain in ((draw(D), False), (2 * make_projection("dense", D, 20), True)):
        runs = OneSubspace(SubspaceModel(plain(), P), F.cross_entropy, None, torch.optim.Adam, lr=0.1)
        assert graphs.is_certain(runs, data) == certain


@pytest.mark.parametrize(
    "around",
    [
        lambda: torch.autocast("cpu"),
        torch.autograd.detect_anomaly,
        lambda: torch.autograd.graph.save_on_cpu(),
        lambda: torch.device("cpu"),
        Writing,
    ],
)
def test_who_watches_goes_without(around, data):
    runs = OneSubspace(subspace(), F.cross_entropy, None, torch.optim.Adam, lr=0.1)
    assert graphs.is_certain(runs, data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with around():
            assert not graphs.is_certain(runs, data)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert not graphs.is_certain(runs, data)
    handle.remove()


class Watching(torch.Tensor):
    pass


@dataclasses.dataclass
class Huber:
    """A loss without a hash."""

    delta: float = 1.0

    def __call__(self, outputs, targets):
        return F.huber_loss(outputs, targets, delta=self.delta)


def test_a_loss_of_one_s_own_goes_without(data, monkeypatch):
    x = data.train[0]
    assert_same(plain, Data(train=(x, x[:, :3]), val=None), monkeypatch, loss=Huber())
    assert counts() == (0, 0, 0)


def test_other_data_and_devices_go_without(data, monkeypatch):
    runs = OneSubspace(subspace(), F.cross_entropy, None, torch.optim.Adam, lr=0.1)
    x, y = data.train
    assert not graphs.is_certain(runs, Data(train=[(x, y)], val=None))
    assert not graphs.is_certain(runs, Data(train=(x.clone().requires_grad_(), y), val=None))
    assert not graphs.is_certain(runs, Data(train=(x.as_subclass(Watching), y), val=None))
    assert graphs.is_certain(runs, data)
    monkeypatch.setattr(Recorder, "usable", lambda: False)
    assert not graphs.is_certain(runs, data)
    monkeypatch.setattr(Recorder, "usable", lambda: True)
    monkeypatch.setattr(Recorder, "kind", "cuda")
    assert not graphs.is_certain(runs, data)


def test_a_thread_that_may_draw_random_numbers_goes_first(data):
    """On a GPU it could draw none while a step is recorded."""
    runs = OneSubspace(subspace(), F.cross_entropy, None, torch.optim.Adam, lr=0.1)
    over = threading.Event()
    for daemon in (False, True):
        other = threading.Thread(target=over.wait, daemon=daemon)
        other.start()
        assert graphs.is_certain(runs, data) == daemon
        over.set()
        other.join()
        assert graphs.is_certain(runs, data)
        over.clear()


def test_they_can_be_switched_off(data, monkeypatch):
    monkeypatch.setenv(graphs.GRAPHS, "0")
    fit(plain(), data, epochs=1, lr=0.1, batch_size=ROWS)
    assert counts() == (0, 0, 0)
    monkeypatch.delenv(graphs.GRAPHS)
    fit(plain(), data, epochs=1, lr=0.1, batch_size=ROWS)
    assert counts() == (3, 1, FULL - 3)
    monkeypatch.setenv(graphs.GRAPHS, "1")
    with pytest.raises(ValueError, match="SUBSPACE_GRAPHS is '1'; allowed is 0 .* or leave it unset"):
        fit(plain(), data, epochs=1, lr=0.1, batch_size=ROWS)
