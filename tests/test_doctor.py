"""`moola doctor`: each part of the set-up is checked, and each gap is named with a remedy."""

import json
from pathlib import Path

import pytest

from moola.launch.doctor import examine
from moola.launch.settings import Settings
from tests.fake_runpod import FakeRunpod
from tests.registry import Registry
from tests.test_launch import Launcher


def test_a_fresh_machine_is_in_order(tmp_path: Path) -> None:
    findings = examine(Settings(store=f"file://{tmp_path}/store"))
    assert [(part, ok) for part, ok, _ in findings] == [
        ("specs", True),
        (f"store file://{tmp_path}/store", True),
    ]


def test_what_is_missing_for_rented_machines_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "RUNPOD_API_KEY",
        "RUNPOD_TERMINATE_API_KEY",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
    ):
        monkeypatch.delenv(name, raising=False)
    findings = examine(
        Settings(
            store=f"file://{tmp_path}/store", on="runpod", image_cpu="me/moola:cpu@sha256:short"
        )
    )
    notes = {part: note for part, ok, note in findings if not ok}
    assert "s3://bucket/prefix" in notes[f"store file://{tmp_path}/store"]
    assert "machine.secrets.AWS_ACCESS_KEY_ID=NAME" in notes["AWS_ACCESS_KEY_ID"]
    assert "64 hex digits" in notes["image for precompute"]
    assert "MOOLA_IMAGE_GPU" in notes["image for train"]
    assert "set RUNPOD_API_KEY" in notes["RunPod: RUNPOD_API_KEY"]


def test_keys_are_tried_with_what_they_are_for(
    s3_url: str, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = {"image_cpu": registry.add("me/moola"), "image_gpu": registry.add("me/moola-gpu")}
    settings = Settings(store=s3_url, on="runpod", **images)
    with FakeRunpod() as fake:
        monkeypatch.setenv("RUNPOD_API_BASE_URL", fake.url)
        monkeypatch.setenv("RUNPOD_API_KEY", fake.api_key)
        monkeypatch.setenv("RUNPOD_TERMINATE_API_KEY", fake.restricted_key)
        findings = examine(settings)
        assert all(ok for _, ok, _ in findings), findings
        monkeypatch.setenv("RUNPOD_API_KEY", fake.restricted_key)  # too little for the catalog
        monkeypatch.setenv("RUNPOD_TERMINATE_API_KEY", "rpa_wrong")
        wrong = {part for part, ok, _ in examine(settings) if not ok}
        assert wrong == {"RunPod: RUNPOD_API_KEY", "RunPod: RUNPOD_TERMINATE_API_KEY"}
        assert [call for call in fake.calls if call.method != "GET"] == []


def test_images_that_machines_could_not_pull_are_named(tmp_path: Path, registry: Registry) -> None:
    registry.private.add("me/closed")
    images = {"image_cpu": registry.add("me/closed"), "image_gpu": f"{registry.host}/me/none:1"}
    findings = examine(Settings(store=f"file://{tmp_path}/store", on="runpod", **images))
    notes = {part: note for part, ok, note in findings if not ok}
    assert "machine.registry=ID" in notes["image for precompute"]
    assert "is not there" in notes["image for train"]


def test_a_private_image_is_in_order_with_the_credentials_that_the_provider_keeps(
    tmp_path: Path,
    registry: Registry,
) -> None:
    registry.private.add("me/closed")
    image = registry.add("me/closed")
    environment = {"MOOLA_IMAGE_CPU": image, "MOOLA_IMAGE_GPU": image}
    launch = Launcher(tmp_path, f"file://{tmp_path}/store", environment)
    command = ("doctor", "--on", "runpod", "--json")

    def image_is_ok(*options: str) -> bool:
        parts = json.loads(launch(*command, *options, exit_code=2))["parts"]
        return next(part["ok"] for part in parts if part["part"] == "image for train")

    assert not image_is_ok()
    assert image_is_ok("--set", "machine.registry=abc123")
    assert "machine.FIELD=VALUE alone" in launch(*command, "--set", "training.seed=1", exit_code=2)


def test_doctor_exits_2_if_something_is_missing(tmp_path: Path) -> None:
    launch = Launcher(tmp_path, f"file://{tmp_path}/store")
    assert "all that a store can do" in launch("doctor")
    assert "MOOLA_IMAGE_CPU" in launch("doctor", "--on", "runpod", exit_code=2)


def test_a_local_run_is_cancelled_by_a_note_in_the_store(tmp_path: Path) -> None:
    launch = Launcher(tmp_path, f"file://{tmp_path}/store", {"MOOLA_BEAT_S": "0.1"})
    long = ("--set", "synthetic.start=2019-01-02", "--set", "synthetic.end=2025-06-20")
    process = launch.start("precompute", *long)  # it is not done before it is asked to stop
    while not launch.runs() or "running" not in launch("status", launch.runs()[0]):
        assert process.poll() is None
    assert "asked to stop" in launch("cancel", launch.runs()[0])
    process.communicate(timeout=300)
    assert process.returncode == 130
    assert '"state": "cancelled"' in launch("status", launch.runs()[0])
