import torch

from subspace_lib import (
    SubspaceModel,
    count_parameters,
    fit,
    make_projection,
    search_intrinsic_dimension,
)


def measure(make_net, data, epochs, largest, seeds=2, lr=1e-3, lr_z=3e-2):
    """Intrinsic dimension of make_net() on data; direct training is the baseline."""

    def accuracy(d, seed):
        torch.manual_seed(seed)  # one theta0 a seed, the same for every d
        net = make_net()
        if d is None:
            return fit(net, data, epochs=epochs, lr=lr, seed=seed).best_accuracy
        P = make_projection("hadamard", count_parameters(net), d, seed=1000 + seed)
        model = SubspaceModel(net, P.to(next(net.parameters()).device))
        return fit(model, data, epochs=epochs, lr=lr_z, seed=seed).best_accuracy

    baseline = [accuracy(None, seed) for seed in range(seeds)]
    return search_intrinsic_dimension(accuracy, baseline, 100, largest, seeds)
