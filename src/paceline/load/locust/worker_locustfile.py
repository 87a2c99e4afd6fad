"""Handed by Paceline's master to Locust workers that were started with `locust -f - --worker`."""

import sys

try:
    from paceline.load.locust.agent import PacelineWorker  # noqa: F401 - Locust looks for it here
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "paceline":
        raise
    sys.exit("Paceline wants to drive load from this Locust worker: install paceline[locust] here, too")
