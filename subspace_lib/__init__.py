"""Train a network through a random projection, theta = theta0 + P z."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subspace_lib.checkpoint import CheckpointError
    from subspace_lib.data import Data
    from subspace_lib.diagnostics import diagnose
    from subspace_lib.intrinsic import intrinsic_dimension, search_intrinsic_dimension
    from subspace_lib.projections import (
        PROJECTIONS,
        LayerwiseProjection,
        MatrixProjection,
        Projection,
        make_projection,
        split_budget,
    )
    from subspace_lib.subspace import SubspaceModel, SubspaceOptimizer, count_parameters
    from subspace_lib.tasks.datasets import load_dataset
    from subspace_lib.tasks.models import MLP, LeNet, SmallLeNet, ToyProblem
    from subspace_lib.tasks.profiles import PROFILES, default_device, get_profile
    from subspace_lib.training import DivergedError, History, evaluate, fit, fit_many

__version__ = "0.1.0"

__all__ = [
    "MLP",
    "PROFILES",
    "PROJECTIONS",
    "CheckpointError",
    "Data",
    "DivergedError",
    "History",
    "LayerwiseProjection",
    "LeNet",
    "MatrixProjection",
    "Projection",
    "SmallLeNet",
    "SubspaceModel",
    "SubspaceOptimizer",
    "ToyProblem",
    "count_parameters",
    "default_device",
    "diagnose",
    "evaluate",
    "fit",
    "fit_many",
    "get_profile",
    "intrinsic_dimension",
    "load_dataset",
    "make_projection",
    "search_intrinsic_dimension",
    "split_budget",
]


_ROOMS = ("projections", "subspace", "checkpoint", "data", "training", "intrinsic", "diagnostics")
_TASKS = ("tasks.models", "tasks.datasets", "tasks.profiles")


def __getattr__(name: str) -> Any:
    """A name out of its room, which is loaded when it is first used: PyTorch takes seconds."""
    if name in _ROOMS:
        return import_module(f"subspace_lib.{name}")
    if name in __all__:
        for room in (*_ROOMS, *_TASKS):
            module = import_module(f"subspace_lib.{room}")
            if name in vars(module):
                return vars(module)[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return sorted({*globals(), *__all__})
