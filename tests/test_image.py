"""The images, run as a rented machine would run them, against an S3 server on this machine.

`bash deploy/image/build.sh smoke cpu|gpu` runs these on the image it built. Without it, or without
an engine, they are skipped. The gpu image runs on its CPU fallback here; it computes its own
feature set first.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import moola
from moola.launch import docker
from moola.launch.settings import Settings
from moola.runs.protocol import STATUS, attempt_id_now, attempt_key
from moola.runs.reading import newest_checkpoint, read_file, read_manifest, run_state
from moola.runs.records import Manifest
from moola.runs.survey import newest_run
from moola.store import Store, open_store
from tests.fake_runpod import FakeRunpod, Pod
from tests.test_launch import Launcher

ROOT = Path(__file__).resolve().parents[1]
SMOKE = os.environ.get("MOOLA_SMOKE", "").split()  # set by deploy/image/build.sh: the images to try
JOB = {"cpu": "precompute", "gpu": "train"}
LARGEST_MB = {"cpu": 700}
DIGEST = "sha256:" + "ab" * 32


@pytest.fixture(scope="module", params=["cpu", "gpu"])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param not in SMOKE:
        pytest.skip(f"bash deploy/image/build.sh smoke {request.param} runs this")
    return str(request.param)


@pytest.fixture(scope="module")
def image(kind: str) -> docker.Image:
    return docker.find_image(f"moola:{kind}")


@pytest.fixture(scope="module")
def details(image: docker.Image) -> dict[str, Any]:
    return dict(json.loads(engine("image", "inspect", image.id).stdout)[0])


def engine(*args: str, exit_code: int = 0) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(["docker", *args], capture_output=True, text=True, check=False)
    assert done.returncode == exit_code, (
        f"docker {args} -> {done.returncode}\n{done.stdout}\n{done.stderr}"
    )
    return done


def container(
    image: docker.Image, *options: str, work: bool = True, command: tuple[str, ...] = ()
) -> list[str]:
    """`docker run` as a rented machine is, with the S3 server's variables by name.

    `options` come last, so that they prevail.
    """
    named = [part for key in sorted(os.environ) if key in AWS for part in ("--env", key)]
    volume = ["--mount", "type=volume,dst=/var/moola"] if work else []
    memory = ["--memory", "2g", "--memory-swap", "2g"]
    base = ["docker", "run", "--rm", *docker.LIMITS, *memory, "--network", "host"]
    return [*base, *volume, *named, *options, image.id, *command]


AWS = ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")


def run(command: list[str], exit_code: int = 0) -> str:
    """What a container printed, stderr behind stdout."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    output = done.stdout + done.stderr
    assert done.returncode == exit_code, f"exit {done.returncode}, not {exit_code}\n{output}"
    return output


def environment(**variables: str) -> list[str]:
    return [part for key, value in variables.items() for part in ("--env", f"{key}={value}")]


@pytest.fixture
def store(s3_url: str) -> Store:
    return open_store(s3_url)


@pytest.fixture
def features(kind: str, image: docker.Image, store: Store) -> None:
    """What the job of this image reads: to train, a feature set that the same image has made."""
    if JOB[kind] == "train":
        run(container(image, *environment(MOOLA_STORE=store.url, **as_job("precompute"))))


def as_job(job: str) -> dict[str, str]:
    return {"MOOLA_JOB": job, "MOOLA_SPEC": f"/app/jobs/smoke/{job}.yaml"}


# --- the job --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("features")
def test_the_job_commits_what_a_local_run_makes(
    kind: str, image: docker.Image, store: Store, tmp_path: Path
) -> None:
    """A plain user, nothing writable but its work, no capabilities: the bits of a local run."""
    job = JOB[kind]
    variables = environment(MOOLA_STORE=store.url, MOOLA_IMAGE_DIGEST=DIGEST, NUMBA_DEBUG_CACHE="1")
    output = run(container(image, *variables))
    if job == "precompute":
        assert "[cache] data loaded from" in output
    assert "[cache] data saved to" not in output  # nothing was compiled

    run_id = newest_run(store, job)
    assert run_id is not None
    manifest = read_manifest(store, run_id)
    assert manifest is not None
    provenance: dict[str, Any] = manifest.provenance
    labels = json.loads(engine("image", "inspect", image.id).stdout)[0]["Config"]["Labels"]
    assert provenance["moola"] == moola.__version__ == labels["org.opencontainers.image.version"]
    assert provenance["git_sha"] == labels["org.opencontainers.image.revision"] != ""
    assert provenance["image_digest"] == DIGEST

    local = local_manifest(job, tmp_path)
    if job == "precompute":
        assert local.run_id == run_id
        assert digests(manifest) == digests(local)
        return

    # A train run's id has its feature set's manifest in it, so the two differ.
    local_store = open_store(f"file://{tmp_path}/store")
    for path in ("metrics.json", "gates.json"):
        floats, rest = leaves(artifact(store, manifest, path))
        # Two builds of torch: float32 sums may differ in the last bits. What is counted may not.
        expected = (pytest.approx(floats, rel=1e-5, abs=1e-6), rest)
        assert expected == leaves(artifact(local_store, local, path))


def local_manifest(job: str, folder: Path) -> Manifest:
    """The smoke spec's run on this machine, in a store of its own."""
    environ = {
        **os.environ,
        "MOOLA_STORE": f"file://{folder}/store",
        "MOOLA_WORK": str(folder / "work"),
    }
    for each in ("precompute", "train") if job == "train" else ("precompute",):
        spec = str(ROOT / "jobs" / "smoke" / f"{each}.yaml")
        command = [sys.executable, "-m", "moola.jobs", each]
        subprocess.run(
            command, env={**environ, "MOOLA_SPEC": spec}, check=True, capture_output=True
        )
    store = open_store(environ["MOOLA_STORE"])
    run_id = newest_run(store, job)
    assert run_id is not None
    manifest = read_manifest(store, run_id)
    assert manifest is not None
    return manifest


def leaves(document: Any) -> tuple[dict[str, float], dict[str, Any]]:
    """({path: float}, {path: value of another kind}) of a JSON document."""
    floats: dict[str, float] = {}
    others: dict[str, Any] = {}
    todo = [("", document)]
    while todo:
        path, value = todo.pop()
        if isinstance(value, dict | list):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            todo += [(f"{path}.{name}", each) for name, each in items]
        elif isinstance(value, float):
            floats[path] = value
        else:
            others[path] = value
    return floats, others


def digests(manifest: Manifest) -> dict[str, str]:
    """Of each file."""
    return {entry.path: entry.sha256 for entry in manifest.files}


def artifact(store: Store, manifest: Manifest, path: str) -> Any:
    return json.loads(read_file(store, manifest, path))


def test_another_cpu_name_misses_the_compiled_functions(image: docker.Image) -> None:
    """The twin: compiling is seen where it happens, and does no harm on a read-only root."""
    variables = environment(NUMBA_CPU_NAME="x86-64-v2", NUMBA_DEBUG_CACHE="1")
    import_it = ("-c", "import moola.features.zigzag")
    output = run(container(image, *variables, "--entrypoint", "python", command=import_it))
    assert "[cache] data saved to" in output


def test_a_wrong_spec_exits_3_and_names_the_field(
    kind: str, image: docker.Image, store: Store, tmp_path: Path
) -> None:
    output = run(with_spec(image, store, tmp_path, f"job: {JOB[kind]}\nmoves: 3\n"), exit_code=3)
    assert "moves: Extra inputs are not permitted, got 3" in output
    assert "Traceback" not in output
    assert store.children("runs") == []


def with_spec(
    image: docker.Image, store: Store, folder: Path, text: str, *options: str
) -> list[str]:
    """A container that runs the spec `text`."""
    path = folder / "spec.yaml"
    path.write_text(text)
    path.chmod(0o644)
    folder.chmod(0o755)
    mount = ("--mount", f"type=bind,src={path},dst=/spec.yaml,readonly")
    return container(
        image, *mount, *environment(MOOLA_STORE=store.url, MOOLA_SPEC="/spec.yaml"), *options
    )


@pytest.mark.usefixtures("features")
def test_a_gpu_that_is_not_there_is_an_error_before_any_download(
    kind: str, image: docker.Image, store: Store, tmp_path: Path
) -> None:
    if kind != "gpu":
        pytest.skip("of the gpu image")
    if docker.gpus():
        pytest.skip("there is a GPU")
    spec = (ROOT / "jobs" / "smoke" / "train.yaml").read_text() + "device: cuda\n"
    output = run(with_spec(image, store, tmp_path, spec), exit_code=3)
    assert "device: cuda" in output
    assert "fetch features" not in output


def test_a_work_directory_that_cannot_be_written_is_named(
    image: docker.Image, store: Store
) -> None:
    output = run(container(image, *environment(MOOLA_STORE=store.url), work=False), exit_code=3)
    assert "MOOLA_WORK must be a directory" in output
    assert "Traceback" not in output


# --- its end --------------------------------------------------------------------------------------

# Specs that take long enough to be stopped in the middle, and the line that tells where that is.
LONG = {
    "precompute": (
        "job: precompute\nsynthetic: {start: 2025-01-06, end: 2025-03-28}\n",
        "upload features_11d.npy",
    ),
    "train": (
        "job: train\nlabels: {source: planted}\nmodel: {hidden_size: 32}\n"
        "training: {full_epochs: 500, patience_epochs: 500}\n",
        "full epoch 0",
    ),
}


@pytest.mark.usefixtures("features")
def test_sigterm_in_the_middle_ends_the_run_in_its_own_state(
    kind: str, image: docker.Image, store: Store, tmp_path: Path
) -> None:
    job = JOB[kind]
    name = f"moola-test-{kind}-{os.getpid()}"
    store.put("profile.json", b'{"part_mib": 5, "workers": 1}')  # many small steps
    text, line = LONG[job]
    spec = tmp_path / "spec.yaml"
    spec.write_text(text)
    run_id = submitted(job, store, spec)
    named = environment(MOOLA_STORE=store.url, MOOLA_RUN=run_id, MOOLA_ATTEMPT=attempt_id_now())
    command = container(image, *named, "--name", name)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        output = list(lines_until(process.stdout, line))
        engine("stop", "--time", "20", name)
        output += process.stdout.readlines()
    assert process.returncode == 143, "".join(output)
    state = run_state(store, run_id)
    assert (state.state, state.status and state.status.exit_code) == ("terminated", 143)
    assert read_manifest(store, run_id) is None
    if job == "train":
        assert newest_checkpoint(store, run_id) is not None


def lines_until(stream: Any, text: str) -> Iterator[str]:
    for line in stream:
        yield line
        if text in line:
            return
    raise AssertionError(f"the job never output {text!r}")


@pytest.mark.usefixtures("features")
def test_the_launcher_says_that_the_memory_limit_was_hit(
    kind: str, image: docker.Image, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = submitted(JOB[kind], store)
    settings = Settings(store=store.url, work=tmp_path, docker_memory="120m")
    exit_code = docker.run_to_end(settings, store, JOB[kind], run_id, image)
    output = " ".join(capsys.readouterr().err.split())
    assert exit_code not in (0, 125)
    state = run_state(store, run_id)
    assert "out of memory" in output
    assert "out of memory" in state.reason
    assert state.state != "committed"


def submitted(job: str, store: Store, spec: Path | None = None) -> str:
    """The id of a run of `spec` (the smoke spec), submitted by a process on this machine."""
    code = (  # no inputs, so that nothing is written into the work directory
        "from pathlib import Path\n"
        "from moola.jobs.prepare import submit_shipped\n"
        "from moola.store import open_store\n"
        f"print(submit_shipped({job!r}, open_store({store.url!r}), Path({str(ROOT)!r})))"
    )
    environ = {**os.environ, "MOOLA_SPEC": str(spec or ROOT / "jobs" / "smoke" / f"{job}.yaml")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("where", ["s3", "file"])
def test_the_launcher_sees_a_run_through(
    kind: str, image: docker.Image, where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """--on docker: to COMMIT in a bucket and in a folder, which stays its owner's."""
    if kind != "cpu":
        pytest.skip("the same for both; once is enough")
    url = request.getfixturevalue("s3_url") if where == "s3" else f"file://{tmp_path}/store"
    store = open_store(url)
    run_id = submitted(JOB[kind], store)
    settings = Settings(store=store.url, work=tmp_path / "work")
    assert docker.run_to_end(settings, store, JOB[kind], run_id, image) == 0
    manifest = read_manifest(store, run_id)
    assert manifest is not None
    assert manifest.provenance["image_digest"] == image.digest
    status = store.get(attempt_key(run_id, manifest.attempt_id, STATUS))
    assert json.loads(status)["state"] == "committed"
    if where == "file":
        assert {path.stat().st_uid for path in (tmp_path / "store").rglob("*")} == {os.getuid()}


@pytest.mark.usefixtures("features")
def test_a_rented_machine_runs_it_to_commit_and_ends_itself(
    kind: str, image: docker.Image, store: Store, s3_environment: dict[str, str], tmp_path: Path
) -> None:
    """The provider is a fake, its pods are containers of this image."""
    with FakeRunpod(command=lambda pod: rented(image, pod), cleanup=remove) as fake:
        keys = {"RUNPOD_API_BASE_URL": fake.url, "RUNPOD_API_KEY": fake.api_key}
        launch = Launcher(tmp_path, store.url, {**s3_environment, **keys})
        spec = str(ROOT / "jobs" / "smoke" / f"{JOB[kind]}.yaml")
        where = ("--on", "runpod", "--image", f"registry.example.com/moola@{DIGEST}", "--yes")
        where += ("--set", "machine.registry=of-the-account")  # so that the image is not looked up
        output = launch(
            JOB[kind], "--spec", spec, *where, *(("--set", "device=cpu") if kind == "gpu" else ())
        )
        run_id = newest_run(store, JOB[kind])
        assert f"committed {run_id}" in output
        assert fake.alive() == []
    manifest = read_manifest(store, str(run_id))
    assert manifest is not None
    assert manifest.provenance["image_digest"] == DIGEST


def rented(image: docker.Image, pod: Pod) -> list[str]:
    """A pod's container: the variables that the provider gives, by name."""
    names = [*pod.env, "RUNPOD_POD_ID", "RUNPOD_API_KEY", "RUNPOD_API_BASE_URL"]
    program, host = shutil.which("docker") or "docker", os.environ.get("DOCKER_HOST")
    options = ("--name", pod.id, *(part for name in names for part in ("--env", name)))
    return [program, *(("--host", host) if host else ()), *container(image, *options)[1:]]


def remove(pod: Pod) -> None:
    subprocess.run(
        ["docker", "rm", "--force", "--volumes", pod.id], capture_output=True, check=False
    )


# --- what is in it --------------------------------------------------------------------------------


def shell(image: docker.Image, script: str, *options: str) -> str:
    """The output of a shell script in the image, run without a network."""
    as_shell = ("--network", "none", "--entrypoint", "sh", *options)
    return engine("run", "--rm", *as_shell, image.id, "-c", script).stdout.strip()


def test_it_runs_as_a_fixed_number_that_owns_nothing_but_its_work(
    image: docker.Image, details: dict[str, Any]
) -> None:
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", details["Config"]["User"])
    assert shell(image, "id -u") == details["Config"]["User"].partition(":")[0]
    places = "/app /opt /usr /etc/passwd /var/moola"
    writable = shell(image, f"find {places} -xdev -writable ! -type l").split()
    assert writable[0] == "/var/moola"  # the twin: what is writable is found
    assert all(path.startswith("/var/moola") for path in writable)


def test_its_entry_point_is_the_supervisor_without_a_shell(details: dict[str, Any]) -> None:
    assert details["Config"]["Entrypoint"] == ["python", "-m", "moola.jobs.entry"]
    assert not details["Config"]["Cmd"]


def test_it_has_no_compiler_no_installer_cache_and_no_tests(image: docker.Image) -> None:
    assert shell(image, "command -v gcc cc g++ clang make uv || true") == ""
    caches = "find / -xdev \\( -path '*cache/pip' -o -path '*cache/uv' \\)"
    assert shell(image, caches, "--user", "0") == ""
    assert shell(image, "ls /app /app/jobs") == "/app:\njobs\nnumba\n\n/app/jobs:\nsmoke"
    assert shell(image, "command -v sh") != ""  # the twin: a tool that is there is found


def test_moola_is_installed_from_its_wheel(image: docker.Image) -> None:
    """As a package with its command; a folder of that name where a job works hides nothing."""
    assert "Usage: moola" in shell(image, "moola --help")
    hide = "mkdir moola && echo 'raise SystemExit(9)' > moola/__init__.py"
    where = "python -c 'import moola, sys; print(moola.__file__)'"
    path = "/opt/venv/lib/python3.11/site-packages/moola/__init__.py"
    assert shell(image, f"cd /var/moola && {hide} && {where}") == path
    assert shell(image, "ls /opt/venv/lib/*/site-packages | grep ^moola").split() == [
        "moola",
        f"moola-{moola.__version__}.dist-info",
    ]


def test_no_secret_is_in_its_history(image: docker.Image, details: dict[str, Any]) -> None:
    history = engine("history", "--no-trunc", "--format", "{{.CreatedBy}}", image.id).stdout
    text = history + json.dumps(details["Config"])
    assert "useradd" in text  # the history is there
    assert not re.search(r"(?i)secret_|token|password|AWS_|api_key|BEGIN CERTIFICATE", text)


def test_it_is_small_enough_and_torch_is_only_where_it_is_used(
    kind: str, image: docker.Image, details: dict[str, Any]
) -> None:
    size_mb = details["Size"] / 1e6
    assert size_mb < LARGEST_MB.get(kind, float("inf"))
    find_torch = "import importlib.util as u; print(u.find_spec('torch') is not None)"
    assert shell(image, f'python -c "{find_torch}"') == str(kind == "gpu")


def test_its_labels_say_where_it_comes_from(details: dict[str, Any]) -> None:
    labels = details["Config"]["Labels"]
    environ = dict(item.split("=", 1) for item in details["Config"]["Env"])
    assert labels["org.opencontainers.image.version"] == moola.__version__
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", labels["org.opencontainers.image.revision"])
    assert environ["MOOLA_GIT_SHA"] == labels["org.opencontainers.image.revision"]
    assert "org.opencontainers.image.source" in labels
