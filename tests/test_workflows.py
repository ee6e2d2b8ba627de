"""The workflows: what a schema and a linter can know about them, and what this book promises of them."""

import re
import subprocess
import sysconfig
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".github" / "workflows"
WORKFLOWS = {path.name: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yml"))}


def run(*command: str) -> None:
    program = Path(sysconfig.get_path("scripts"), command[0])
    done = subprocess.run([str(program), *command[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_they_fit_the_schemas() -> None:
    run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *map(str, FOLDER.glob("*.yml")))
    run("check-jsonschema", "--builtin-schema", "vendor.dependabot", str(ROOT / ".github" / "dependabot.yml"))


def test_the_linter_finds_nothing() -> None:
    run("zizmor", "--offline", "--no-progress", str(ROOT / ".github"))


@pytest.mark.parametrize("name", WORKFLOWS)
def test_actions_are_pinned_and_permissions_are_least(name: str) -> None:
    assert WORKFLOWS[name]["permissions"] == {}
    used = re.findall(r"uses: (.+)", (FOLDER / name).read_text())
    assert all(re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action) for action in used), used
    for job in WORKFLOWS[name]["jobs"].values():
        allowed = {"contents": "read"}
        if any("deploy-pages" in step.get("uses", "") for step in job["steps"]):
            allowed = {"pages": "write", "id-token": "write"}
        elif any("git push" in step.get("run", "") for step in job["steps"]):
            assert len(job["steps"]) == 2, "what may write runs nothing that was installed"
            allowed = {"contents": "write"}
        assert job["permissions"] in ({}, allowed)
        assert job["timeout-minutes"] <= 120


def test_an_action_has_one_version() -> None:
    used = {line for name in WORKFLOWS for line in re.findall(r"uses: (\S+)", (FOLDER / name).read_text())}
    assert len(used) == len({line.partition("@")[0] for line in used})


def test_a_gpu_is_only_used_where_there_is_one_and_a_maintainer_said_so() -> None:
    jobs = WORKFLOWS["gpu.yml"]["jobs"]
    assert WORKFLOWS["gpu.yml"][True]["pull_request"] == {"types": ["labeled"]}
    assert "pull_request_target" not in (FOLDER / "gpu.yml").read_text()
    condition = jobs["execute"]["if"]
    assert condition.startswith("vars.GPU_RUNNER != '' && ")
    assert "github.event_name != 'pull_request' || github.event.label.name == 'gpu'" in condition
    assert jobs["execute"]["runs-on"] == "${{ vars.GPU_RUNNER }}"
    assert jobs["deploy"]["if"].startswith("github.event_name != 'pull_request'")


@pytest.mark.parametrize("kind", ["pdf", "epub"])
@pytest.mark.parametrize(("name", "job"), [("publish.yml", "build"), ("gpu.yml", "execute")])
def test_whoever_publishes_lays_the_book_beside_its_pages_before_they_are_handed_on(
    name: str, job: str, kind: str
) -> None:
    steps = WORKFLOWS[name]["jobs"][job]["steps"]
    made = re.compile(rf"\b{kind}\b.* && cp .*_build/\*\.{kind}\b.* _build/html")
    [copied] = [i for i, step in enumerate(steps) if made.search(step.get("run", ""))]
    [handed] = [i for i, step in enumerate(steps) if "upload-pages-artifact" in step.get("uses", "")]
    assert copied < handed
    assert "continue-on-error" not in steps[copied], "the front page links to it"


def test_updates_leave_jupyter_book_below_2() -> None:
    updates = yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text())["updates"]
    ignored = [one for update in updates for one in update.get("ignore", [])]
    assert {"dependency-name": "jupyter-book", "versions": [">=2"]} in ignored


def test_every_system_that_a_reader_may_have_is_tried() -> None:
    job = WORKFLOWS["ci.yml"]["jobs"]["other-systems"]
    assert job["strategy"]["matrix"]["system"] == ["windows-latest", "macos-latest"]
    assert job["runs-on"] == "${{ matrix.system }}"
    run = [step["run"] for step in job["steps"] if "run" in step]
    assert run[1:] == ['python -m pytest -n 2 -m "not browser"', "python -m subspace_lib book --profile smoke"]
    assert not any(word in " ".join(run) for word in ("make ", "/bin", "$(", "source ")), "what each shell understands"
