"""Every command on a store whose every document is damaged or hostile in turn.

A rented machine, or whoever can write to the prefix, may have written any of it. No command ends in
a traceback or an exit code that means nothing, prints an escape code, writes a file outside its
own folders, or rents or ends a machine that is not the run's own.
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="predict needs the extra `train`")

from moola import errors
from moola.cli import app as command_line
from moola.errors import ArtifactError, MoolaError
from moola.jobs.command import main as job_main
from moola.runs.protocol import canonical_json, run_key
from moola.runs.submit import describe_run, read_spec_document, submit
from moola.runs.survey import newest_run
from tests.hostile import (
    ACCOUNT_KEY,
    ARRAYS,
    DAMAGES,
    EVIL,
    IMAGE,
    OUTSIDE,
    Account,
    HostileStore,
)

EXIT_CODES = {
    errors.EXIT_DONE,
    errors.EXIT_USAGE,
    errors.DataError.exit_code,
    errors.ArtifactError.exit_code,
    errors.LaunchError.exit_code,
    errors.TryAgainError.exit_code,
    errors.EXIT_TIME_LIMIT,
    errors.EXIT_CANCELLED,
}

QUICK = {
    "MOOLA_WATCH__POLL_S": "0.01",
    "MOOLA_WATCH__POD_POLL_S": "0.01",
    "MOOLA_WATCH__GRACE_S": "0.01",
    "MOOLA_WATCH__SETTLE_S": "0.05",
    "MOOLA_WATCH__CAPACITY_POLL_S": "0.01",
    "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "secret-of-the-store",
    "RUNPOD_API_KEY": ACCOUNT_KEY,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> HostileStore:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOOLA_BEAT_S", "3600")
        return HostileStore(tmp_path_factory.mktemp("hostile"))


@pytest.fixture
def hostile(
    made: HostileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HostileStore]:
    """The store, good at the start of each test, and the settings under which commands run."""
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MOOLA_STORE", made.store.url)
    monkeypatch.setenv("MOOLA_WORK", str(tmp_path / "work"))
    monkeypatch.setattr("gc.freeze", lambda: None)
    monkeypatch.chdir(tmp_path)
    made.restore()
    yield made
    made.restore()


@pytest.fixture
def account(hostile: HostileStore, monkeypatch: pytest.MonkeyPatch) -> Account:
    account = Account(hostile.launch)
    monkeypatch.setattr("moola.providers.open_pods", lambda _: account)
    return account


class Terminal:
    """Runs commands in this process, as a person would type them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str]:
        """(exit code, all that was printed). Fails for what no command may do."""
        self._monkeypatch.setattr(sys, "argv", ["moola", *arguments])
        with pytest.raises(SystemExit) as ending:
            command_line.main()
        captured = self._capsys.readouterr()
        output = captured.out + captured.err

        exit_code = ending.value.code or 0
        assert isinstance(exit_code, int), output
        assert exit_code in EXIT_CODES, f"{arguments} ended with {exit_code}: {output}"
        assert "Traceback" not in output
        check_is_plain(output)
        return exit_code, output


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(monkeypatch, capsys)


def check_is_plain(output: str) -> None:
    """Nothing in it that a terminal would obey."""
    odd = {c for c in output if not c.isprintable() and c not in "\n\t"}
    assert not odd, f"{odd} in {output!r}"


def check_own_machines_alone(account: Account, hostile: HostileStore) -> None:
    """Nothing was rented but what the proven launch asks for; nothing ended but its machine."""
    for request in account.requests:
        assert request.image == IMAGE
        assert request.name.startswith(f"moola-{hostile.rented}-a")
        assert request.env["MOOLA_RUN"] == hostile.rented
        assert not any("RUNPOD_SECRET" in value for value in request.env.values())
    assert set(account.ended) <= {"pod1"}


def check_nothing_written_outside(hostile: HostileStore, folder: Path) -> None:
    """Only the folders that commands write into, and what the test itself put there."""
    own = {"work", "pulled", "moves.parquet", "predictions.csv", "unused"}
    assert {path.name for path in folder.iterdir()} <= own
    assert not Path("/tmp/moola-written").exists()
    assert not list(hostile.folder.rglob("*moola-written*"))
    assert not list(folder.parent.rglob("*moola-written*"))


def documents_of(kind: str) -> list[str]:
    """The names, below a run, of what each of the three runs has in the store."""
    common = ["spec.json", "status.json", "logs/00000001.jsonl"]
    return {
        "precompute": [*common, "COMMIT.json", "manifest.json", "heartbeat.json", "about.json"],
        "train": [*common, "COMMIT.json", "manifest.json"],
        "rented": [
            *common,
            "launches/00000001.json",
            "pod.json",
            "heartbeat.json",
            "manifest.json",
        ],
    }[kind]


CASES = [
    (kind, name, damage)
    for kind in ("precompute", "train", "rented")
    for name in documents_of(kind)
    for damage in DAMAGES
]


def key_of(hostile: HostileStore, kind: str, name: str) -> str | None:
    """The key of a run's document; None where it has none."""
    run_id: str = getattr(hostile, kind)
    keys = [key for key in hostile.documents(run_id) if key.endswith(f"/{name}")]
    return keys[0] if keys else None


@pytest.mark.parametrize(("kind", "name", "damage"), CASES)
def test_no_damaged_document_of_the_protocol_breaks_a_command(
    hostile: HostileStore,
    account: Account,
    terminal: Terminal,
    tmp_path: Path,
    kind: str,
    name: str,
    damage: str,
) -> None:
    key = key_of(hostile, kind, name)
    if key is None:
        pytest.skip(f"the {kind} run has no {name}")
    run_id: str = getattr(hostile, kind)
    hostile.put(key, DAMAGES[damage](hostile.bytes_of(key)))

    exit_code, listing = terminal("list")
    assert exit_code == 0
    for each in (hostile.precompute, hostile.train, hostile.rented):
        assert each[:20] in listing  # one damaged run hides none
    terminal("status", run_id)
    terminal("logs", run_id)
    terminal("cost", run_id)
    assert terminal("gc", "--keep-last", "9", "--dry-run")[0] == 0
    if kind != "rented":
        terminal("rerun", run_id, "--dry-run")

    if kind == "rented":
        exit_code, _ = terminal("reap")
        assert exit_code in (0, errors.TryAgainError.exit_code)
        terminal("attach", run_id)
        terminal("cancel", run_id)
    else:
        terminal("pull", run_id, "pulled")
    if kind == "precompute":
        terminal("verify", run_id, "--bars", str(hostile.bars))
        terminal("train", "--dry-run")
    if kind == "train":
        terminal("predict", run_id, "--bars", str(hostile.bars))

    check_own_machines_alone(account, hostile)
    check_nothing_written_outside(hostile, tmp_path)


# --- artifacts whose manifest agrees with them ------------------------------------------------

FILES = {
    "precompute": ["metadata.json", "splits.json", "feature_state.json", "bars.parquet"],
    "train": ["model.json", "metrics.json", "gates.json", "model.safetensors"],
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("kind", "name"), [(kind, n) for kind in FILES for n in FILES[kind]])
def test_no_hostile_artifact_breaks_a_command(
    hostile: HostileStore,
    terminal: Terminal,
    tmp_path: Path,
    kind: str,
    name: str,
    damage: str,
) -> None:
    """Of which the writer changed the digests too."""
    run_id: str = getattr(hostile, kind)
    (key,) = [key for key in hostile.documents(run_id) if key.endswith(f"/files/{name}")]
    data = DAMAGES[damage](hostile.bytes_of(key))
    if data is None:
        hostile.put(key, None)
    else:
        hostile.put_committed(run_id, name, data)

    exit_code, _ = terminal("list")
    assert exit_code == 0
    terminal("pull", run_id, "pulled")
    if kind == "precompute":
        terminal("verify", run_id, "--bars", str(hostile.bars))
        terminal("verify", "pulled")
        read_features(hostile, tmp_path)
    else:
        terminal("predict", run_id, "--bars", str(hostile.bars))
        show_train_results(hostile)
    check_nothing_written_outside(hostile, tmp_path)


@pytest.mark.parametrize("array", ARRAYS)
@pytest.mark.parametrize("name", ["bars_11d.npy", "valid_mask.npy"])
def test_no_hostile_array_breaks_a_command(
    hostile: HostileStore, terminal: Terminal, tmp_path: Path, name: str, array: str
) -> None:
    """Before anything is allocated: 40 TiB would not be."""
    hostile.put_committed(hostile.precompute, name, ARRAYS[array])
    terminal("pull", hostile.precompute, "pulled")
    exit_code, _ = terminal("verify", hostile.precompute)
    assert exit_code == 4
    read_features(hostile, tmp_path)


def read_features(hostile: HostileStore, folder: Path) -> None:
    """Read a feature set as a train job does; what is refused is refused as such."""
    from moola.runs.reading import describe_input_run
    from moola.training.data import fetch_features

    with refused_properly():
        item = describe_input_run(hostile.store, hostile.precompute)
        fetch_features(hostile.store, item, folder / "work")


def show_train_results(hostile: HostileStore) -> None:
    """What `moola train` shows of a run that is committed already."""
    from moola.cli.jobs import show_results

    with refused_properly():
        show_results(hostile.store, hostile.train)


@contextlib.contextmanager
def refused_properly() -> Iterator[None]:
    """What is refused in the block is refused with an exit code of the table."""
    try:
        yield
    except MoolaError as error:
        assert error.exit_code in EXIT_CODES  # noqa: PT017 - it need not be refused


# --- what cannot be done by changing one value ------------------------------------------------


def change_json(hostile: HostileStore, key: str, **fields: Any) -> None:
    document = json.loads(hostile.bytes_of(key))
    hostile.put(key, canonical_json({**document, **fields}))


@pytest.fixture
def foreseen(hostile: HostileStore) -> str:
    """A run that nobody has started yet, whose id a writer has foreseen: its spec is there."""
    document = read_spec_document(hostile.store, hostile.precompute)
    item = document.inputs["bars"]
    run_id, other = describe_run(
        "precompute", {**document.spec, "windows": "stored"}, {"bars": item}
    )
    submit(hostile.store, run_id, other)
    return run_id


def run_job(monkeypatch: pytest.MonkeyPatch, run_id: str) -> int:
    monkeypatch.setenv("MOOLA_RUN", run_id)
    monkeypatch.setenv("MOOLA_BEAT_S", "3600")
    return job_main(["precompute"])


@pytest.mark.parametrize("path", [*OUTSIDE, EVIL, "", ".", "..", "a/b", "a\\b", "x" * 300])
@pytest.mark.parametrize("field", ["name", "sha256", "key"])
def test_an_input_that_names_a_place_outside_is_not_fetched(
    hostile: HostileStore,
    foreseen: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    path: str,
    field: str,
) -> None:
    """The attacker's bytes lie where the key says, and the digest is right."""
    key = run_key(foreseen, "spec.json")
    document = json.loads(hostile.store.get(key))
    document["inputs"]["bars"][field] = path
    hostile.put(key, canonical_json(document))
    assert run_job(monkeypatch, foreseen) == ArtifactError.exit_code
    assert "spec.json" in capsys.readouterr().err
    check_nothing_written_outside(hostile, tmp_path)


@pytest.mark.parametrize(
    ("group", "field", "value"),
    [
        ("features", "zigzag_k", 2.5),
        ("splits", "fractions", [0.5, 0.25, 0.25]),
        (None, "on_bad_bars", "drop"),
    ],
)
def test_a_spec_changed_under_its_id_is_noticed_by_all_who_read_it(
    hostile: HostileStore,
    foreseen: str,
    terminal: Terminal,
    account: Account,
    monkeypatch: pytest.MonkeyPatch,
    group: str | None,
    field: str,
    value: object,
) -> None:
    del account
    for run_id in (foreseen, hostile.precompute):
        key = run_key(run_id, "spec.json")
        document = json.loads(hostile.store.get(key))
        target = document["spec"] if group is None else document["spec"][group]
        target[field] = value
        hostile.put(key, canonical_json(document))

    assert run_job(monkeypatch, foreseen) == ArtifactError.exit_code
    for command in (
        ("status", hostile.precompute),
        ("verify", hostile.precompute),
        ("verify", hostile.precompute, "--bars", str(hostile.bars)),
        ("pull", hostile.precompute, "pulled"),
        ("train", "--dry-run", "--features", hostile.precompute),
    ):
        exit_code, output = terminal(*command)
        assert exit_code == ArtifactError.exit_code, command
        assert "its fingerprint must be" in output, command


def test_a_set_made_by_another_spec_than_the_run_s_fails_to_verify(
    hostile: HostileStore, terminal: Terminal
) -> None:
    """The spec was changed while the job read it, and then put back."""
    (key,) = [k for k in hostile.documents(hostile.precompute) if k.endswith("metadata.json")]
    metadata = json.loads(hostile.bytes_of(key))
    metadata["config"]["zigzag_k"] = 2.5
    hostile.put_committed(hostile.precompute, "metadata.json", json.dumps(metadata).encode())
    exit_code, output = terminal("verify", hostile.precompute)
    assert exit_code == 4
    assert "1 failed: made as the run's spec says" in " ".join(output.split())


def test_a_foreseen_run_with_another_spec_is_not_run(
    hostile: HostileStore, terminal: Terminal, tmp_path: Path
) -> None:
    """What the command would compute is not what stands under its id."""
    arguments = ("precompute", "--bars", str(hostile.bars), "--windows", "stored")
    _, plan = terminal(*arguments, "--dry-run")
    run_id = json.loads(plan)["run"]
    key = run_key(run_id, "spec.json")
    (hostile.root / key).parent.mkdir(parents=True, exist_ok=True)
    document = json.loads(hostile.bytes_of(run_key(hostile.precompute, "spec.json")))
    hostile.put(key, canonical_json(document))
    exit_code, output = terminal(*arguments)
    assert exit_code == ArtifactError.exit_code
    assert f"not to {run_id}" in output
    check_nothing_written_outside(hostile, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"run_id": "precompute-000000000000"},
        {"attempt_id": "20260101T000000Z-00000000"},
        {"state": "failed"},
    ],
)
def test_a_manifest_of_another_run_or_attempt_is_refused(
    hostile: HostileStore, terminal: Terminal, change: dict[str, str]
) -> None:
    hostile.change_manifest(hostile.precompute, lambda manifest: manifest.update(change))
    for command in (("pull", hostile.precompute), ("verify", hostile.precompute)):
        exit_code, output = terminal(*command)
        assert exit_code == ArtifactError.exit_code
        assert "manifest.json" in output


def test_a_file_of_another_run_is_not_taken_for_one_s_own(
    hostile: HostileStore, terminal: Terminal
) -> None:
    def borrow(manifest: dict[str, Any]) -> None:
        (entry,) = [each for each in manifest["files"] if each["path"] == "metadata.json"]
        (key,) = [k for k in hostile.documents(hostile.train) if k.endswith("/model.json")]
        data = hostile.bytes_of(key)
        entry |= {"key": key, "size": len(data), "sha256": entry["sha256"]}

    hostile.change_manifest(hostile.precompute, borrow)
    exit_code, output = terminal("pull", hostile.precompute, "pulled")
    assert exit_code == ArtifactError.exit_code
    assert "a key must be" in output


def test_a_feature_set_that_changed_since_the_run_was_submitted_is_refused(
    hostile: HostileStore, tmp_path: Path
) -> None:
    from moola.runs.reading import describe_input_run
    from moola.training.data import fetch_features

    item = describe_input_run(hostile.store, hostile.precompute)
    hostile.change_manifest(hostile.precompute, lambda manifest: manifest.update(reason="x"))
    with pytest.raises(ArtifactError, match="was changed: the sha256 of its manifest must be"):
        fetch_features(hostile.store, item, tmp_path / "work")


# --- links in the folder that is pulled into --------------------------------------------------


@pytest.mark.parametrize("target", ["file", "part", "folder", "manifest"])
def test_pull_follows_no_link(
    hostile: HostileStore, terminal: Terminal, tmp_path_factory: pytest.TempPathFactory, target: str
) -> None:
    """Whatever lies in the folder: nothing outside it is written, and the reason is told."""
    outside = tmp_path_factory.mktemp("outside")
    victim = outside / "victim"
    victim.write_bytes(b"precious")
    pulled = Path("pulled")
    pulled.mkdir()
    if target == "file":
        (pulled / "metadata.json").symlink_to(victim)
    elif target == "part":
        (pulled / "metadata.json.part").symlink_to(victim)
    elif target == "manifest":
        (pulled / "manifest.json.part").symlink_to(victim)
    else:
        (pulled / "sub").symlink_to(outside)
        data = b"attacker"
        hostile.change_manifest(
            hostile.precompute,
            lambda manifest: add_file(hostile, manifest, "sub/moola-written", data),
        )

    exit_code, output = terminal("pull", hostile.precompute, "pulled")
    assert exit_code == errors.DataError.exit_code
    assert "no link in the folder is followed" in output
    assert victim.read_bytes() == b"precious"
    assert [path.name for path in outside.iterdir()] == ["victim"]


def add_file(hostile: HostileStore, manifest: dict[str, Any], path: str, data: bytes) -> None:
    from tests.runs import sha256

    entry = dict(manifest["files"][0])
    key = entry["key"].rpartition("/files/")[0] + f"/files/{path}"
    (hostile.root / key).parent.mkdir(parents=True, exist_ok=True)
    hostile.put(key, data)
    entry |= {"path": path, "key": key, "size": len(data), "sha256": sha256(data)}
    manifest["files"].append(entry)


def test_pull_writes_into_no_file_that_has_another_name(
    hostile: HostileStore, terminal: Terminal, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A hard link: the bytes would be another file's too."""
    victim = tmp_path_factory.mktemp("outside") / "victim"
    victim.write_bytes(b"precious")
    Path("pulled").mkdir()
    Path("pulled", "metadata.json.part").hardlink_to(victim)
    exit_code, _ = terminal("pull", hostile.precompute, "pulled")
    assert exit_code == 0
    assert victim.read_bytes() == b"precious"


def test_the_folder_itself_may_be_a_link(
    hostile: HostileStore, terminal: Terminal, tmp_path: Path
) -> None:
    (tmp_path / "work").mkdir()
    Path("pulled").symlink_to(tmp_path / "work")
    exit_code, _ = terminal("pull", hostile.precompute, "pulled")
    assert exit_code == 0
    assert (tmp_path / "work" / "metadata.json").exists()


# --- runs that are no runs --------------------------------------------------------------------


def test_names_that_are_no_run_s_hide_nothing_and_are_shown_safely(
    hostile: HostileStore, terminal: Terminal, account: Account
) -> None:
    del account
    for name in ("x", "\x1b[31m", "[INST]", "precompute-", "..."):
        folder = hostile.root / "runs" / name
        folder.mkdir()
        (folder / "spec.json").write_bytes(b"{}")
        exit_code, _ = terminal("status", name)
        assert exit_code == errors.DataError.exit_code
    exit_code, output = terminal("list")
    assert exit_code == 0
    assert "5 names in runs/ are no run's" in output
    assert hostile.train in output
    assert newest_run(hostile.store, "precompute") == hostile.precompute


def test_of_a_damaged_run_and_a_good_one_train_takes_the_good_one(
    hostile: HostileStore, caplog: pytest.LogCaptureFixture
) -> None:
    document = read_spec_document(hostile.store, hostile.precompute)
    newer = f"{hostile.precompute}-abcd"
    submit(hostile.store, newer, document)
    (hostile.root / run_key(newer, "COMMIT.json")).write_bytes(b"{}")
    assert newest_run(hostile.store, "precompute") == hostile.precompute
    assert "COMMIT.json" in caplog.text
