"""``python -m pipelines.services down``."""

from __future__ import annotations

from fvae.files import read_json
from pipelines.services import boot, supervision
from pipelines.services.lock import one_at_a_time
from pipelines.services.orphans import end_leftovers
from pipelines.services.settings import PROGRAMS, Down, ServiceSettings


def run(options: Down) -> int:
    """Stop everything; returns 1 where something lives on, else 0."""
    places = options.places()
    if not places.settings.exists():
        print(f"no services in {places.data}")
        return 0
    with one_at_a_time(places):
        ran = supervision.supervisor_pid(places)
        if not supervision.stop(places, options.patience):
            print(f"error: supervisord (process {ran}) does not end; see {places.log(supervision.SUPERVISOR)}")
            return 1
        end_leftovers(places, PROGRAMS)
        if ServiceSettings.from_dict(read_json(places.settings)).at_boot:
            boot.remove(places)
    print("services stopped" if ran else "services did not run")
    return 0
