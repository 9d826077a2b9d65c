"""Text from outside as a terminal or a message may show it: no control characters, bounded."""

import re

QUOTED_CHARACTERS = 200  # of a value, in a message

# Longer times are told in the next unit.
SECONDS_ARE_SHOWN_TO = 100
MINUTES_ARE_SHOWN_TO = 100 * 60
HOURS_ARE_SHOWN_TO = 48 * 3600

# Sequences by which a terminal is told to do something: CSI, then strings such as OSC that end with
# BEL or ST, then those of two or three characters.
ESCAPE_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-Z\\^-~]"
)
# C0 but for tab and newline, DEL, C1, and characters that nobody sees: those that turn the
# direction of writing, join, or have no width.
INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
LINE_BREAK = re.compile("\r\n|[\u2028\u2029]")
LINE_BREAKS_AND_TABS = re.compile(r"[\t\n]+")
SURROGATE = re.compile("[\ud800-\udfff]")  # what stands for bytes that were no UTF-8


def printable(text: str) -> str:
    """The text without control characters and escape sequences; tabs and newlines stay."""
    if text.isprintable():
        return text
    text = LINE_BREAK.sub("\n", text)
    text = ESCAPE_SEQUENCE.sub("", text)
    text = INVISIBLE.sub("", text)
    return SURROGATE.sub("\ufffd", text)


def shortened(text: str, characters: int = QUOTED_CHARACTERS) -> str:
    """The text as one printable line of at most so many characters."""
    line = LINE_BREAKS_AND_TABS.sub(" ", printable(text[: 10 * characters]))
    if len(line) <= characters and len(text) <= 10 * characters:
        return line
    return line[: characters - 1] + "…"


def time_text(seconds: float) -> str:
    """A length of time as people say it: 45 s, 12 min, 3.2 h, 5.0 days."""
    if seconds < SECONDS_ARE_SHOWN_TO:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < MINUTES_ARE_SHOWN_TO:
        return f"{seconds / 60:.0f} min"
    if seconds < HOURS_ARE_SHOWN_TO:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86_400:,.1f} days" if seconds < 1e9 else "years"


def counted(n: int, thing: str) -> str:
    """1 move, 1,234 moves."""
    return f"{n:,} {thing}" if n == 1 else f"{n:,} {thing}s"


def quoted(value: object) -> str:
    """A value as a message quotes it: its repr, one line of at most 200 characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer too long to print; nested too deep
        text = f"<{type(value).__name__}>"
    return shortened(text)
