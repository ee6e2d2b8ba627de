"""The chapters: which there are, what each depends on, and what is recorded of its execution."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from subspace_lib.processes import Unfinished

PARAMETER = "PROFILE"
LIBRARY = "subspace_lib"
RECORD: dict[str, Any] = dict.fromkeys(("profile", "device", "date", "commit"), str)
RECORD |= {"versions": dict, "seconds": (int, float), "standins": list}
"""What is noted down of an executed chapter, beside its digest, and of which type."""


class BookError(Unfinished):
    """A chapter failed, or the pages did not build; the message says which one and why."""


def book_of(root: Path) -> Path:
    """The folder of the chapters in a checkout.

    Raises
    ------
    ValueError
        If this is none.
    """
    if not (root / "book" / "_toc.yml").is_file():
        raise ValueError(f"no book/_toc.yml in {root}; this command works in a checkout of the repository")
    return root / "book"


def chapter_names(book: Path) -> list[str]:
    """The notebooks of the table of contents, in its order; its root, the front page, comes first.

    Raises
    ------
    ValueError
        If it cannot be read, or names what is not there.
    """

    def files(node: Any) -> Iterable[str]:
        if isinstance(node, dict):
            yield from [node[key] for key in ("root", "file") if key in node]
            yield from (name for value in node.values() for name in files(value))
        elif isinstance(node, list):
            yield from (name for item in node for name in files(item))

    names = list(files(read_yaml(book / "_toc.yml")))
    if not names:
        raise ValueError("book/_toc.yml names no page; the front page stands in its line `root: ...`")
    for name in names:
        if not any((book / f"{name}{ending}").is_file() for ending in (".ipynb", ".md")):
            raise ValueError(f"book/_toc.yml names {name!r}, but book/ has no {name}.ipynb or {name}.md; add one")
    return [name for name in names if (book / f"{name}.ipynb").is_file()]


KINDS: dict[str, Any] = {"title": str, "author": str, "copyright": str, "html": dict, "sphinx": dict, "parse": dict}
KINDS |= {"bibtex_bibfiles": list, "exclude_patterns": list}
"""What we read of ``_config.yml``, and of which type."""


def configuration(root: Path, *needed: str) -> dict[str, Any]:
    """What ``_config.yml`` of a checkout says.

    Raises
    ------
    ValueError
        If it is no YAML, something ``needed`` is missing, or what we read is of another type; the message names it.
    """
    path = root / "_config.yml"
    about = read_yaml(path)
    for name, kind in KINDS.items():
        if (name in needed or name in about) and not isinstance(about.get(name), kind):
            said = repr(about[name]) if name in about else "nothing"
            raise ValueError(f"{path} says {said} as {name!r}, where a {kind.__name__} belongs")
    return about


def check_apart(folder: Path, book: Path) -> None:
    """Refuse to write notebooks where the chapters themselves are.

    Raises
    ------
    ValueError
        If that is the folder.
    """
    if folder.resolve() == book.resolve():
        raise ValueError(f"{folder} holds the chapters themselves; choose another folder")


def read_yaml(path: Path) -> dict[str, Any]:
    """The names and values of a file of YAML.

    Raises
    ------
    ValueError
        If it is none, or refers to itself; the message names it.
    """
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        json.dumps(found, default=str)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not YAML of names and values")
    return found


def read_notebook(path: Path) -> dict[str, Any]:
    """The notebook as plain dictionaries.

    Raises
    ------
    ValueError
        If it is none; the message names it.
    """
    try:
        notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        notebook["metadata"].keys(), notebook["cells"][0]
        for cell in notebook["cells"]:
            cell["cell_type"], "".join(cell["source"]), [*cell["metadata"].get("tags", [])]
            "".join([caption_of(cell), cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not a notebook: {type(error).__name__}: {error}") from None
    return notebook


def caption_of(cell: Mapping[str, Any]) -> str:
    """The caption of the figure that a cell draws; empty if it has none."""
    caption: str = cell["metadata"].get("mystnb", {}).get("figure", {}).get("caption", "")
    return caption


def is_injected(cell: Mapping[str, Any]) -> bool:
    """Whether papermill put the cell in to set the parameters."""
    return "injected-parameters" in cell["metadata"].get("tags", [])


def check_parameters(chapter: Path) -> None:
    """Refuse a chapter without PROFILE: papermill would only warn, and the profile change nothing.

    Raises
    ------
    ValueError
        If no cell tagged ``parameters`` sets it, or the file is no notebook.
    """
    cells = read_notebook(chapter)["cells"]
    parameters = [_tree("".join(cell["source"])) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    names = {node.id for tree in parameters for node in ast.walk(tree) if isinstance(node, ast.Name)}
    if PARAMETER not in names:
        raise ValueError(f"chapter {chapter.stem} has no cell tagged 'parameters' that sets {PARAMETER}")


def record_of(executed: Path, name: str) -> dict[str, Any] | None:
    """What was recorded when a chapter was last executed into this folder; None if that is not known."""
    try:
        record = read_notebook(executed / f"{name}.ipynb")["metadata"]["subspace"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return record if is_record(record) else None


def is_record(value: Any) -> bool:
    """Whether it says all that a build notes down of an executed chapter."""
    return isinstance(value, dict) and all(isinstance(value.get(name), kind) for name, kind in RECORD.items())


def digest_of(root: Path, name: str, circumstances: Iterable[str]) -> str:
    """One word that changes when anything changes that a chapter's outputs depend on.

    That is its text, the modules of the library that it imports, directly or through others, and the tables of data/.
    """
    chapter = root / "book" / f"{name}.ipynb"
    files = [chapter, *modules_of(root, chapter)]
    for folder in ("results", "published"):
        files += [path for path in sorted((root / "data" / folder).rglob("[!.]*")) if path.is_file()]
    digest = hashlib.sha256("\n".join(circumstances).encode())
    for path in files:
        digest.update(f"\n{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def modules_of(root: Path, chapter: Path) -> list[Path]:
    """The files of the library that a chapter imports, directly or through others, found in their source."""
    code = [cell for cell in read_notebook(chapter)["cells"] if cell["cell_type"] == "code"]
    waiting = [path for cell in code for path in _imported(root, _tree("".join(cell["source"])))]
    seen: set[tuple[Path, bool]] = set()
    while waiting:
        path, follow = here = waiting.pop()
        if follow and here not in seen:
            waiting += _imported(root, _parsed(path, path.stat().st_mtime_ns))
        seen.add(here)
    return sorted({path for path, _ in seen})


def _imported(root: Path, tree: ast.Module) -> Iterator[tuple[Path, bool]]:
    """What a piece of source imports of the library; for each file, whether what it imports itself counts too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _module(root, alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield from _name(root, node.module, alias.name)


def _module(root: Path, dotted: str) -> Iterator[tuple[Path, bool]]:
    """A module, and the packages that it lies in; of the library itself, with every name in it, all."""
    if dotted == LIBRARY:
        yield from ((path, False) for path in sorted((root / LIBRARY).rglob("*.py")))
    elif dotted.startswith(f"{LIBRARY}."):
        path = root.joinpath(*dotted.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        packages = [folder / "__init__.py" for folder in path.parents if folder.is_relative_to(root / LIBRARY)]
        yield from ((package, False) for package in packages if package.is_file())
        if file.is_file():
            yield file, True
            beside = [*sorted(path.glob("*.*s")), path.with_suffix(".c")]  # the laboratory's .js and .css; kernels
            yield from ((one, False) for one in beside if one.is_file())


def _name(root: Path, module: str, name: str) -> Iterator[tuple[Path, bool]]:
    """A name out of a module: where a package only hands it on, from where it comes."""
    path = root.joinpath(*module.split("."))
    if module.split(".")[0] != LIBRARY:
        return
    if (path / name).is_dir() or (path / f"{name}.py").is_file():
        yield from _module(root, f"{module}.{name}")
    elif (package := path / "__init__.py").is_file():
        yield package, False
        tree = _parsed(package, package.stat().st_mtime_ns)
        handed = [
            n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and name in {a.name for a in n.names}
        ]
        assigned = {
            n.id for node in tree.body if isinstance(node, ast.Assign) for n in node.targets if isinstance(n, ast.Name)
        }
        for source in handed or [module] * (name not in assigned):
            yield from _module(root, source or module)
    else:
        yield from _module(root, module)


@functools.lru_cache(maxsize=256)
def _parsed(path: Path, changed: int) -> ast.Module:
    return _tree(path.read_text(encoding="utf-8"))


def _tree(source: str) -> ast.Module:
    """The syntax of a cell or module; of what is no Python, a magic of IPython for one, that it may import all."""
    try:
        return ast.parse(source)
    except SyntaxError:
        return ast.parse(f"import {LIBRARY}")
