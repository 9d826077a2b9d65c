"""RunPod's API on loopback, as it was observed to behave.

A pod is a real process, and every failure has a switch.

with FakeRunpod(command=lambda pod: ["sleep", "60"]) as fake:
    fake.fail("no_capacity", machine="NVIDIA GeForce RTX 4090")
    ...  # RUNPOD_API_BASE_URL=fake.url, RUNPOD_API_KEY=fake.api_key
    assert fake.alive() == []
"""

from tests.fake_runpod.fake import FakeRunpod
from tests.fake_runpod.faults import Fault
from tests.fake_runpod.pods import Pod

__all__ = ["FakeRunpod", "Fault", "Pod"]
