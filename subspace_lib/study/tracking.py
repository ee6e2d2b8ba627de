"""Runs followed in Weights & Biases, for those who use it: `pip install wandb`."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from subspace_lib.training import History


class WandbLogger:
    """Logs each epoch of ``fit`` to one run of Weights & Biases, which ends with the ``with`` block.

    With ``mode="offline"``, or WANDB_MODE=offline in the environment, nothing leaves the machine; ``wandb sync``
    sends it later.

    Parameters
    ----------
    **options
        For ``wandb.init``: ``project``, ``name``, ``config``, ``mode``, ``dir``, ...

    Raises
    ------
    ImportError
        If wandb is not installed.

    Examples
    --------
    >>> with WandbLogger(project="subspaces", config={"d": 750}) as logger:
    ...     fit(model, data, epochs=10, lr=0.03, on_epoch=logger)
    """

    def __init__(self, **options: Any) -> None:
        try:
            import wandb
        except ImportError:
            raise ImportError("WandbLogger needs wandb; install it with `pip install wandb`") from None
        self.run = wandb.init(**options)

    def __call__(self, history: History) -> None:
        """Log the last epoch of ``history``."""
        numbers = {"train_loss": history.train_loss[-1]}
        if history.val_loss:
            numbers |= {"val_loss": history.val_loss[-1], "val_accuracy": history.val_accuracy[-1]}
        self.run.log(numbers | {"steps": history.steps}, step=len(history.train_loss))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self.run.finish(exit_code=0 if kind is None else 1)
