"""In a notebook: what to do where cells run out of order."""

from __future__ import annotations

from types import TracebackType
from typing import Any


def explain_missing_names() -> None:
    """From now on, say what to run first where a cell uses a name that no cell has defined; outside IPython nothing."""
    try:
        from IPython import get_ipython
    except ImportError:
        return
    shell = get_ipython()
    if shell is not None:
        shell.set_custom_exc((NameError,), _explain)


def _explain(
    shell: Any, kind: type[BaseException], error: NameError, traceback: TracebackType, tb_offset: int | None = None
) -> None:
    error.args = (
        f"{error}. A cell above this one defines it, and has not run since the kernel started. Run the cells above "
        "first: on Colab Runtime > Run before, in Jupyter Run > Run All Above Selected Cell.",
    )
    shell.showtraceback((kind, error, traceback), tb_offset=tb_offset)
