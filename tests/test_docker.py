"""What a container is given, without an engine; tests/test_image.py runs real ones."""

import itertools
from pathlib import Path

import pytest
from pydantic import ValidationError

from moola.errors import LaunchError
from moola.jobs.prepare import prepare_precompute
from moola.launch import docker, doctor
from moola.launch.settings import Settings
from moola.launch.submit import submit_and_follow
from moola.runs.reading import run_state
from moola.specs import PrecomputeSpec
from moola.store import open_store
from tests.runs import submitted_run

IMAGE = docker.Image("moola:cpu", "sha256:" + "1" * 64, "sha256:" + "2" * 64)


def command(settings: Settings, job: str = "precompute") -> list[str]:
    return docker.run_command(settings, job, "precompute-1", "a1", IMAGE, "moola-x")


def follows(words: list[str], first: str, second: str) -> bool:
    return (first, second) in itertools.pairwise(words)


@pytest.fixture
def on_s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    (tmp_path / "ca.pem").write_text("certificates")
    (tmp_path / "config").write_text("[profile mine]\nregion = auto\n")
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", "hush"),
        ("AWS_ENDPOINT_URL_S3", "https://s3.example.com"),
        ("AWS_CA_BUNDLE", f"{tmp_path}/ca.pem"),
        ("AWS_CONFIG_FILE", f"{tmp_path}/config"),
        ("AWS_PROFILE", "mine"),
    ):
        monkeypatch.setenv(name, value)
    return Settings(store="s3://bucket/runs", work=tmp_path, docker_memory="3g")


def test_a_container_is_held_to_its_limits(on_s3: Settings) -> None:
    words = command(on_s3)
    assert "--read-only" in words
    for first, second in (
        ("--cap-drop", "ALL"),
        ("--security-opt", "no-new-privileges"),
        ("--memory", "3g"),
        ("--memory-swap", "3g"),
    ):
        assert follows(words, first, second)
    assert words[-1] == IMAGE.id  # by id: a tag could be moved while this runs


def test_secrets_go_by_name_and_never_on_the_command_line(on_s3: Settings) -> None:
    words = command(on_s3)
    assert follows(words, "--env", "AWS_SECRET_ACCESS_KEY")
    assert "hush" not in " ".join(words)
    assert "AWS_CA_BUNDLE" not in words  # a path of this machine
    assert "AWS_PROFILE" not in words  # a section of a file of this machine
    assert f"MOOLA_IMAGE_DIGEST={IMAGE.digest}" in words
    assert "MOOLA_STORE=s3://bucket/runs" in words


def test_what_files_of_this_machine_say_of_the_store_goes_along(on_s3: Settings) -> None:
    words = command(on_s3)
    assert follows(words, "--env", "AWS_DEFAULT_REGION=auto")
    assert follows(words, "--env", "MOOLA_S3_CA=Y2VydGlmaWNhdGVz")


@pytest.mark.parametrize(
    ("endpoint", "host_network"),
    [
        ("http://127.0.0.1:8333", True),
        ("http://localhost:8333", True),
        ("https://s3.example.com", False),
    ],
)
def test_only_a_server_on_loopback_needs_the_hosts_network(
    on_s3: Settings, monkeypatch: pytest.MonkeyPatch, endpoint: str, host_network: bool
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    assert follows(command(on_s3), "--network", "host") is host_network


def test_a_store_in_a_folder_is_mounted_and_nothing_else_is_reached(tmp_path: Path) -> None:
    words = command(Settings(store=f"file://{tmp_path}/store", work=tmp_path / "work"))
    assert follows(words, "--mount", f"type=bind,src={tmp_path}/store,dst=/store")
    assert follows(words, "--network", "none")
    assert not any("AWS_" in word for word in words)


def test_gpus_are_given_to_training_where_there_are_any(
    on_s3: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker, "gpus", lambda: ["GPU 0: NVIDIA L4"])
    assert follows(command(on_s3, "train"), "--gpus", "all")
    assert "--gpus" not in command(on_s3)
    monkeypatch.setattr(docker, "gpus", list)
    assert "--gpus" not in command(on_s3, "train")


def test_an_image_that_is_not_here_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_docker(tmp_path, monkeypatch, "echo 'No such image' >&2; exit 1")
    with pytest.raises(
        LaunchError,
        match=r"moola:cpu is not on this machine; build it: bash deploy/image/build.sh build cpu",
    ):
        docker.find_image("moola:cpu")
    with pytest.raises(LaunchError, match="could not be fetched"):
        docker.find_image("ghcr.io/someone/moola:cpu-main")


def test_without_its_image_a_run_is_not_submitted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_docker(tmp_path, monkeypatch, "exit 1")
    settings = Settings(store=f"file://{tmp_path}/store", work=tmp_path / "work", on="docker")
    run = prepare_precompute(PrecomputeSpec(), settings.work)
    with pytest.raises(LaunchError, match="moola:cpu is not on this machine"):
        submit_and_follow(settings, run)
    assert not [path for path in tmp_path.glob("store/**/*") if path.is_file()]


KILLED_FOR_MEMORY = """
case $1 in
  run) exit 137 ;;
  inspect) echo '{"OOMKilled": true, "ExitCode": 137}' ;;
esac
"""


def test_out_of_memory_is_recorded_and_names_the_setting_that_raises_the_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_docker(tmp_path, monkeypatch, KILLED_FOR_MEMORY)
    monkeypatch.setenv("MOOLA_DOCKER_MEMORY", "3g")
    settings = Settings(store=f"file://{tmp_path}/store", work=tmp_path / "work")
    store = open_store(settings.store)
    run_id = submitted_run(store)
    assert docker.run_to_end(settings, store, "precompute", run_id, IMAGE) == 137
    run = run_state(store, run_id)
    assert (run.state, run.status and run.status.exit_code) == ("infra_lost", 137)
    message = "the container's limit is 3g; raise MOOLA_DOCKER_MEMORY"
    assert message in run.reason
    assert message in capsys.readouterr().err


def test_a_memory_limit_that_docker_would_not_take_is_refused() -> None:
    with pytest.raises(ValidationError, match="docker_memory"):
        Settings(docker_memory="8 GB")


def test_the_doctor_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_docker(tmp_path, monkeypatch, "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    assert doctor.examine_docker() == [
        ("docker", False, "the engine does not answer: Cannot connect to the Docker daemon"),
    ]
    fake_docker(tmp_path, monkeypatch, "[ $1 = info ] && echo 26.1.5 || exit 1")
    rows = {part: (ok, note) for part, ok, note in doctor.examine_docker()}
    assert rows["docker"] == (True, "engine 26.1.5")
    assert rows["image for train"][0] is False
    assert "bash deploy/image/build.sh build gpu" in rows["image for train"][1]
    (tmp_path / "docker").unlink()
    assert doctor.examine_docker()[0][1] is False


def fake_docker(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A `docker` that does what the shell script says."""
    path = folder / "docker"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
