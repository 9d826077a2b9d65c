"""The page of bars with moves on them: one file, nothing unescaped, nothing fetched."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from moola.evaluation.moves_page import render_moves

HOSTILE = "</script><script>alert('x')</script>\"&"
TIMES = pd.date_range("2025-03-03 14:30", periods=300, freq="min", tz="UTC")


def bars() -> pd.DataFrame:
    close = 100 + np.sin(np.arange(300) / 9)
    columns = {"open": close - 0.1, "high": close + 0.3, "low": close - 0.4, "close": close}
    return pd.DataFrame(columns, index=TIMES)


def moves(n: int = 2, kind: str = "consolidation") -> pd.DataFrame:
    start = TIMES[50 : 50 + 100 * n : 100]
    return pd.DataFrame(
        {
            "start": start,
            "end": start + pd.Timedelta(minutes=8),
            "type": [kind] * n,
            "probability": np.full(n, 0.8125),
            "probability_of_type": np.full(n, 0.9),
            "windows_agree": np.full(n, 5),
            "windows": np.full(n, 6),
            "best_window": start - pd.Timedelta(minutes=40),
        }
    )


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.fetched: list[str | None] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self.found.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href", "action")]


def data_of(page: str) -> dict:
    match = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert match is not None
    return json.loads(match.group(1))


def test_bars_and_moves_are_all_in_the_page() -> None:
    page = render_moves(bars(), moves(), 0.5, "train-1")
    data = data_of(page)
    assert data["close"] == bars()["close"].tolist()
    assert data["start"] * 60 == TIMES[0].timestamp()
    assert data["minutes"] == list(range(300))
    assert [(move["first"], move["last"]) for move in data["moves"]] == [(50, 58), (150, 158)]
    assert "2025-03-03 15:20" in page
    assert "5 of 6" in page
    assert "2 moves with a probability of 0.50 or more in 300 bars" in page


def test_nothing_is_fetched_and_no_other_script_runs() -> None:
    page = render_moves(bars(), moves(), 0.5, "train-1")
    assert Tags(page).fetched == []
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert "default-src 'none'" in policy.group(1)
    assert "script-src 'sha256-" in policy.group(1)
    assert "//" not in re.sub(r"(?m)^ *//.*$", "", page)


@pytest.mark.parametrize("place", ["type", "run"])
def test_names_are_escaped(place: str) -> None:
    kind = HOSTILE if place == "type" else "a"
    run_id = HOSTILE if place == "run" else "train-1"
    page = render_moves(bars(), moves(kind=kind), 0.5, run_id)
    assert Tags(page).found.count("script") == 2
    assert HOSTILE not in page
    assert "&lt;/script&gt;" in page


def test_no_move_is_said() -> None:
    page = render_moves(bars(), moves(0), 0.5, "train-1")
    assert "No move was found" in page
    assert data_of(page)["moves"] == []


def test_the_same_bars_give_the_same_bytes() -> None:
    first, second = (render_moves(bars(), moves(), 0.5, "train-1") for _ in range(2))
    assert first == second
