"""What a container is given, without an engine; tests/test_image.py runs real ones."""

import itertools
from pathlib import Path

import pytest

from deploy import docker
from deploy.settings import Settings
from deploy.start import Order, start
from moola.errors import LaunchError
from moola.specs import PrecomputeSpec

IMAGE = docker.Image("moola:cpu", "sha256:" + "1" * 64, "sha256:" + "2" * 64)


def command(settings: Settings, job: str = "precompute") -> list[str]:
    return docker.run_command(settings, job, "precompute-1", "a1", IMAGE, name="moola-x", memory="3g")


def follows(words: list[str], first: str, second: str) -> bool:
    return (first, second) in itertools.pairwise(words)


@pytest.fixture
def on_s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    for name, value in (
        ("AWS_SECRET_ACCESS_KEY", "hush"),
        ("AWS_ENDPOINT_URL_S3", "https://s3.example.com"),
        ("AWS_CA_BUNDLE", "/of/this/machine.pem"),
    ):
        monkeypatch.setenv(name, value)
    return Settings(store="s3://bucket/runs", work=tmp_path)


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
    assert f"MOOLA_IMAGE_DIGEST={IMAGE.digest}" in words
    assert "MOOLA_STORE=s3://bucket/runs" in words


@pytest.mark.parametrize(
    ("endpoint", "host_network"),
    [("http://127.0.0.1:8333", True), ("http://localhost:8333", True), ("https://s3.example.com", False)],
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


def test_gpus_are_given_to_training_where_there_are_any(on_s3: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker, "gpus", lambda: ["GPU 0: NVIDIA L4"])
    assert follows(command(on_s3, "train"), "--gpus", "all")
    assert "--gpus" not in command(on_s3)
    monkeypatch.setattr(docker, "gpus", list)
    assert "--gpus" not in command(on_s3, "train")


def test_an_image_that_is_not_here_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_docker(tmp_path, monkeypatch, "echo 'No such image' >&2; exit 1")
    with pytest.raises(
        LaunchError, match=r"moola:cpu is not on this machine; build it: bash deploy/image.sh build cpu"
    ):
        docker.find_image("moola:cpu")
    with pytest.raises(LaunchError, match="could not be fetched"):
        docker.find_image("ghcr.io/someone/moola:cpu-main")


def test_without_its_image_a_run_is_not_submitted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_docker(tmp_path, monkeypatch, "exit 1")
    settings = Settings(store=f"file://{tmp_path}/store", work=tmp_path / "work", on="docker")
    order = Order("precompute", "precompute-1", {"inputs": {}}, {}, PrecomputeSpec().machine)
    with pytest.raises(LaunchError, match="moola:cpu is not on this machine"):
        start(settings, order)
    assert not [path for path in tmp_path.glob("store/**/*") if path.is_file()]


def test_the_doctor_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_docker(tmp_path, monkeypatch, "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    assert docker.doctor() == [
        ("docker", False, "the engine does not answer: Cannot connect to the Docker daemon"),
    ]
    fake_docker(tmp_path, monkeypatch, "[ $1 = info ] && echo 26.1.5 || exit 1")
    rows = {what: (ok, text) for what, ok, text in docker.doctor()}
    assert rows["docker"] == (True, "engine 26.1.5")
    assert rows["image for train"][0] is False
    assert "bash deploy/image.sh build gpu" in rows["image for train"][1]
    (tmp_path / "docker").unlink()
    assert docker.doctor()[0][1] is False


def fake_docker(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A `docker` that does what the shell script says."""
    path = folder / "docker"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
