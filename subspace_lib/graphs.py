"""Steps as CUDA graphs: what one step launches is recorded once, and launched as one for the batches that follow.

While one is recorded, another thread cannot draw random numbers on that GPU, so none is where there is a thread that is
no daemon. A graph keeps the memory of a step for itself. ``SUBSPACE_GRAPHS=0`` launches every step by itself.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from subspace_lib.data import Data, is_pair
from subspace_lib.projections import PROJECTIONS
from subspace_lib.projections.base import COMPOSED
from subspace_lib.steps import One, OneSubspace, Runs, SideBySide, accuracy

GRAPHS = "SUBSPACE_GRAPHS"
"""The variable of the environment that switches graphs off: "0"."""
WARM_UP = 3
"""Steps before one is recorded; in them the optimiser makes its moments, and CUDA's libraries what they work with."""

_RUNS = {One, OneSubspace, SideBySide}
_OPTIMIZERS = {torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD}
_LOSSES = {F.cross_entropy, F.mse_loss, F.l1_loss}
_LAYERS = {
    *(nn.Sequential, nn.Identity, nn.Flatten, nn.Unflatten, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm, nn.Dropout),
    *(nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.LogSoftmax),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
    *(nn.CrossEntropyLoss, nn.MSELoss, nn.L1Loss),
}
"""Those whose forward pass does the same at every step, on the device alone."""
_MAPS = {*PROJECTIONS.values(), *COMPOSED.values(), nn.ModuleList}
_failed: list[str] = []
"""Why a recording failed, after which this process records nothing more."""
_broken: list[torch.cuda.CUDAGraph] = []
"""Whose recording broke off: PyTorch's allocator goes on asking them whether they record."""


class Recorder:
    """A stream of a GPU beside the current one, where steps warm up and one is recorded."""

    kind = "cuda"

    def __init__(self, device: torch.device) -> None:
        self.stream = _stream(device)

    @staticmethod
    def usable() -> bool:
        """Whether memory comes from an allocator that is known to keep that of a graph apart."""
        return torch.cuda.get_allocator_backend() == "native"

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        """On the stream, after all that was launched before, and before all that will be."""
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            current.wait_stream(self.stream)

    def record(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """What launches all that ``compute`` launches, and where its result will lie; nothing is launched yet."""
        graph = torch.cuda.CUDAGraph()
        random = torch.cuda.default_generators[self.stream.device.index]
        before = random.clone_state()
        own: list[BaseException] = []
        try:
            # A recording that fails leaves its stream the current one; the outer context puts ours back.
            with (
                torch.cuda.stream(torch.cuda.current_stream(self.stream.device)),
                torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"),
            ):
                try:
                    result = compute()
                except BaseException as error:
                    own.append(error)
                    raise
        except BaseException as error:
            random.graphsafe_set_state(before)  # the other would go on recording
            if error not in own:
                _broken.append(graph)
            raise
        return graph.replay, result


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings: CUDA's libraries keep memory for each stream they have seen."""
    return torch.cuda.Stream(device)


class Steps:
    """The steps of runs over batches: each by itself, or replays of one, where that is certainly the same.

    The first steps on full batches are taken as always. One more is recorded, which takes no step; from then on full
    batches are copied to where it read its own, and replayed. A smaller batch is taken as always.

    Parameters
    ----------
    runs : Runs
        What takes the steps.
    data : Data
        Where the batches come from.
    rows : int
        Rows of a full batch.
    wanted : bool
        Whether steps may be recorded.
    lasting : bool
        Whether nobody is called between epochs who could change the network. Where somebody is, be it by a metric or
        by batches to validate on, every epoch has a recording of its own.
    """

    def __init__(self, runs: Runs, data: Data, rows: int, *, wanted: bool, lasting: bool) -> None:
        self.runs, self.data, self.rows = runs, data, rows
        metric = getattr(runs.metric, "func", runs.metric)
        measured = metric is None or metric is accuracy or _known(metric)
        self.lasting = lasting and measured and (data.val is None or is_pair(data.val))
        self.able, self.to_come = wanted, WARM_UP
        self.recorder: Recorder | None = None
        self.replay: Callable[[], None] | None = None

    def begin(self) -> None:
        """Begin an epoch."""
        if self.able and (self.recorder is None or not self.lasting):
            self.able = is_certain(self.runs, self.data)
            self.to_come, self.replay = WARM_UP, None
            if self.able and type(self.runs) is One:
                _renew(self.runs.net.parameters())
        if self.able:
            self.recorder = self.recorder or Recorder(self.data.train[1].device)

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """As ``Runs.step``; the losses are there until the next step."""
        if not self.able or self.recorder is None or len(targets) != self.rows:
            return self.runs.step(inputs, targets)
        if self.to_come:
            self.to_come -= 1
            with self.recorder.beside():
                return self.runs.step(inputs, targets)
        replay = self.replay = self.replay or self._recorded(self.recorder, inputs, targets)
        if replay is None:
            self.able = False
            said = f"no step can be recorded here ({_failed[-1]})"
            warnings.warn(f"{said}; from now on each is launched by itself, as by {GRAPHS}=0", stacklevel=2)
            return self.runs.step(inputs, targets)
        for place, fresh in zip(self.places, (inputs, targets), strict=True):
            place.copy_(fresh)
        replay()
        return self.losses

    def _recorded(self, recorder: Recorder, inputs: Tensor, targets: Tensor) -> Callable[[], None] | None:
        """What takes a step on the batch that lies in ``places``; None if it cannot be recorded."""
        self.places = inputs.clone(), targets.clone()
        for group in self.runs.optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = True  # which a fused optimiser is in any case, but has to be told
        try:
            replay, self.losses = recorder.record(lambda: self.runs.step(*self.places))
        except Exception as error:
            _failed.append(str(error).strip().split("\n")[0])
            return None
        return replay


def is_certain(runs: Runs, data: Data) -> bool:
    """Whether every step launches the same: in nothing that it runs Python, or the CPU, could decide otherwise."""
    if _failed or type(runs) not in _RUNS or not is_pair(data.train):
        return False
    optimizer, loss = runs.optimizer, runs.loss
    inner = getattr(optimizer, "_inner", optimizer)
    modules = [*runs.net.modules(), *(loss.modules() if isinstance(loss, nn.Module) else ())]
    parameters = [p for module in modules for p in module.parameters(recurse=False)]
    tensors = [*parameters, *(buffer for module in modules for buffer in module.buffers(recurse=False)), *data.train]
    maps = [part for P in runs.maps for part in P.modules()]
    device = data.train[1].device
    return (
        device.type == Recorder.kind
        and Recorder.usable()
        and {tensor.device for tensor in tensors} == {device}
        and not any(tensor.requires_grad or type(tensor) is not Tensor for tensor in data.train)
        and all(type(module) in _LAYERS and _as_made(module) for module in modules)
        and not any(getattr(module, "momentum", 0) is None for module in modules)  # a mean over all batches, on the CPU
        and all(type(p) is nn.Parameter and type(p.data) is Tensor and not _seen(p) for p in parameters)
        and (isinstance(loss, nn.Module) or _known(loss))
        and type(inner) in _OPTIMIZERS
        and all(group.get("fused") for group in optimizer.param_groups)
        and _as_made(inner)
        and _as_made(optimizer)
        and all(type(part) in _MAPS and _as_made(part) and _on_the_device(part) for part in maps)
        and _alone()
        and not _watched()
    )


def _known(measure: object) -> bool:
    """Whether a loss or metric is one of PyTorch's functions that change nothing."""
    return any(measure is one for one in _LOSSES)


def _renew(weights: Iterable[nn.Parameter]) -> None:
    """Let the next backward pass make its ends at these weights anew.

    As long as somebody holds an output, PyTorch keeps them, with the stream on which they were made; data of another
    type, for a moment, make it forget them.
    """
    for p in weights:
        data, other = p.data, torch.float32 if p.dtype == torch.float64 else torch.float64
        p.data = torch.empty(0, dtype=other, device=p.device)
        p.data = data


def _as_made(one: nn.Module | torch.optim.Optimizer) -> bool:
    """Whether nobody hooked into a layer or an optimiser, or put a function in the place of one of its methods."""
    given = {name for name, value in vars(one).items() if callable(value) and hasattr(type(one), name)}
    hooked = any(value for name, value in vars(one).items() if name.endswith("_hooks"))
    return not hooked and given <= {"requires_grad_"}  # which is ours


def _seen(p: Tensor) -> bool:
    """Whether somebody looks at a gradient when it comes."""
    return bool(p._backward_hooks or p._post_accumulate_grad_hooks)


def _on_the_device(P: nn.Module) -> bool:
    """Whether the products of P need nothing of the CPU: neither random numbers, nor the sizes of a sparse format."""
    whole = all(buffer.layout is torch.strided for buffer in P.buffers(recurse=False))
    return whole and getattr(P, "layout", "two_way") in ("two_way", "dense") and getattr(P, "store", True)


def _alone() -> bool:
    """Whether no other thread of this process may launch anything; daemons, as Jupyter has, do not count."""
    return not any(thread is not threading.current_thread() and not thread.daemon for thread in threading.enumerate())


def _watched() -> bool:
    """Whether somebody looks at, or changes, what this thread computes."""
    return bool(
        _has_any_global_hook()
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
        or torch._C._len_torch_function_stack()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._autograd._top_saved_tensors_default_hooks(True)
        or torch.is_autocast_enabled(Recorder.kind)
        or torch.is_anomaly_enabled()
    )
