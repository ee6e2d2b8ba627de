"""The house: which room may use which, read from the source, and what the library alone needs."""

import ast
import importlib
import pickle
import re
import subprocess
import sys
import tomllib
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from subspace_lib import DivergedError, History

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "subspace_lib"
WINGS = ("", "tasks", "study", "press")
"""From the ground up; the first is the library itself."""
ROOMS = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED = {re.match(r"[\w-]+", one)[0] for one in PROJECT["dependencies"]}


@cache
def imports_of(room: str) -> frozenset[str]:
    """Everything that a room imports anywhere in its source, save for the eyes of a type checker."""
    tree = ast.parse(ROOMS[room].read_text(encoding="utf-8"))
    hidden = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    skipped = {inner for node in hidden for inner in ast.walk(node)}
    found = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{room} imports by dots; write the room's whole name"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in ROOMS or f"{inner}.__init__" in ROOMS else node.module)
    return frozenset(found)


def rooms_used_by(room: str) -> set[str]:
    """The rooms of our own that a room imports."""
    names = {name for name in imports_of(room) if name.partition(".")[0] == "subspace_lib"}
    return {name if name in ROOMS else f"{name}.__init__" for name in names} - {room}


def floor_of(room: str) -> int:
    """The floor on which a room's wing stands; the command line is above all."""
    if room == "subspace_lib.__main__":
        return len(WINGS)
    second = room.split(".")[1]
    return WINGS.index(second) if second in WINGS else 0


@pytest.mark.parametrize("room", ROOMS)
def test_a_wing_uses_only_wings_below_it(room: str) -> None:
    above = [used for used in rooms_used_by(room) if floor_of(used) > floor_of(room)]
    assert not above, f"{room} imports {above[0]}, which stands above it"


def test_imports_only_go_down() -> None:
    front = "subspace_lib.__init__"
    TopologicalSorter({room: rooms_used_by(room) - {front} for room in ROOMS if room != front}).prepare()


@pytest.mark.parametrize(
    "room", [room for room in ROOMS if floor_of(room) == 0 and not room.endswith(("testing", "triton_kernels"))]
)
def test_the_library_needs_little(room: str) -> None:
    used = {name.partition(".")[0] for name in imports_of(room)}
    assert used - sys.stdlib_module_names - {"subspace_lib"} <= NEEDED


def test_the_library_works_where_nothing_else_is_installed() -> None:
    others = {re.match(r"[\w-]+", one)[0] for extra in PROJECT["optional-dependencies"].values() for one in extra}
    blocked = {name.replace("-", "_") for name in others - {"subspace_lib"}} | {"PIL", "IPython", "yaml", "pytest"}
    program = f"""
import sys
for name in {sorted(blocked)}:
    sys.modules[name] = None  # an import of it raises ImportError
import torch, subspace_lib as s
net = torch.nn.Linear(4, 2)
x, y = torch.randn(8, 4), torch.tensor([0, 1] * 4)
P = s.make_projection("one_hot", s.count_parameters(net), 3)
model = s.SubspaceModel(net, P)
s.fit(model, s.Data(train=(x, y), val=(x, y)), epochs=1, lr=0.1, batch_size=4)
print(s.diagnose(P), s.intrinsic_dimension({{1: [0.5], 2: [0.9]}}, [0.9]), s.MLP(4), s.get_profile("smoke"))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there_and_listed() -> None:
    import subspace_lib

    assert sorted(subspace_lib.__all__) == sorted(set(subspace_lib.__all__))
    assert all(hasattr(subspace_lib, name) for name in subspace_lib.__all__)
    assert set(subspace_lib.__all__) <= set(dir(subspace_lib))
    with pytest.raises(AttributeError, match="no attribute 'make_projektion'"):
        _ = subspace_lib.make_projektion


def test_the_map_in_the_readme_names_every_room() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    mapped = re.search(r"(?ms)^## The house$(.*?)^## ", text)[1]
    for path in ROOMS.values():
        if not path.name.startswith("__"):
            assert re.search(rf"\b{path.stem}(\.py)?\b", mapped), f"the map in README.md does not name {path.stem}"


def test_the_wheel_holds_every_folder_with_code() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in ROOMS.values()} <= set(packages)


def test_the_wheel_holds_every_file_beside_the_code() -> None:
    globs = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["subspace_lib"]
    held = {path for glob in globs for path in PACKAGE.glob(glob)}
    beside = {path for path in PACKAGE.rglob("*.*") if path.suffix not in (".py", ".pyc")}
    assert beside <= held, f"pyproject.toml leaves out {beside - held}"


def test_every_error_of_ours_crosses_processes() -> None:
    found = set()
    for room in sorted(set(ROOMS) - {"subspace_lib.__main__", "subspace_lib.projections.triton_kernels"}):
        module = importlib.import_module(room.removesuffix(".__init__"))
        found |= {one for one in vars(module).values() if isinstance(one, type) and issubclass(one, BaseException)}
    ours = {one for one in found if one.__module__.startswith("subspace_lib")}
    assert len(ours) >= 9
    for kind in ours:
        about = ("why", History()) if kind is DivergedError else ("why",)
        again = pickle.loads(pickle.dumps(kind(*about)))
        assert type(again) is kind and str(again) == "why" and vars(again) == vars(kind(*about))
