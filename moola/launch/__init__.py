"""Submitting a job and following it: here, in a container, on a Ray cluster, on rented machines."""

from typing import Literal

Backend = Literal["local", "docker", "ray", "runpod"]  # where a job runs
