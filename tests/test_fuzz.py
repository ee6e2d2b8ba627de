"""Damaged records, packed data and addresses, drawn anew by hypothesis: every outcome is an error of ours, or right.

Checkpoints have theirs in test_checkpoint.py. SUBSPACE_FUZZ is the number of examples of each: 60 in the suite
(seconds), 20000 for about an hour.
"""

import base64
import io
import json
import math
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import EXAMPLES, damaged, fuzz
from hypothesis import given, settings
from hypothesis import strategies as st

from subspace_lib.study import records
from subspace_lib.study.records import (
    RecordVersionError,
    Spec,
    curves,
    read_records,
    results,
    write_record,
    write_table,
)
from subspace_lib.tasks import datasets

odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.integers(0, 3000).map(lambda digits: 10**digits),
    st.floats(),
    st.text(st.characters(codec=None), max_size=5),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.floats() | st.text(max_size=3), max_size=2),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for one file at a time."""
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    """A recorded run."""
    return curves("f3")[0]


def clear(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def read(folder: Path, *tables: Path) -> dict[str, Any]:
    """The records of a folder, with the damaged ones named and set aside; none where they are of another version."""
    try:
        known, faults = read_records(folder, *tables)
    except RecordVersionError:
        return {}
    assert len(faults) >= len(list(folder.glob("*.damaged")))
    return known


@fuzz
@given(data=st.data())
def test_damaged_bytes_of_a_record(folder: Path, record: dict[str, Any], data: st.DataObject) -> None:
    clear(folder)
    path = folder / f"{Spec(**record['spec']).key}.json"
    write_record(path, record)
    path.write_bytes(damaged(data, path.read_bytes()))
    assert list(read(folder).values()) in ([], [record])


@fuzz
@given(data=st.data())
def test_damaged_bytes_of_a_table(folder: Path, data: st.DataObject) -> None:
    clear(folder)
    whole = curves("f3")[:3]
    table = folder / "f3.jsonl"
    write_table(table, whole)
    table.write_bytes(damaged(data, table.read_bytes()))
    known = read(folder, table)
    assert all(one in whole for one in known.values())


@fuzz
@given(data=st.data())
def test_sealed_records_with_odd_fields(folder: Path, record: dict[str, Any], data: st.DataObject) -> None:
    """What is taken in goes through the table and comes back; what would not is refused."""
    clear(folder)
    changed = json.loads(json.dumps(record))
    for _ in range(data.draw(st.integers(1, 2))):
        part = changed[data.draw(st.sampled_from(["spec", "result"]))]
        field = data.draw(st.sampled_from(sorted(part)) | st.text(max_size=3))
        if data.draw(st.booleans()):
            part.pop(field, None)
        else:
            part[field] = data.draw(odd)
    write_record(folder / "a.json", changed)
    try:
        record = records.read_record((folder / "a.json").read_text(encoding="utf-8"), "a.json")
    except records.DamagedRecordError:
        assert read(folder) == {}
        return
    key = Spec(**record["spec"]).key
    (folder / "a.json").replace(folder / f"{key}.json")
    known = read(folder)
    assert list(known) == [key]
    write_table(folder / "odd.jsonl", known.values())
    assert [json.dumps(one) for one in curves("odd", folder)] == [json.dumps(one) for one in known.values()]
    [row] = results("odd", folder)
    assert row["seed"] == record["spec"]["seed"] and row["dataset"] == record["result"]["dataset"]


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        *(("spec", "epochs", True), ("result", "steps", 2**63), ("result", "device", "\ud800")),
        *(("result", "torch", "2\n"), ("result", "val_loss", math.nan), ("result", "train_loss", ["1"])),
        ("result", "val_loss_curve", [math.inf]),
    ],
)
def test_what_no_table_can_hold_is_refused(
    folder: Path, record: dict[str, Any], part: str, name: str, value: object
) -> None:
    write_record(folder / "a.json", record | {part: record[part] | {name: value}})
    with pytest.raises(records.DamagedRecordError, match=f"a.json has .* as '{name}' in '{part}'"):
        records.read_record((folder / "a.json").read_text(encoding="utf-8"), "a.json")


def packed(**changes: Any) -> bytes:
    """A small packed MNIST, with other arrays in some places; None leaves one out."""
    images = np.arange(5 * 28 * 28, dtype=np.uint8).reshape(5, 28, 28)
    labels = images[:, 0, 0] % 10
    arrays = dict(zip(datasets.KEYS, (images, labels, images, labels), strict=True))
    file = io.BytesIO()
    np.savez(file, **{name: array for name, array in (arrays | changes).items() if array is not None})
    return file.getvalue()


def outcome(path: Path) -> dict[str, Any] | None:
    """The arrays of a packed file; None if it was set aside with a warning, or left where it is as another's."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            arrays = datasets._read_or_set_aside(path, datasets.KNOWN["mnist"])
        except ValueError as error:
            assert "is whole, but no packed MNIST file" in str(error) and path.exists() and not said
            return None
    assert (arrays is None) == any("is not a packed MNIST file" in str(one.message) for one in said)
    assert path.exists() == (arrays is not None)
    return arrays


@fuzz
@given(data=st.data())
def test_damaged_bytes_of_a_packed_file(folder: Path, data: st.DataObject) -> None:
    clear(folder)
    path = folder / "mnist.npz"
    path.write_bytes(packed())
    right = outcome(path)
    path.write_bytes(damaged(data, path.read_bytes()))
    arrays = outcome(path)
    assert arrays is None or all(np.array_equal(arrays[key], right[key]) for key in right)


ODD_ARRAYS = st.one_of(
    st.none(),
    st.sampled_from([np.float16, np.int64, np.bool_, np.complex64, object, "U3", "M8[s]"]).map(
        lambda kind: np.zeros((5, 28, 28)).astype(kind)
    ),
    st.lists(st.integers(0, 30), max_size=4).map(lambda shape: np.zeros(shape, np.uint8)),
    st.integers(0, 255).map(lambda label: np.full(5, label, np.uint8)),
)


@fuzz
@given(name=st.sampled_from(datasets.KEYS), array=ODD_ARRAYS)
def test_packed_files_with_odd_arrays(folder: Path, name: str, array: Any) -> None:
    clear(folder)
    path = folder / "mnist.npz"
    path.write_bytes(packed(**{name: array}))
    outcome(path)


@pytest.mark.parametrize("rows", [10**6, 10**9, 10**15, -1, 2**63])
def test_a_packed_file_that_claims_more_than_it_has(folder: Path, rows: int) -> None:
    clear(folder)
    path = folder / "mnist.npz"
    with zipfile.ZipFile(io.BytesIO(packed())) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "train_images.npy":
                header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({rows}, 28, 28), }}"
                content = content[:10] + header.encode().ljust(117) + b"\n" + content[128:]
            new.writestr(name, content)
    assert outcome(path) is None


LAB = Path(records.__file__).parents[1] / "press" / "lab"
READ = """
([page, engine, network]) => {
  const root = document.querySelector("div"), here = { hash: "" };
  const [Laboratory, DAMAGED] = new Function("location", page + "; return [Laboratory, DAMAGED];")(here);
  const wordOf = new Function(engine + "; const JOBS = {};" + network + "; return wordOf;")();
  window.open_all = cases => cases.map(([hash, text, bits, d]) => {
    here.hash = hash;
    const lab = new Laboratory(root);
    lab.field("d", "d", [100, 200], 100);
    lab.field("family", "family", ["hadamard", "dense"], "dense", { kind: "radio" });
    const z = wordOf(text, bits, d);
    return [lab.complaint === DAMAGED, lab.complaint, lab.value("d"), lab.value("family"), z && Array.from(z)];
  });
}
"""


@pytest.fixture(scope="module")
def addresses(chromium: str) -> Any:
    """A page that reads many addresses at once as the laboratory does."""
    from playwright.sync_api import sync_playwright

    from subspace_lib.press.pages import FLAGS

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page()
        page.set_content('<div class="subspace-lab" data-lab="plane"><template class="setup">{}</template></div>')
        page.evaluate(
            READ, [(LAB / name).read_text(encoding="utf-8") for name in ("page.js", "engine.js", "network.js")]
        )
        yield page
        browser.close()


RIGHT = "#lab=plane&v=1&n=1&d=200&family=hadamard"
LINKS = st.one_of(
    st.builds(
        lambda place, length, new: RIGHT[:place] + new + RIGHT[place + length :],
        st.integers(0, len(RIGHT)),
        st.integers(0, 9),
        st.text(max_size=4),
    ),
    st.lists(
        st.tuples(
            st.sampled_from(["lab", "v", "n", "d", "family", "__proto__"]), st.text("0123456789-.e%&=<>a", max_size=6)
        ),
        max_size=6,
    ).map(lambda pairs: "#" + "&".join(f"{name}={value}" for name, value in pairs)),
    st.integers(0, 30_000).map(lambda length: RIGHT + "0" * length),
    st.text(max_size=20).map("#lab={}".format),
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, str, int, int]:
    """An address, and the letters of a z with b bits a number and d of them: of the right length, or any."""
    bits, d = draw(st.sampled_from([1, 2, 3, 4, 5, 6, 8, 32])), draw(st.sampled_from([10, 100, 2000]))
    length = 4 + -(-d * bits // 8) + draw(st.sampled_from([0, 0, 0, 1, -1]))
    written = base64.urlsafe_b64encode(draw(st.binary(min_size=5, max_size=9)).ljust(length, b"7")[:length]).decode()
    return draw(LINKS), draw(st.just(written.rstrip("=")) | st.text("ABwxz019-_=+/ %é", max_size=40)), bits, d


@pytest.mark.browser
def test_a_right_address_is_read(addresses: Any) -> None:
    letters = base64.urlsafe_b64encode(b"\x3f\x80\x00\x00\xff\x00").decode().rstrip("=")  # range 1, ten levels
    [(damaged, said, d, family, z)] = addresses.evaluate("cases => open_all(cases)", [(RIGHT, letters, 1, 10)])
    assert (damaged, said, d, family) == (False, "", 200, "hadamard")
    assert len(z) == 10 and len(set(z[:8])) == len(set(z[8:])) == 1 and z[0] > z[9]


@pytest.mark.browser
@settings(fuzz, max_examples=max(1, EXAMPLES // 4))
@given(cases=st.lists(cases(), min_size=20, max_size=40))
def test_addresses_of_the_laboratory(addresses: Any, cases: list[tuple[str, str, int, int]]) -> None:
    """Each gives an allowed set-up, and the usual one where it is not plainly another; each z has d finite numbers."""
    cases = [(link.encode("utf-8", "ignore").decode(), *rest) for link, *rest in cases]
    for (link, _, _, columns), (harmed, said, d, family, z) in zip(
        cases, addresses.evaluate("cases => open_all(cases)", cases), strict=True
    ):
        assert harmed or said == ""
        assert d in (100, 200) and family in ("hadamard", "dense")
        if not link.startswith("#lab="):
            assert (harmed, d, family) == (False, 100, "dense")
        assert z is None or (len(z) == columns and all(isinstance(one, int | float) for one in z))
