"""What people call a run: its name and tags. They decide nothing, and a run's id knows nothing of
them; so `about.json` is the one document of a run that people may rewrite at any time.
"""

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from moola.errors import DataError
from moola.runs.protocol import ABOUT, run_key
from moola.runs.records import Record, read_record_or_none
from moola.runs.redaction import safe_text
from moola.store import Store
from moola.text import quoted

MAX_TAGS = 20

# A letter, digit or underscore first; no blank at the end.
NAME_RULE = "1 to 80 letters, digits, blanks and . _ : = / + @ -"
TAG_RULE = "1 to 40 letters, digits and . _ : = / + @ -"
Name = Annotated[str, StringConstraints(pattern=r"^\w([\w .:=/+@-]{0,78}[\w.:=/+@-])?$")]
Tag = Annotated[str, StringConstraints(pattern=r"^\w[\w.:=/+@-]{0,39}$")]

_NAME: TypeAdapter[str] = TypeAdapter(Name)
_TAG: TypeAdapter[str] = TypeAdapter(Tag)


class About(Record):
    """about.json of a run. The tags are sorted when they are written."""

    name: Name | None = None
    tags: tuple[Tag, ...] = Field((), max_length=MAX_TAGS)

    def __bool__(self) -> bool:
        return self.name is not None or bool(self.tags)

    def with_changes(
        self,
        name: str | None = None,
        tags: Iterable[str] = (),
        without: Iterable[str] = (),
    ) -> "About":
        """With this name, if one is given, and with and without these tags. Raises DataError."""
        kept = {*self.tags, *tags} - set(without)
        if len(kept) > MAX_TAGS:
            raise DataError(f"a run has at most {MAX_TAGS} tags, these are {len(kept)}")
        return About(name=name or self.name, tags=tuple(sorted(kept)))


NO_ABOUT = About()


def new_about(name: str | None, tags: Iterable[str]) -> About:
    """A name and tags that a person gives. Raises DataError that names the rule and the value."""
    tags = list(tags)
    if name is not None:
        _require(_NAME, name, f"a name has {NAME_RULE}")
    for tag in tags:
        _require(_TAG, tag, f"a tag has {TAG_RULE}")
    return NO_ABOUT.with_changes(name, tags)


def _require(kind: TypeAdapter[str], text: str, rule: str) -> None:
    try:
        kind.validate_python(text)
    except ValidationError as error:
        raise DataError(f"{rule}, got {quoted(text)}") from error
    if safe_text(text) != text:  # all who can read the store can read it
        raise DataError("a name or tag must not hold the value of a secret")


def read_about(store: Store, run_id: str) -> About:
    """A run's name and tags; none without the document. Raises ArtifactError."""
    return read_record_or_none(store, run_key(run_id, ABOUT), About) or NO_ABOUT


def add_about(
    store: Store,
    run_id: str,
    given: About,
    without: Iterable[str] = (),
) -> About:
    """Give a run a name and further tags, and take some away; -> what it has now.

    Of two commands in the same moment the later one stands. Raises ArtifactError where the document
    is damaged, DataError for too many tags.
    """
    about = read_about(store, run_id)
    changed = about.with_changes(given.name, given.tags, without)
    if changed != about:
        store.put(run_key(run_id, ABOUT), changed.to_json())
    return changed
