"""The command line as a person uses it: processes, a store, signals, and messages when it fails."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moola.launch import local
from moola.launch.settings import Settings
from moola.runs.protocol import attempt_key, canonical_json, run_key
from moola.runs.reading import read_manifest, run_state
from moola.store import Store, open_store
from tests.feature_set import random_bars
from tests.runs import attempt_id, pid_of, submitted_run
from tests.shared import shared

ROOT = Path(__file__).resolve().parents[1]


class Launcher:
    """`python deploy/launch.py ...` with a store and a working directory of its own."""

    def __init__(self, folder: Path, store: str, env: dict[str, str] | None = None) -> None:
        self.folder, self.store = folder, store
        self.work = folder / "work"
        self.env = {
            **os.environ,
            **(env or {}),
            "MOOLA_STORE": store,
            "MOOLA_WORK": str(self.work),
            "COLUMNS": "300",
        }

    def start(self, *args: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(ROOT / "deploy" / "launch.py"), *args]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def __call__(self, *args: str, exit_code: int = 0) -> str:
        """Run to the end; -> what it printed on both streams."""
        process = self.start(*args)
        out, err = process.communicate(timeout=300)
        assert process.returncode == exit_code, f"exit {process.returncode}\n{out}\n{err}"
        return out + err

    def runs(self) -> list[str]:
        return open_store(self.store).children("runs")


@pytest.fixture
def launch(tmp_path: Path) -> Launcher:
    return Launcher(tmp_path, f"file://{tmp_path}/store")


@pytest.fixture
def bars(tmp_path: Path) -> Path:
    path = tmp_path / "bars.parquet"
    random_bars().to_parquet(path)
    return path


def wait_for(condition: Callable[[], object], what: str) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(f"never happened: {what}")


def test_from_bars_to_a_pulled_and_verified_set(launch: Launcher, bars: Path) -> None:
    output = launch("precompute", "--bars", str(bars))
    (run_id,) = launch.runs()
    assert f"committed {run_id}" in output
    assert "1,500 bars" in output
    assert "0 failed" in launch("verify", run_id, "--bars", str(bars))
    assert "bars.parquet" in launch("pull", run_id, str(bars), exit_code=3)  # a file is in the way
    assert "every sha256 as in the manifest" in launch("pull", run_id, "pulled")
    assert "0 failed" in launch("verify", "pulled")
    pulled = launch.folder / "pulled"
    features, rows = np.load(pulled / "features_11d.npy"), np.load(pulled / "bars_11d.npy")
    assert features.shape == (1396, 105, 11)
    np.testing.assert_array_equal(features[321], rows[321 : 321 + 105])
    assert "committed" in launch("list")
    assert json.loads(launch("status", run_id[:14]))["state"] == "committed"
    assert "verified" in launch("logs", run_id)
    published = ("--features", "pulled/features_11d.npy", "--metadata", "pulled/metadata.json")
    assert "0 failed" in launch("verify", *published)


def test_the_same_work_is_not_done_twice_unless_forced(launch: Launcher, bars: Path) -> None:
    launch("precompute", "--bars", str(bars))
    renamed = bars.rename(bars.with_name("same_bytes.parquet"))
    assert f"{launch.runs()[0]} is already committed" in launch(
        "precompute", "--bars", str(renamed)
    )
    assert len(launch.runs()) == 1
    launch("precompute", "--bars", str(renamed), "--set", "features.zigzag_k=1.5")
    launch("precompute", "--bars", str(renamed), "--force")
    assert len(launch.runs()) == 3


def test_virtual_windows_are_pulled_to_the_bytes_of_stored_ones(
    launch: Launcher, bars: Path
) -> None:
    launch("precompute", "--bars", str(bars))
    (stored,) = launch.runs()
    launch("precompute", "--bars", str(bars), "--windows", "virtual")
    (virtual,) = set(launch.runs()) - {stored}
    sizes = {
        run: sum(
            p.stat().st_size
            for p in (launch.folder / "store" / "runs" / run).rglob("*")
            if p.is_file()
        )
        for run in (stored, virtual)
    }
    assert sizes[virtual] < 1e6 < 6e6 < sizes[stored]
    assert "0 failed" in launch("verify", virtual)
    for run, folder in ((stored, "a"), (virtual, "b")):
        launch("pull", run, folder)
    a, b = ((launch.folder / folder / "features_11d.npy").read_bytes() for folder in "ab")
    assert a == b


def test_a_dry_run_shows_the_run_and_writes_nothing(launch: Launcher, bars: Path) -> None:
    plan = json.loads(launch("precompute", "--bars", str(bars), "--dry-run"))
    assert not (launch.folder / "store").exists()
    launch("precompute", "--bars", str(bars))
    assert launch.runs() == [plan["run"]]


def test_a_folder_of_bars_is_one_run_whose_id_covers_every_file(
    launch: Launcher, tmp_path: Path
) -> None:
    frame = random_bars()
    folder = tmp_path / "bars by day"
    folder.mkdir()
    for at in range(3):
        frame.iloc[at * 500 : (at + 1) * 500].to_parquet(folder / f"day {at}.parquet")
    whole = tmp_path / "whole.parquet"
    frame.to_parquet(whole)

    plan = json.loads(launch("precompute", "--bars", str(folder), "--dry-run"))
    pattern = str(folder / "*.parquet")
    assert json.loads(launch("precompute", "--bars", pattern, "--dry-run")) == plan
    launch("precompute", "--bars", str(folder))
    assert launch.runs() == [plan["run"]]
    assert "0 failed" in launch("verify", plan["run"], "--bars", str(folder))
    assert "0 failed" in launch("verify", plan["run"], "--bars", str(whole))

    launch("pull", plan["run"], "pulled")
    metadata = json.loads((launch.folder / "pulled" / "metadata.json").read_text())
    names = [file["name"] for file in metadata["layout"]["files"]]
    digests = [file["sha256"] for file in metadata["layout"]["files"]]
    assert names == ["day 0.parquet", "day 1.parquet", "day 2.parquet"]
    assert digests == [item["sha256"] for item in metadata["inputs"].values()]
    page = (launch.folder / "pulled" / "bars.html").read_text()
    assert "<svg" in page
    assert str(launch.folder) not in page + json.dumps(metadata)

    changed = frame.iloc[500:1000].assign(volume=7.0)
    changed.to_parquet(folder / "day 1.parquet")
    other = json.loads(launch("precompute", "--bars", str(folder), "--dry-run"))
    assert other["run"] != plan["run"]


def test_bars_are_read_from_s3_as_a_file_a_folder_and_a_pattern(
    tmp_path: Path, s3_url: str, s3_environment: dict[str, str]
) -> None:
    launch = Launcher(tmp_path, f"file://{tmp_path}/store", s3_environment)
    frame = random_bars()
    store = open_store(s3_url)
    for at in range(3):
        part = tmp_path / f"part-{at}.parquet"
        frame.iloc[at * 500 : (at + 1) * 500].to_parquet(part)
        store.put(f"bars/{part.name}", part.read_bytes())
    store.put("bars/manifest.json", b"{}")
    frame.to_parquet(tmp_path / "whole.parquet")
    store.put("whole.parquet", (tmp_path / "whole.parquet").read_bytes())

    launch("precompute", "--bars", f"{s3_url}/whole.parquet")
    (run_id,) = launch.runs()
    for bars in ("whole.parquet", "bars/", "bars/part-*.parquet"):
        assert "0 failed" in launch("verify", run_id, "--bars", f"{s3_url}/{bars}")

    plans = [
        json.loads(launch("precompute", "--bars", f"{s3_url}/{bars}", "--dry-run"))
        for bars in ("bars/", "bars/part-*.parquet")
    ]
    assert plans[0] == plans[1]
    assert len(plans[0]["spec.json"]["inputs"]) == 3
    missing = launch("precompute", "--bars", f"{s3_url}/none-*.csv", exit_code=3)
    assert f"there must be files of bars at {s3_url}/none-*.csv" in missing
    assert f"--bars {s3_url}/whole.parquet" in launch("bars", f"{s3_url}/whole.parquet")


def test_a_run_remembers_how_its_bars_were_read(launch: Launcher, tmp_path: Path) -> None:
    """verify reads the same file without being told again; another file as it shows itself."""
    frame = random_bars()
    local = frame.set_index(frame.index.tz_convert("America/Chicago").tz_localize(None))
    naive = tmp_path / "naive.csv"
    local.rename(columns={"close": "Settle"}).to_csv(naive)
    in_utc = tmp_path / "utc.parquet"
    frame.to_parquet(in_utc)
    options = ("--timezone", "America/Chicago", "--set", "layout.close=Settle")

    assert "missing column close" in launch("precompute", "--bars", str(naive), exit_code=3)
    launch("precompute", "--bars", str(naive), *options)
    (run_id,) = launch.runs()
    assert "0 failed" in launch("verify", run_id, "--bars", str(naive))
    assert "0 failed" in launch("verify", run_id, "--bars", str(in_utc))
    shifted = ("--timezone", "America/New_York")
    assert "0 failed" in launch("verify", run_id, "--bars", str(naive), *options)
    assert "1 failed" in launch(
        "verify", run_id, "--bars", str(in_utc), "--set", "layout.close=open", exit_code=4
    )
    assert "timezone is for naive times" in launch(
        "verify", run_id, "--bars", str(in_utc), *shifted, exit_code=3
    )


def test_the_shipped_spec_runs(launch: Launcher) -> None:
    launch("precompute", "--set", "synthetic.end=2025-01-17")
    (run_id,) = launch.runs()
    assert "0 failed" in launch("verify", run_id)
    launch("pull", run_id, "pulled")
    assert (launch.folder / "pulled" / "moves.parquet").exists()


def test_the_job_runs_by_itself_as_in_a_container(launch: Launcher, bars: Path) -> None:
    """The child alone, told by its environment only; a second start finds the work done."""
    plan = json.loads(launch("precompute", "--bars", str(bars), "--dry-run"))
    launch("precompute", "--bars", str(bars))
    store = launch.folder / "store" / "runs" / plan["run"]
    (store / "COMMIT.json").unlink()
    shutil.rmtree(store / "attempts")
    command = [sys.executable, "-m", "moola.jobs", "precompute"]
    env = {**launch.env, "MOOLA_RUN": plan["run"]}
    first = subprocess.run(
        command, env=env, cwd=launch.folder, capture_output=True, text=True, check=True
    )
    assert "committed" in first.stdout
    second = subprocess.run(
        command, env=env, cwd=launch.folder, capture_output=True, text=True, check=True
    )
    assert "already committed: nothing to do" in second.stdout
    assert len(list((store / "attempts").iterdir())) == 1


# --- refusals: before any work, with the field and the value ---


@pytest.mark.parametrize(
    ("args", "exit_code", "message"),
    [
        (
            ["--set", "windoes=virtual"],
            3,
            r"windoes: Extra inputs are not permitted, got 'virtual'",
        ),
        (["--set", "features.zigzag_kk=1"], 3, "features.zigzag_kk: Extra inputs"),
        (
            ["--set", "features.atr_period=0"],
            3,
            "features.atr_period: Input should be greater than or equal to 1, got 0",
        ),
        (
            ["--set", "features.zigzag_k=-1"],
            3,
            "features.zigzag_k: Input should be greater than 0, got -1",
        ),
        (
            ["--set", "features.zigzag_k=.inf"],
            3,
            "features.zigzag_k: Input should be a finite number",
        ),
        (["--set", "bars.path=x"], 3, "bars.path cannot be set: bars is None"),
        (["--windows", "sometimes"], 2, "'sometimes' is not one of 'stored', 'virtual'"),
        (["--on-bad-bars", "fix"], 2, "'fix' is not one of 'fail', 'drop'"),
        (
            ["--set", "windows=sometimes"],
            3,
            "windows: Input should be 'stored' or 'virtual', got 'sometimes'",
        ),
        (["--train-end", "2025-13-01"], 3, "splits.train_end: Input should be a valid date"),
        (
            ["--train-end", "2025-02-01", "--val-end", "2025-01-01"],
            3,
            "train_end < val_end < test_end",
        ),
        (
            ["--set", "splits.fractions=[0.5, 0.5, 0.5]"],
            3,
            "fractions must be positive and sum to 1",
        ),
        (["--bars", "nowhere.parquet"], 3, "nowhere.parquet"),
        (["--bars", "not_bars.parquet"], 3, "not_bars.parquet"),
        (["--bars", "no_close.csv"], 3, "close"),
        (["--spec", "nowhere.yaml"], 3, "nowhere.yaml"),
        (["--spec", "list.yaml"], 3, "a spec must be a mapping of fields, got list"),
        (["--spec", "no_day.yaml"], 3, "no_day.yaml"),
        (
            ["--set", "features.zigzag_k=[1"],
            2,
            "--set takes FIELD=VALUE, the value as YAML, got 'features.zigzag_k=[1'",
        ),
        (["--set", "splits.train_end=2024-02-30"], 2, "day is out of range"),
        (["--work", "list.yaml"], 3, "MOOLA_WORK must be a directory that can be written to"),
        (["--set", "windows"], 2, "--set takes FIELD=VALUE, got 'windows'"),
        (["--on", "moon"], 2, "'moon' is not one of 'local', 'docker', 'ray', 'runpod'"),
        (["--no-such-flag"], 2, "No such option"),
    ],
)
def test_a_wrong_request_is_refused_before_any_work(
    launch: Launcher, args: list[str], exit_code: int, message: str
) -> None:
    (launch.folder / "not_bars.parquet").write_text("these are no bars")
    (launch.folder / "no_close.csv").write_text(
        "timestamp,open,high,low\n2024-01-01T00:00:00Z,1,2,0.5\n"
    )
    (launch.folder / "list.yaml").write_text("- windows\n")
    (launch.folder / "no_day.yaml").write_text("splits: {train_end: 2024-02-30}\n")
    output = " ".join(launch("precompute", *args, exit_code=exit_code).replace("│", " ").split())
    assert message in output
    assert "Traceback" not in output
    assert not (launch.folder / "store" / "runs").exists()


def test_bad_bars_are_refused_before_any_upload_with_rule_value_and_row(
    launch: Launcher, bars: Path
) -> None:
    frame = random_bars()
    frame.iloc[777, frame.columns.get_loc("high")] = 1.0
    frame.to_parquet(bars)
    output = launch("precompute", "--bars", str(bars), exit_code=3)
    assert "high must be >= low" in output
    assert "row 777" in output
    for where in (("--dry-run",), ("--on", "docker"), ("--on", "runpod", "--yes")):
        assert "row 777" in launch("precompute", "--bars", str(bars), *where, exit_code=3)
    assert not (launch.folder / "store").exists()
    assert "committed" in launch("precompute", "--bars", str(bars), "--on-bad-bars", "drop")


def test_settings_come_from_flags_then_environment_then_file(launch: Launcher, bars: Path) -> None:
    del launch.env["MOOLA_STORE"]
    toml = launch.folder / "moola.toml"
    toml.write_text('store = "file://./from_file"\n')
    plan = ("precompute", "--bars", str(bars), "--dry-run")
    assert json.loads(launch(*plan))["store"] == "file://./from_file"
    launch.env["MOOLA_STORE"] = "file://./from_environment"
    assert json.loads(launch(*plan))["store"] == "file://./from_environment"
    flag = ("--store", "file://./from_flag")
    assert json.loads(launch(*plan, *flag))["store"] == "file://./from_flag"
    launch.env["MOOLA_ON"] = "moon"
    assert "on: Input should be 'local'" in " ".join(launch(*plan, exit_code=2).split())
    del launch.env["MOOLA_ON"]
    toml.write_text('stroe = "file://./x"\n')
    assert "stroe" in launch(*plan, exit_code=2)
    toml.write_text("store = \n")
    assert "must be readable" in launch(*plan, exit_code=2)


def test_a_run_that_is_not_there_is_named(launch: Launcher) -> None:
    assert "RUN must be a run's id or the start of exactly one, got 'nothing'" in launch(
        "pull", "nothing", exit_code=3
    )


def test_verify_wants_one_thing_to_check(launch: Launcher) -> None:
    assert "give RUN_OR_DIR, or both --features and --metadata" in " ".join(
        launch("verify", "--features", "x.npy", exit_code=2).split()
    )


def test_verify_exits_4_on_a_damaged_set(launch: Launcher, bars: Path) -> None:
    launch("precompute", "--bars", str(bars))
    launch("pull", launch.runs()[0], "pulled")
    path = launch.folder / "pulled" / "features_11d.npy"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    output = launch("verify", "pulled", exit_code=4)
    assert "sha256 of features_11d.npy" in output
    (launch.folder / "pulled" / "manifest.json").write_text("[]")
    assert "manifest.json is damaged" in launch("verify", "pulled", exit_code=4)


HEAVY = {"numpy", "pandas", "pyarrow", "numba", "boto3", "pydantic", "rich", "yaml"}


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import runpy, sys\n"
        "sys.argv = ['launch.py', '--help']\n"
        f"try: runpy.run_path({str(ROOT / 'deploy' / 'launch.py')!r}, run_name='__main__')\n"
        "except SystemExit: pass\n"
        f"print('heavy:', sorted({HEAVY!r} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "precompute" in output
    assert output.splitlines()[-1] == "heavy: []"


def test_spec_prints_the_resolved_spec_and_its_schema(launch: Launcher) -> None:
    document = json.loads(launch("spec", "precompute", "--set", "windows=virtual"))
    assert document["spec"]["windows"] == "virtual"
    assert document["schema"]["properties"]["features"]
    assert "'bake' is not one of 'precompute', 'train'" in " ".join(
        launch("spec", "bake", exit_code=2).split()
    )


def test_store_check_says_what_the_provider_can_do(
    tmp_path: Path, s3_url: str, s3_environment: dict[str, str]
) -> None:
    launch = Launcher(tmp_path, s3_url, s3_environment)
    output = launch("store", "check", "--save")
    assert "conditional put" in output
    assert '"integrity":"crc64nvme","conditional":true' in output
    assert open_store(s3_url).get_or_none("profile.json")
    assert "0 unfinished uploads removed" in launch("store", "sweep")


def test_a_folder_needs_no_profile(launch: Launcher) -> None:
    assert '"integrity"' not in launch("store", "check", "--save")
    assert open_store(launch.store).get_or_none("profile.json") is None


# --- signals and death ---


@pytest.fixture
def many_bars(tmp_path: Path) -> Path:
    path = tmp_path / "many.parquet"
    random_bars(24_000).to_parquet(path)  # 111 MB of windows: caught in the middle of its upload
    return path


def journal_parts(launch: Launcher) -> int:
    """Parts of features_11d.npy that are known to be stored."""
    return sum(
        path.read_text().count('"part"') for path in launch.work.rglob("features_11d.npy.jsonl")
    )


def caught_in_upload(launch: Launcher, bars: Path) -> tuple[subprocess.Popen[str], int]:
    """A launcher whose job stands still, with two parts or more stored; -> (it, the job's pid)."""
    many_small_steps = b'{"part_mib": 5, "workers": 1}'
    store = open_store(launch.store)
    store.put("profile.json", many_small_steps)
    process = launch.start("precompute", "--bars", str(bars))
    wait_for(lambda: is_begun(store) or process.poll() is not None, "the job has begun")
    assert process.poll() is None, process.communicate()

    (run_id,) = launch.runs()
    pid = pid_of(store, run_id)
    while journal_parts(launch) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    os.kill(pid, signal.SIGSTOP)

    assert read_manifest(store, run_id) is None
    return process, pid


def is_begun(store: Store) -> bool:
    runs = store.children("runs")
    status = run_state(store, runs[0]).status if runs else None
    return status is not None and status.pid is not None


@pytest.mark.parametrize(
    ("signum", "state", "exit_code"),
    [(signal.SIGINT, "cancelled", 130), (signal.SIGTERM, "terminated", 143)],
)
def test_a_signal_ends_the_run_in_its_own_state_and_the_next_start_goes_on(
    launch: Launcher, many_bars: Path, signum: int, state: str, exit_code: int
) -> None:
    process, pid = caught_in_upload(launch, many_bars)
    process.send_signal(signum)
    os.kill(pid, signal.SIGCONT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == exit_code, err
    store, (run_id,) = open_store(launch.store), launch.runs()
    assert run_state(store, run_id).state == state
    assert read_manifest(store, run_id) is None
    assert "committed" in launch("precompute", "--bars", str(many_bars))
    assert "0 failed" in launch("verify", run_id)


@pytest.mark.parametrize(
    ("signum", "state", "exit_code"),
    [(signal.SIGINT, "cancelled", 130), (signal.SIGTERM, "terminated", 143)],
)
def test_a_signal_that_ends_a_job_before_it_heeds_signals_is_recorded_as_any_other(
    launch: Launcher,
    monkeypatch: pytest.MonkeyPatch,
    signum: int,
    state: str,
    exit_code: int,
) -> None:
    store = open_store(launch.store)
    run_id = submitted_run(store)
    deaf = (
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_DFL); "
        "print(flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", deaf]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as job:
        assert job.stdout is not None
        job.stdout.readline()
        job.send_signal(signum)
        monkeypatch.setattr(local, "start_job", lambda *_: job)
        settings = Settings(store=launch.store, work=launch.work)
        assert local.run_to_end(settings, store, "precompute", run_id) == exit_code
    run = run_state(store, run_id)
    assert (run.state, run.status and run.status.exit_code) == (state, exit_code)


def test_a_run_that_died_with_its_launcher_is_not_followed_for_ever(launch: Launcher) -> None:
    store = open_store(launch.store)
    run_id = submitted_run(store)
    status = {"state": "running", "time": "2026-01-01T00:00:00+00:00"}
    key = attempt_key(run_id, attempt_id(1), "status.json")
    store.put(key, canonical_json(status))
    long_ago = time.time() - 3600
    os.utime(launch.folder / "store" / key, (long_ago, long_ago))
    assert "has not been heard of for" in launch("logs", run_id, "--follow", exit_code=75)
    assert "silent for" in launch("list")
    store.put(run_key(run_id, "COMMIT.json"), b"{")
    assert "damaged" in launch("list")


def test_a_job_killed_while_it_uploads_is_resumed_and_commits_once(
    tmp_path: Path, many_bars: Path, s3_url: str, s3_environment: dict[str, str]
) -> None:
    launch = Launcher(tmp_path, s3_url, s3_environment)
    process, pid = caught_in_upload(launch, many_bars)
    os.kill(pid, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL
    assert "the same command resumes it" in err
    store, (run_id,) = open_store(launch.store), launch.runs()
    assert run_state(store, run_id).state == "infra_lost"
    assert read_manifest(store, run_id) is None
    output = launch("precompute", "--bars", str(many_bars))
    assert "resuming the upload of features_11d.npy" in output
    assert launch.runs() == [run_id]
    launch("pull", run_id, "pulled")
    assert "0 failed" in launch("verify", "pulled", "--bars", str(many_bars))
    assert "0 failed" in launch("verify", run_id)
    flip_a_byte(launch, run_id)
    assert "sha256" in launch("pull", run_id, "again", exit_code=4)
    assert not (tmp_path / "again" / "bars_11d.npy").exists()
    assert "sha256 of bars_11d.npy" in launch("verify", run_id, exit_code=4)


def flip_a_byte(launch: Launcher, run_id: str) -> None:
    """What no honest writer does: overwrite an artifact in the store with one bit changed."""
    store = open_store(launch.store)
    manifest = read_manifest(store, run_id)
    assert manifest is not None
    key = next(item.key for item in manifest.files if item.path == "bars_11d.npy")
    data = bytearray(store.get(key))
    data[len(data) // 2] ^= 1
    store.put(key, bytes(data))


# --- real bars ---


@pytest.mark.parametrize("name", ["NQ_1m_2023-11-19_2023-12-04", "SPY_1m_sample_days"])
def test_real_bars_give_a_set_that_verifies(launch: Launcher, name: str) -> None:
    path = shared(f"data/{name}.parquet")
    launch("precompute", "--bars", str(path), "--windows", "virtual")
    assert "0 failed" in launch("verify", launch.runs()[0], "--bars", str(path))
