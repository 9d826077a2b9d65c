"""What workflows, Dockerfiles and locks promise; each check has a twin that is seen to fail."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from moola.specs.machine import GpuMachine
from tests.tools import tool

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
DOCKERFILES = [ROOT / "Dockerfile.cpu", ROOT / "Dockerfile.gpu"]
LOCK_FOLDER = ROOT / "deploy" / "image" / "locks"
LOCKS = sorted(LOCK_FOLDER.glob("*.txt"))
PINNED = re.compile(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$")


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


# --- workflows ------------------------------------------------------------------------------------


def workflow_faults(text: str) -> list[str]:
    """What a workflow does that ours must not."""
    workflow: dict[str, Any] = yaml.safe_load(text)
    uses = [line.strip() for line in text.splitlines() if "uses:" in line]
    faults = [f"not pinned: {line}" for line in uses if not PINNED.search(line)]
    if workflow.get("permissions") != {}:
        faults.append("permissions are not {} at the top")
    if "concurrency" not in workflow:
        faults.append("no concurrency group")

    on_pull_request = "pull_request" in workflow[True]  # YAML 1.1 reads `on` as true
    for name, job in workflow["jobs"].items():
        if "timeout-minutes" not in job:
            faults.append(f"{name}: no timeout")
        if "permissions" not in job:
            faults.append(f"{name}: no permissions of its own")
        scripts = [step.get("run", "") for step in job["steps"]]
        faults += [f"{name}: an expression in a script" for script in scripts if "${{" in script]
        if on_pull_request and "secrets." in str(job):
            faults.append(f"{name}: a secret on pull requests")
    return faults


@pytest.mark.parametrize("path", WORKFLOWS, ids=names(WORKFLOWS))
def test_a_workflow_keeps_the_rules(path: Path) -> None:
    assert workflow_faults(path.read_text()) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (r"@[0-9a-f]{40} # v6.0.2", "@v6", "not pinned"),
        (r"permissions: \{\}", "permissions: write-all", "at the top"),
        (r"concurrency:\n.*\n.*\n", "", "concurrency"),
        (r" +timeout-minutes: 20\n", "", "lint: no timeout"),
        (r"    permissions:\n      contents: read\n", "", "permissions of its own"),
        (r"run: bash .ci/run lint", "run: echo ${{ github.head_ref }}", "expression in a script"),
        (
            r"run: bash .ci/run lint",
            "run: x\n        env: {A: '${{ secrets.A }}'}",
            "secret on pull requests",
        ),
    ],
)
def test_a_workflow_that_breaks_a_rule_is_caught(old: str, new: str, fault: str) -> None:
    text, n_changed = re.subn(old, new, (ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert n_changed
    assert any(fault in line for line in workflow_faults(text))


def test_zizmor_catches_an_unpinned_action(tmp_path: Path) -> None:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    unpinned = tmp_path / "ci.yml"
    for content, exit_codes in (
        (text, {0}),
        (re.sub(r"@[0-9a-f]{40} # ", "@", text), set(range(10, 15))),
    ):
        unpinned.write_text(content)
        command = [tool("zizmor"), "--offline", "--no-progress", str(unpinned)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode in exit_codes, done.stdout
    assert "unpinned-uses" in done.stdout


def test_release_notes_are_a_section_of_the_changelog() -> None:
    command = ["bash", str(ROOT / ".ci" / "run"), "notes"]
    notes = subprocess.run(
        [*command, "vUnreleased"], capture_output=True, text=True, check=True
    ).stdout
    assert "### Added" in notes
    assert "## [" not in notes

    missing = subprocess.run([*command, "v0.0.0"], capture_output=True, text=True, check=False)
    assert missing.returncode == 1
    assert "no section [0.0.0]" in missing.stderr


def test_without_an_engine_ci_says_loudly_what_was_not_done(tmp_path: Path) -> None:
    """A copy of the script, with nothing beside its checkout and no engine that answers."""
    project = tmp_path / "project"
    for name in (".ci/images", "tests/shared.py"):
        (project / name).parent.mkdir(parents=True)
        shutil.copy(ROOT / name, project / name)

    environ = {**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/nothing.sock"}
    command = ["bash", str(project / ".ci" / "images")]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert "*** NOT DONE: the images" in done.stdout
    assert "tools/containers is not there" in done.stderr


# --- Dockerfiles ----------------------------------------------------------------------------------


def last_stage_user(text: str) -> str | None:
    """The user that the image of a Dockerfile runs as; None if it says none, which is root."""
    users = re.findall(r"^USER (\S+)", text[text.rindex("\nFROM ") :], flags=re.MULTILINE)
    return users[-1] if users else None


def is_plain_user(user: str | None) -> bool:
    """A number, so that a platform can see that it is not 0."""
    return user is not None and re.fullmatch(r"[1-9]\d*:[1-9]\d*", user) is not None


def installs_without_hashes(text: str) -> list[str]:
    """Each `pip install` that neither checks hashes nor installs the wheel just built, alone."""
    joined = text.replace("\\\n", " ")
    installs = re.findall(r"pip install[^&\n]*", joined)
    own_wheel = re.compile(r"--offline --no-deps .*/wheel/moola-\*\.whl\s*$")
    return [
        install
        for install in installs
        if "--require-hashes" not in install and not own_wheel.search(install)
    ]


def unpinned_bases(text: str) -> list[str]:
    """Bases, through ARG, that are neither a digest nor `scratch` nor a stage of the same file."""
    defaults = dict(re.findall(r"^ARG (\w+)=(\S+)", text, flags=re.MULTILINE))
    bases = re.findall(r"^FROM (\S+)", text, flags=re.MULTILINE)
    stages = set(re.findall(r"^FROM \S+ AS (\w+)", text, flags=re.MULTILINE)) | {"scratch"}
    resolved = [defaults.get(base.strip("${}"), base) for base in bases]
    foreign = [base for base in resolved if base not in stages]
    return [base for base in foreign if not re.search(r":.+@sha256:[0-9a-f]{64}$", base)]


@pytest.mark.parametrize("path", DOCKERFILES, ids=names(DOCKERFILES))
def test_a_dockerfile_keeps_the_rules(path: Path) -> None:
    text = path.read_text()
    assert is_plain_user(last_stage_user(text))
    assert unpinned_bases(text) == []
    assert installs_without_hashes(text) == []
    assert re.search(r'^ENTRYPOINT \["', text, flags=re.MULTILINE)


def test_a_dockerfile_that_leaves_root_on_is_caught(tmp_path: Path) -> None:
    text = (ROOT / "Dockerfile.cpu").read_text()
    assert not is_plain_user(last_stage_user(text.replace("USER 10001:10001\n", "")))
    rooted = text.replace("USER 10001:10001\n", "USER root\n")
    assert not is_plain_user(last_stage_user(rooted))
    (tmp_path / "Dockerfile").write_text(rooted)
    done = subprocess.run(
        [tool("hadolint"), str(tmp_path / "Dockerfile")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "DL3002" in done.stdout


def test_a_base_without_digest_and_an_install_without_hashes_are_caught() -> None:
    text = (ROOT / "Dockerfile.gpu").read_text()
    assert (
        unpinned_bases(re.sub(r"@sha256:[0-9a-f]{64}", "", text))
        == ["python:3.11-slim-bookworm"] * 2
    )
    assert len(installs_without_hashes(text.replace("--require-hashes ", "", 1))) == 1
    assert len(installs_without_hashes(text.replace("--offline --no-deps ", ""))) == 1


def of_any_job(text: str) -> str:
    """A Dockerfile from behind the packages on, less what is its job's own and what a GPU needs."""
    text = re.sub(r" +NVIDIA_\w+=.*\n|ARG CUDA\n", "", text[text.index("FROM packages AS build") :])
    text = re.sub(r' +&& MOOLA_WORK=\S+ python -B -c "import moola\.models\.\w+" .*\n', "", text)
    return re.sub(r'MOOLA_JOB=\w+ MOOLA_SPEC=\S+|title="[^"]+"', "", text)


def test_the_two_dockerfiles_differ_only_in_packages_and_job() -> None:
    cpu, gpu = (path.read_text() for path in DOCKERFILES)
    assert of_any_job(cpu) == of_any_job(gpu)
    assert of_any_job(cpu) != of_any_job(gpu.replace("10001", "10002"))  # the twin


def test_only_what_is_named_goes_into_an_image() -> None:
    lines = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and line[0] != "#"
    ]
    assert lines[0] == "*"
    sources = {"!pyproject.toml", "!README.md", "!LICENSE", "!moola"}  # what a wheel is built from
    assert {line for line in lines if line[0] == "!"} == {*sources, "!jobs/smoke", "!deploy/image"}


# --- locks ----------------------------------------------------------------------------------------


def test_there_are_locks_and_workflows() -> None:
    """Or the tests of each would be none."""
    assert len(LOCKS) == 8
    assert len(WORKFLOWS) == 5


@pytest.mark.parametrize("path", LOCKS, ids=names(LOCKS))
def test_a_lock_pins_each_package_by_hash_and_names_no_registry(path: Path) -> None:
    text = path.read_text()
    packages = re.split(r"\n(?=\S)", text.strip())
    assert packages
    assert all(re.match(r"[\w.-]+==\S+", each) and "--hash=sha256:" in each for each in packages)
    assert "://" not in text


def other_digit(digest: "re.Match[str]") -> str:
    return "sha256:1" if digest[1] == "0" else "sha256:0"


def test_a_tampered_lock_is_refused(tmp_path: Path) -> None:
    """One digit of a hash changed: the installer that both images use does not install."""
    cpu_lock = (LOCK_FOLDER / "cpu.txt").read_text()
    (entry,) = re.findall(r"^six==.*(?:\n +--hash.*)+", cpu_lock, re.MULTILINE)
    lock = tmp_path / "lock.txt"

    def install() -> "subprocess.CompletedProcess[str]":
        target = ("--target", str(tmp_path / "to"))
        command = [tool("uv"), "pip", "install", "--require-hashes", "--no-cache", *target]
        return subprocess.run(
            [*command, "-r", str(lock)], capture_output=True, text=True, check=False
        )

    lock.write_text(entry.rstrip(" \\"))
    if install().returncode:
        pytest.skip("no package index answers")

    shutil.rmtree(tmp_path / "to")
    lock.write_text(re.sub(r"sha256:(.)", other_digit, lock.read_text()))
    refused = install()
    assert refused.returncode
    assert "hash mismatch" in refused.stderr.lower()
    assert not list(tmp_path.glob("to/six.py"))


def test_the_gpu_image_the_locks_and_the_spec_speak_of_the_same_cuda() -> None:
    """The default torch is for that CUDA, and hosts are asked for its first version or newer."""
    dockerfile = (ROOT / "Dockerfile.gpu").read_text()
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)$", dockerfile, re.MULTILINE))
    lock = (LOCK_FOLDER / f"torch-{arguments['TORCH']}.txt").read_text()
    (runtime,) = re.findall(r"^nvidia-cuda-runtime(?:-cu\d+)?==(\d+)\.(\d+)", lock, re.MULTILINE)

    assert arguments["TORCH"] == "cu" + "".join(runtime)
    assert arguments["CUDA"] == f"{runtime[0]}.0" == GpuMachine().min_cuda
    assert shipped_min_cuda() == GpuMachine().min_cuda


def shipped_min_cuda() -> str:
    spec = yaml.safe_load((ROOT / "moola" / "jobs" / "train.yaml").read_text())
    return str(spec["machine"]["gpu"]["min_cuda"])


# --- what is built --------------------------------------------------------------------------------

DOCKER = """#!/usr/bin/env bash
printf '%s\\n' "$*" >> "$CALLS"
while [ $# -gt 0 ]; do
  [ "$1" != --metadata-file ] || echo '{"containerimage.digest": "sha256:ab"}' > "$2"
  shift
done
"""


@pytest.mark.parametrize("command", ["build", "push"])
def test_images_are_built_for_the_hosts_that_can_be_rented_wherever_it_is_done(
    tmp_path: Path, command: str
) -> None:
    docker = tmp_path / "docker"
    docker.write_text(DOCKER)
    docker.chmod(0o755)
    calls = tmp_path / "calls"
    names = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CALLS": str(calls),
        "REPOSITORY": "ghcr.io/me/moola",
    }

    script = ["bash", "deploy/image/build.sh", command, "cpu"]
    subprocess.run(script, cwd=ROOT, env={**os.environ, **names}, check=True, capture_output=True)
    lines = calls.read_text().splitlines()
    fetching = [line for line in lines if line.startswith(("buildx build", "pull"))]
    assert len(fetching) == (2 if command == "push" else 1)
    assert all("--platform linux/amd64" in line for line in fetching), lines
