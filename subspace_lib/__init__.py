"""Train a network through a random projection, theta = theta0 + P z."""

from subspace_lib.datasets import Data, load_dataset
from subspace_lib.diagnostics import diagnose
from subspace_lib.intrinsic import intrinsic_dimension, search_intrinsic_dimension
from subspace_lib.many import fit_many
from subspace_lib.models import MLP, LeNet, SmallLeNet, ToyProblem, count_parameters
from subspace_lib.profiles import PROFILES, default_device, get_profile
from subspace_lib.projections import PROJECTIONS, LayerwiseProjection, Projection, make_projection, split_budget
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
    "LayerwiseProjection",
    "LeNet",
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
