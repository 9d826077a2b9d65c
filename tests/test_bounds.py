"""Whatever a spec, a setting or a flag holds: one line, an exit code of the table, never a hang."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from moola import errors
from moola.cli import app as command_line
from moola.cli.options import read_settings, spec_overrides
from moola.errors import DataError, MoolaError
from moola.jobs.prepare import shipped_spec
from moola.launch.docker import is_on_loopback
from moola.launch.settings import Settings, WatchConfig
from moola.runs.protocol import canonical_json
from moola.specs import JOBS, PrecomputeSpec, read_spec
from moola.specs.yaml_text import MAX_DEPTH, MAX_FILE_BYTES, read_yaml
from moola.store import fetch_uri, open_store

LONG = "9" * 5000
LAUGHS = "a: &a [x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("MOOLA_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MOOLA_WORK", str(tmp_path / "work"))


def run(*arguments: str) -> int:
    """The exit code of a command; typer's choices of where to print stay as they are."""
    return command_line.run(arguments)


# --- specs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (LAUGHS, "aliases"),
        ("a: &x 1\nb: *x", "aliases"),
        ("[" * 500 + "]" * 500, "nested deeper"),
        ("{a: " * 5000 + "}" * 5000, "nested deeper"),
        ("bars: " + LONG, "digits"),
        ("bars: 0x" + "f" * 5000, "digits"),
        ("bars: [", "flow"),
        ("bars: !!bool x", "does not fit"),
        ("bars: !!int ''", "does not fit"),
        ("bars: !!python/name:os.system", "could not determine"),
        ("bars: 2024-99-99", "does not fit"),
        ("bars: \x1b[31m", "special characters"),
    ],
)
def test_yaml_out_of_bounds_is_refused_in_one_line(
    text: str, rule: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match=rule) as refusal:
        read_yaml(text)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 500

    path = tmp_path / "spec.yaml"
    path.write_text(text)
    assert run("spec", "precompute", "--spec", str(path)) == 3
    assert capsys.readouterr().err.count("\n") == 1


def test_yaml_within_the_bounds_is_read() -> None:
    text = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    assert read_yaml(text) == yaml.safe_load(text)
    assert read_yaml("{a: [1, 2], b: null, c: 0.5}") == {"a": [1, 2], "b": None, "c": 0.5}


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "large", "bytes", "missing"])
def test_a_spec_that_is_no_small_text_file_is_refused(kind: str, tmp_path: Path) -> None:
    """A pipe that nobody writes to would hang; a sparse gigabyte would fill the memory."""
    path = tmp_path / "spec.yaml"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "large":
        with path.open("wb") as stream:
            stream.truncate(1 << 30)
    elif kind == "bytes":
        path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"the spec must be a readable YAML file") as refusal:
        read_spec(PrecomputeSpec, path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize(
    "pair",
    [
        "machine.max_runtime=9999999999d",
        f"machine.max_runtime={LONG}d",
        f"machine.disk_gb={LONG}",
        f"machine.max_spend={LONG}",
        "machine.max_spend=1e999",
        "machine.max_spend=.inf",
        "machine.max_spend=.nan",
        "machine.gpu.min_memory_gb=.inf",
        "machine.retry.on.0=stalled",
        "machine.data_centers.0.x=1",
        "machine=[]",
        "machine.cpu=7",
        f"nothing={'x' * 100_000}",
        f"{'x' * 100_000}=1",
        f"{'a.' * 10_000}b=1",
        "=1",
        ".=1",
        "machine.secrets={1: 2}",
        "[/INST]=[red]",
    ],
    ids=lambda text: text[:40],
)
def test_a_field_of_the_wrong_type_is_refused(
    job: str, pair: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("spec", job, "--set", pair) in (2, 3)
    lines = capsys.readouterr().err.splitlines()
    assert max(map(len, lines)) < 1000
    assert len(lines) <= 5


def test_many_faults_of_a_spec_are_shown_in_part(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("".join(f"field{n}: {n}\n" for n in range(9999)))
    with pytest.raises(DataError, match=r"and 9979 more") as refusal:
        read_spec(PrecomputeSpec, path)
    assert str(refusal.value).count("\n") == 21


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "pipe", "bytes", "large", "deep", "digits", "type"])
def test_a_settings_file_that_cannot_be_read_is_a_usage_error(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "moola.toml"
    texts = {
        "deep": "a = " + "[" * 100_000,
        "digits": f"work_limit_gb = {LONG}",
        "type": f"watch = {{poll_s = 0x{'f' * 5000}}}",
        "bytes": b"store = '\xff'",
        "large": b"#" * (MAX_FILE_BYTES + 1),
    }
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        text = texts[kind]
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert run("list") == 2
    *_, message = capsys.readouterr().err.splitlines()
    assert len(message) < 1000
    assert "moola.toml" in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MOOLA_WATCH__POLL_S", "abc"),
        ("MOOLA_WATCH__POLL_S", "inf"),
        ("MOOLA_WATCH__POLL_S", "1e300"),
        ("MOOLA_WATCH__POLL_S", LONG),
        ("MOOLA_WATCH", "{" * 100_000),
        ("MOOLA_WATCH", '{"a":' * 50_000),
        ("MOOLA_WATCH", "[1]"),
        ("MOOLA_ON", "moon"),
        ("MOOLA_PODS", "x" * 100_000),
        ("MOOLA_DOCKER_MEMORY", "lots"),
        ("MOOLA_WORK_LIMIT_GB", "abc"),
        ("MOOLA_WORK_LIMIT_GB", "nan"),
        ("MOOLA_STORE", "s3://[x"),
        ("MOOLA_STORE", "s3://a?b"),
        ("MOOLA_STORE", "x" * 100_000),
        ("MOOLA_WORK", "~nobody-of-this-name/x"),
    ],
)
def test_a_setting_of_the_wrong_type_is_one_line(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    assert run("list") in (2, 3)
    lines = capsys.readouterr().err.splitlines()
    assert max(map(len, lines)) < 1000
    assert sum("rror" in line for line in lines) == 1


@pytest.mark.parametrize("name", WatchConfig.model_fields)
def test_no_wait_is_longer_than_can_be_slept(name: str) -> None:
    for value in (float("inf"), float("nan"), 1e300, 0, -1):
        with pytest.raises(ValueError, match=name):
            Settings(watch={name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("url", ["s3://[x", "file://[x/y", "s3://a\0b", "file:///a\0b", "\0"])
def test_an_address_that_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(DataError, match="store URL"):
        open_store(url)
    with pytest.raises(DataError, match=r"there must be a file|must be s3://bucket"):
        fetch_uri(url, Path("fetched"))


@pytest.mark.parametrize("endpoint", ["http://[x", "[x", "http://h:port", "\x1b[31m"])
def test_an_endpoint_that_is_no_url_is_refused_in_one_line(
    endpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-key")
    assert run("list", "--store", "s3://bucket/x") in (2, 3, 6)
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "\x1b" not in printed


def test_an_endpoint_that_is_no_url_is_on_no_loopback() -> None:
    assert not is_on_loopback("http://[x")
    assert is_on_loopback("http://[::1]:9000")


# --- anything -------------------------------------------------------------------------------------

FIELDS = sorted(
    {
        *PrecomputeSpec.model_fields,
        *JOBS["train"].model_fields,
        "features.zigzag_k",
        "machine.max_runtime",
        "machine.retry.on",
        "machine.gpu.types",
        "training.seed",
        "training.learning_rate",
        "cross_validate.fold",
        "synthetic.bars",
        "splits.train_end",
        "labels.source",
        "a.b.c",
        "",
    }
)
WORDS = st.sampled_from(
    [
        LONG,
        "-" + LONG,
        "0x" + "f" * 900,
        "1e999",
        ".nan",
        ".inf",
        "null",
        "[]",
        "{}",
        "[[[]]]",
        "2024-02-30",
        "2024-12-31",
        "!!binary x",
        "!!set {a}",
        "*a",
        "&a b",
        "? x",
        "<<: {}",
        "9999999999d",
        "1" + "0" * 300 + "s",
        "\u0663h",
        "'\\ud800'",
        '"\\ud800"',
        '"\\0"',
        "[/INST]",
        "\x1b[31m",
        "true",
        "~",
        "12:30:45",
        "190:20:30",
        "0o7",
        "=",
        "1_000",
    ]
)
VALUES = WORDS | st.text(max_size=30) | st.integers().map(str) | st.floats().map(str)
NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


def ending_of(read: Callable[[], BaseModel]) -> tuple[int, str]:
    """(exit code, message) of a reading; what it gives can be written down."""
    try:
        canonical_json(read().model_dump(mode="json"))
    except MoolaError as error:
        return error.exit_code, str(error)
    except typer.BadParameter as error:
        return error.exit_code, error.message
    return errors.EXIT_DONE, ""


@settings(max_examples=2000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(
    job=st.sampled_from(sorted(JOBS)),
    field=st.sampled_from(FIELDS) | st.text(max_size=12),
    value=VALUES,
    document=NESTED,
    tail=st.binary(max_size=12),
)
@example(job="train", field="seed", value=LONG, document=None, tail=b"")
@example(job="precompute", field="x", value="{a: [", document={"machine": 10**400}, tail=b"\xff")
def test_any_spec_ends_in_an_exit_code_of_the_table(
    job: str, field: str, value: str, document: object, tail: bytes
) -> None:
    by_flag = ending_of(
        lambda: read_spec(JOBS[job], shipped_spec(job), spec_overrides([f"{field}={value}"], {}))
    )
    spec = Path("fuzz.yaml")
    spec.write_bytes(yaml.safe_dump(document).encode() + tail)
    by_file = ending_of(lambda: read_spec(JOBS[job], spec))

    for exit_code, message in (by_flag, by_file):
        assert exit_code in (0, 2, 3)
        assert max(map(len, [*message.splitlines(), ""])) < 1000


SETTING_NAMES = sorted(
    {name.upper() for name in Settings.model_fields}
    | {f"WATCH__{name.upper()}" for name in WatchConfig.model_fields}
)
TOML_VALUES = st.sampled_from(
    [
        LONG,
        "0x" + "f" * 5000,
        "[" * 3000,
        "nan",
        "-inf",
        "'x'",
        "{}",
        "[1]",
        "1979-05-27",
        '"\\u0000"',
    ]
)


@settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(SETTING_NAMES),
    value=VALUES.filter(lambda text: "\0" not in text),
    key=st.sampled_from(sorted(Settings.model_fields)) | st.text(max_size=6),
    toml=TOML_VALUES | VALUES,
    tail=st.binary(max_size=8),
)
def test_any_settings_end_in_an_exit_code_of_the_table(
    name: str, value: str, key: str, toml: str, tail: bytes
) -> None:
    Path("moola.toml").write_bytes(f"{key} = {toml}\n".encode(errors="replace") + tail)
    with pytest.MonkeyPatch.context() as patch:
        by_file = ending_of(read_settings)
        Path("moola.toml").unlink()
        patch.setenv(f"MOOLA_{name}", value.encode(errors="replace").decode())
        by_variable = ending_of(read_settings)

    for exit_code, message in (by_file, by_variable):
        assert exit_code in (0, 2, 3)
        assert len(message) < 2000
