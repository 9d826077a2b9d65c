"""Word of runs that have ended, to all who are to have it: by notices, and in MLflow."""

from moola.launch.notices import require_addresses, tell_end
from moola.launch.settings import Settings
from moola.launch.tracking import Tracking, require_tracking
from moola.store import Store


def require_told(settings: Settings) -> None:
    """Raises DataError where word of a run's end could not be sent. Nothing is sent."""
    require_addresses()
    require_tracking(settings.tracking)


class Endings:
    """Sends word of runs that have ended, once. What fails is printed, not raised."""

    def __init__(self, settings: Settings) -> None:
        self._tracking = Tracking(settings.tracking)

    def tell(self, store: Store, run_id: str) -> None:
        """Of a run that has ended, unless somebody has."""
        tell_end(store, run_id)
        self._tracking.tell_end(store, run_id)
