"""`launch.py doctor`: each part of the set-up is looked at, and what is missing is said with what to do."""

from pathlib import Path

import pytest

from deploy.doctor import examine
from deploy.settings import Settings
from tests.fake_runpod import FakeRunpod
from tests.test_launch import Launcher

DIGEST = "sha256:" + "0" * 64
RENTED = {"on": "runpod", "image_cpu": f"me/moola@{DIGEST}", "image_gpu": f"me/moola-gpu@{DIGEST}"}


def test_a_fresh_machine_is_in_order(tmp_path: Path) -> None:
    rows = examine(Settings(store=f"file://{tmp_path}/store"))
    assert [(what, ok) for what, ok, _ in rows] == [("specs", True), (f"store file://{tmp_path}/store", True)]


def test_what_is_missing_for_rented_machines_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUNPOD_API_KEY", "RUNPOD_TERMINATE_API_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    rows = examine(Settings(store=f"file://{tmp_path}/store", on="runpod", image_cpu="me/moola:cpu@sha256:short"))
    said = {what: text for what, ok, text in rows if not ok}
    assert "s3://bucket/prefix" in said[f"store file://{tmp_path}/store"]
    assert "machine.secrets.AWS_ACCESS_KEY_ID=NAME" in said["AWS_ACCESS_KEY_ID"]
    assert "64 hex digits" in said["image for precompute"]
    assert "MOOLA_IMAGE_GPU" in said["image for train"]
    assert "set RUNPOD_API_KEY" in said["RunPod: RUNPOD_API_KEY"]


def test_keys_are_tried_with_what_they_are_for(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeRunpod() as fake:
        monkeypatch.setenv("RUNPOD_API_BASE_URL", fake.url)
        monkeypatch.setenv("RUNPOD_API_KEY", fake.api_key)
        monkeypatch.setenv("RUNPOD_TERMINATE_API_KEY", fake.restricted_key)
        rows = examine(Settings(store=s3_url, **RENTED))
        assert all(ok for _, ok, _ in rows), rows
        monkeypatch.setenv("RUNPOD_API_KEY", fake.restricted_key)  # too little for the catalog
        monkeypatch.setenv("RUNPOD_TERMINATE_API_KEY", "rpa_wrong")
        wrong = {what for what, ok, _ in examine(Settings(store=s3_url, **RENTED)) if not ok}
        assert wrong == {"RunPod: RUNPOD_API_KEY", "RunPod: RUNPOD_TERMINATE_API_KEY"}
        assert [call for call in fake.calls if call.method != "GET"] == []


def test_doctor_exits_2_if_something_is_missing(tmp_path: Path) -> None:
    launch = Launcher(tmp_path, f"file://{tmp_path}/store")
    assert "all it can be asked for" in launch("doctor")
    assert "MOOLA_IMAGE_CPU" in launch("doctor", "--on", "runpod", exit_code=2)


def test_a_local_run_is_cancelled_by_a_note_in_the_store(tmp_path: Path) -> None:
    launch = Launcher(tmp_path, f"file://{tmp_path}/store", {"MOOLA_BEAT_S": "0.1"})
    process = launch.start("precompute", "--set", "synthetic.start=2024-01-02", "--set", "synthetic.end=2025-06-20")
    while not launch.runs() or "running" not in launch("status", launch.runs()[0]):
        assert process.poll() is None
    assert "asked to stop" in launch("cancel", launch.runs()[0])
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert '"state": "cancelled"' in launch("status", launch.runs()[0])
