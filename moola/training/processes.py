"""One process per GPU: how many, how they are started, and what they have to agree on.

They run under the agent that `torchrun` runs (torch.distributed.elastic), so a job that is started
by `torchrun` itself does the same. All ranks train; rank 0 evaluates and writes.
"""

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

from moola.runs.signals import STOP_SIGNALS

T = TypeVar("T")
LOOPBACK = "127.0.0.1"


def process_count(
    requested: int | None,
    device: str,
    batch_size: int,
) -> int:
    """How many processes train on this machine: `requested`; None: one per GPU, one on the CPU.

    A batch is shared out evenly: of 3 GPUs a batch of 32 uses 2.
    """
    if requested is not None:
        return requested

    gpus = torch.cuda.device_count() if device == "cuda" else 1
    return max(n for n in range(1, max(gpus, 1) + 1) if batch_size % n == 0)


def is_started() -> bool:
    """True in a process that `start_processes` or `torchrun` started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def rank() -> int:
    """This process's number; 0 in one that is on its own."""
    return int(os.environ["RANK"]) if is_started() else 0


def start_processes(count: int, command: Sequence[str]) -> int:
    """Run `python *command` in `count` processes to their end.

    -> the exit code of the first that failed, else 0. When one fails, the others get SIGTERM; a
    stop signal of ours reaches all. If one was killed by a signal, so is this process, so that the
    parent learns what happened.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    stop_signals = [signal.Signals(signum).name for signum in STOP_SIGNALS]
    with tempfile.TemporaryDirectory() as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            max_restarts=0,
            run_id="moola",
            local_addr=LOOPBACK,
            rdzv_backend="c10d",
            rdzv_endpoint=f"{LOOPBACK}:0",
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            signals_to_handle=",".join(stop_signals),
        )
        try:
            elastic_launch(config, sys.executable)(*command)
        except SignalException as stopped:
            _, exit_code = STOP_SIGNALS[stopped.sigval]
            return exit_code
        except ChildFailedError as error:
            _, failure = error.get_first_failure()
            exit_code = int(failure.exitcode)
        else:
            return 0

    if exit_code < 0:
        _end_by_signal(-exit_code)

    return exit_code


def _end_by_signal(signum: int) -> None:
    with contextlib.suppress(OSError, ValueError):  # SIGKILL has no handler
        signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)


@contextlib.contextmanager
def process_group(device: str) -> Iterator[None]:
    """While the block runs, the started processes are one group, each with its own GPU.

    Nothing in a process that is on its own.
    """
    if not is_started():
        yield
        return

    if device == "cuda":
        gpu = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(gpu)  # "cuda" now means this one
        dist.init_process_group("nccl", device_id=gpu)
    else:
        threads = torch.get_num_threads() // int(os.environ["LOCAL_WORLD_SIZE"])
        torch.set_num_threads(max(1, threads))
        dist.init_process_group("gloo")

    # Not in a `finally`: after an error the group stays, as taking it down would wait for the
    # others.
    yield
    dist.barrier()  # none takes it down while another still waits for an answer
    dist.destroy_process_group()


@contextlib.contextmanager
def first_then_others() -> Iterator[None]:
    """The block runs in rank 0, then in the others, which find what the first has fetched."""
    if in_group() and dist.get_rank() > 0:
        dist.barrier()
    yield
    if in_group() and dist.get_rank() == 0:
        dist.barrier()


def from_first(value: T) -> T:
    """What rank 0 passes, in every process."""
    if not in_group():
        return value

    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def in_group() -> bool:
    """True inside `process_group`, or another group that torch.distributed has set up."""
    return dist.is_available() and dist.is_initialized()
