"""Train a network through a random projection, theta = theta0 + P z."""

from subspace_lib.datasets import Data, load_dataset
from subspace_lib.models import MLP, LeNet, SmallLeNet, ToyProblem, count_parameters
from subspace_lib.profiles import PROFILES, default_device, get_profile
from subspace_lib.projections import PROJECTIONS, Projection, make_projection
from subspace_lib.subspace import CheckpointError, SubspaceModel, SubspaceOptimizer
from subspace_lib.training import DivergedError, History, evaluate, fit

__version__ = "0.1.0"

__all__ = [
    "MLP",
    "PROFILES",
    "PROJECTIONS",
    "CheckpointError",
    "Data",
    "DivergedError",
    "History",
    "LeNet",
    "Projection",
    "SmallLeNet",
    "SubspaceModel",
    "SubspaceOptimizer",
    "ToyProblem",
    "count_parameters",
    "default_device",
    "evaluate",
    "fit",
    "get_profile",
    "load_dataset",
    "make_projection",
]
