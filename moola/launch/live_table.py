"""How watched runs are drawn: many as a table that fits the terminal, one with all that it tells.

Texts of heartbeats come from the store: a cell is one line, without control characters, cut.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.console import Console, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from moola.launch.console import one_line
from moola.launch.progress import amount_text
from moola.runs.records import Heartbeat, UsageHistory
from moola.runs.watching import WatchedRun
from moola.text import shortened, time_text

MB_PER_GB = 1000.0
LONGEST_ID = 28  # characters of a run's id that are shown
LONGEST_NAME = 24
LONGEST_CELL = 100
LEAST_STAGE = 12  # characters of the stage that there is room for
LINES_BESIDE = 5  # of a screen: heading, the line of what is left out, the last line, the prompt
BARS = "▁▂▃▄▅▆▇█"
N_BARS = 30  # of use over time
BAR_WIDTH = 30

STAGE = "stage, or why it ended"
NUMBERS = ("rate", "left", "USD", "GPU", "GPU GB", "GB", "cores")
# Columns that give way where the terminal is narrow, the first one first.
GIVE_WAY = ("cores", "name", "GPU GB", "GB", "rate")


# --- many runs --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cells:
    """A column: its heading, and a cell for each run."""

    heading: str
    cells: Sequence[str]
    longest: int = LONGEST_CELL

    @property
    def width(self) -> int:
        return min(max(map(len, (self.heading, *self.cells))), self.longest)


def runs_table(
    runs: Sequence[WatchedRun], console: Console, titles: Mapping[str, str] | None = None
) -> RenderableType:
    """One row a run, as many as there is room for; what no run has, has no column.

    `titles` is run id -> what stands for its name. Where the terminal is too narrow for all,
    GIVE_WAY says what is left out.
    """
    room = max(1, console.height - LINES_BESIDE)
    shown = runs[:room]
    columns = _fitting(_columns(shown, titles), console.width)

    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for column in columns:
        table.add_column(
            one_line(column.heading),
            no_wrap=True,
            width=column.width,
            justify="right" if column.heading in NUMBERS else "left",
        )
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*map(one_line, cells))
    if len(runs) > len(shown):
        table.caption = f"and {len(runs) - len(shown)} more; a higher window shows them"
    return table


def _columns(runs: Sequence[WatchedRun], titles: Mapping[str, str] | None) -> list[_Cells]:
    """All columns of which any run has something."""
    names = _Cells("name", [name_text(run) for run in runs], LONGEST_NAME)
    if titles is not None:
        names = _Cells("differs in", [titles.get(run.run_id, "") for run in runs], LONGEST_NAME)
    beats = [run.heartbeat if run.is_running else None for run in runs]
    columns = [
        _Cells("run", [run.run_id for run in runs], LONGEST_ID),
        names,
        _Cells("state", [_state_text(run) for run in runs]),
        _Cells(STAGE, [_stage_cell(run) for run in runs]),
        _Cells("rate", [_rate_text(beat) for beat in beats]),
        _Cells("left", [_left_text(beat) for beat in beats]),
        _Cells("USD", ["" if run.cost is None else f"{run.cost:.2f}" for run in runs]),
        _Cells("GPU", [_gpu_text(beat) for beat in beats]),
        _Cells("GPU GB", [_gpu_memory_text(beat) for beat in beats]),
        _Cells("GB", [_memory_text(beat) for beat in beats]),
        _Cells("cores", [_cores_text(beat) for beat in beats]),
    ]
    return [column for column in columns if column.heading == STAGE or any(column.cells)]


def _fitting(columns: list[_Cells], width: int) -> list[_Cells]:
    """Without what there is no room for; the stage has what the others leave."""
    for heading in GIVE_WAY:
        if _room_for_stage(columns, width) >= LEAST_STAGE:
            break
        columns = [column for column in columns if column.heading != heading]

    room = max(_room_for_stage(columns, width), LEAST_STAGE)
    return [
        replace(column, longest=room) if column.heading == STAGE else column for column in columns
    ]


def _room_for_stage(columns: Sequence[_Cells], width: int) -> int:
    others = [column.width for column in columns if column.heading != STAGE]
    return width - sum(others) - len(columns)


def name_text(run: WatchedRun) -> str:
    """What people call it, and its tags."""
    about = run.summary.about
    return " ".join([about.name or "", *(f"#{tag}" for tag in about.tags)]).strip()


def _state_text(run: WatchedRun) -> str:
    if run.summary.is_silent:
        return f"silent {time_text(run.summary.silent_s or 0.0)}"
    return run.summary.shown_state


def _stage_cell(run: WatchedRun) -> str:
    beat = run.heartbeat
    if not run.is_running or beat is None:
        return shortened(run.summary.reason)
    share = f"{_share(beat):.0%} " if beat.total else ""
    return share + shortened(beat.stage)


def _share(beat: Heartbeat) -> float:
    return min(beat.done / beat.total, 1.0)


def _rate_text(beat: Heartbeat | None) -> str:
    if beat is None or not beat.rate:
        return ""
    if beat.unit == "bytes":
        return f"{beat.rate / 1e6:.3g} MB/s"
    if beat.rate >= 1e6:
        return f"{beat.rate / 1e6:.3g}M/s"
    return f"{beat.rate:,.0f}/s" if beat.rate >= 100 else f"{beat.rate:.3g}/s"


def _left_text(beat: Heartbeat | None) -> str:
    left_s = None if beat is None else beat.left_s
    return "" if left_s is None else time_text(round(left_s))


def _gpu_text(beat: Heartbeat | None) -> str:
    """The mean over the GPUs."""
    if beat is None or not beat.usage.gpus:
        return ""
    gpus = beat.usage.gpus
    return f"{sum(gpu.use for gpu in gpus) / len(gpus):.0%}"


def _gpu_memory_text(beat: Heartbeat | None) -> str:
    """Of all GPUs together."""
    if beat is None or not beat.usage.gpus:
        return ""
    return _gb_text(sum(gpu.memory_mb for gpu in beat.usage.gpus))


def _memory_text(beat: Heartbeat | None) -> str:
    if beat is None or beat.usage.memory_mb is None:
        return ""
    return _gb_text(beat.usage.memory_mb)


def _cores_text(beat: Heartbeat | None) -> str:
    cores = None if beat is None else beat.usage.cpu_cores
    return "" if cores is None else f"{cores:.1f}"


def _gb_text(megabytes: float) -> str:
    gigabytes = megabytes / MB_PER_GB
    return f"{gigabytes:.1f}" if gigabytes < 1e5 else f"{gigabytes:.0e}"


# --- one run ----------------------------------------------------------------------------------


def run_view(run: WatchedRun) -> Table:
    """All that a run tells: a line each."""
    table = Table.grid(Column(style="dim", no_wrap=True), Column(), padding=(0, 2, 0, 0))
    title = " ".join(filter(None, (run.run_id, name_text(run))))
    rows: list[tuple[str, RenderableType]] = [("run", one_line(title))]
    rows.append(("state", one_line(_state_line(run))))
    if run.summary.reason:
        rows.append(("reason", Text(shortened(run.summary.reason, 400))))
    if run.heartbeat is not None and run.is_running:
        rows += _progress_rows(run.heartbeat)
    if run.heartbeat is not None:
        rows += _usage_rows(run.heartbeat)
    if run.cost is not None:
        rows.append(("cost", one_line(_cost_line(run, run.cost))))
    for name, value in rows:
        table.add_row(name, value)
    return table


def _state_line(run: WatchedRun) -> str:
    parts = [_state_text(run)]
    if run.summary.attempt:
        parts.append(f"attempt {run.summary.attempt}")
    if run.is_running and run.summary.silent_s is not None and not run.summary.is_silent:
        parts.append(f"heard of {run.summary.silent_s:.0f} s ago")
    return ", ".join(parts)


def _progress_rows(beat: Heartbeat) -> list[tuple[str, RenderableType]]:
    rows: list[tuple[str, RenderableType]] = [("stage", one_line(shortened(beat.stage)))]
    unit = shortened(beat.unit, LONGEST_NAME)
    if beat.total:
        bar = Table.grid(padding=(0, 1, 0, 0))
        share = f"{_share(beat):.0%}"
        done = amount_text(beat.done, unit).removesuffix(f" {unit}")
        progress = ProgressBar(total=1.0, completed=_share(beat), width=BAR_WIDTH)
        bar.add_row(progress, one_line(f"{share}  {done} of {amount_text(beat.total, unit)}"))
        rows.append(("", bar))
    if beat.note:
        rows.append(("", one_line(shortened(beat.note))))

    rate = _rate_text(beat)
    if rate:
        rate = rate if beat.unit == "bytes" else rate.replace("/s", f" {unit}/s")
        left = _left_text(beat)
        rows.append(("rate", one_line(rate + (f", {left} left of this stage" if left else ""))))
    return rows


def _usage_rows(beat: Heartbeat) -> list[tuple[str, RenderableType]]:
    """What is used now, and beside it over the time at work."""
    history = beat.history or UsageHistory(every_s=1.0)
    limit_mb = beat.usage.memory_limit_mb
    of_limit = "" if limit_mb is None else f" of {_gb_text(limit_mb)}"
    gpu = _gpu_text(beat)
    if len(beat.usage.gpus) > 1:
        gpu += f" of {len(beat.usage.gpus)}"

    shown = (
        ("cores", _cores_text(beat), history.cpu_cores),
        ("memory", _with_unit(_memory_text(beat) + of_limit, "GB"), history.memory_mb),
        ("GPU", gpu, history.gpu),
        ("GPU memory", _with_unit(_gpu_memory_text(beat), "GB"), history.gpu_memory_mb),
    )
    return [
        (name, one_line(f"{value:<15} {_bars(values)}")) for name, value, values in shown if value
    ]


def _with_unit(value: str, unit: str) -> str:
    return f"{value} {unit}" if value else ""


def _bars(values: Sequence[float | None]) -> str:
    """The newest values as bars, each of a height by the most of them all."""
    most = max((value for value in values if value is not None), default=0.0)
    if not most:
        return ""
    heights = [None if value is None else value / most for value in values[-N_BARS:]]
    return "".join(
        " " if height is None else BARS[min(int(height * len(BARS)), len(BARS) - 1)]
        for height in heights
    )


def _cost_line(run: WatchedRun, cost: float) -> str:
    newest = run.launches[-1]
    machine = "no machine yet"
    if newest["type_id"]:
        machine = f"{newest['type_id']} at {newest['price_per_hour']:.3f} USD an hour"
    return f"{cost:.4f} USD so far; launch {newest['n']}: {machine}"


# --- plain lines ------------------------------------------------------------------------------


def plain_state(run: WatchedRun) -> str:
    """State, and the stage or why it ended: what is told when it changes."""
    state = "silent" if run.summary.is_silent else run.summary.shown_state
    detail = run.summary.reason
    if run.is_running and run.heartbeat is not None:
        detail = run.heartbeat.stage
    return f"{state}: {shortened(detail)}" if detail else state
