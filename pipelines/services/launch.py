"""Become a supervised program: ``python -m pipelines.services.launch PROGRAM DATA DIGEST``, for supervisord alone.

It ends what a killed predecessor left, and gives the program the environment that was kept for it: at boot there is
no other. DIGEST is not read: supervisord restarts a program whose command has changed, and so one with another DIGEST.
"""

from __future__ import annotations

import os
import sys

from fvae.config import ConfigError
from fvae.files import read_json
from pipelines.services.paths import Places
from pipelines.services.processes import end_leftovers
from pipelines.services.programs import started
from pipelines.services.settings import PROGRAMS, ServiceSettings


def main(name: str, data: str) -> None:
    """Never returns. Raises ``ConfigError`` where the data folder holds no settings that can be used."""
    places = Places.below(data)
    (program,) = (known for known in PROGRAMS if known == name)
    for pid in end_leftovers(places, (program,)):
        print(f"ended process {pid}, which a {program} that was killed had left", flush=True)
    command, environment = started(program, places, ServiceSettings.from_dict(read_json(places.settings)))
    of_supervisor = {name: text for name, text in os.environ.items() if name.startswith("SUPERVISOR_")}
    os.execve(command[0], command, environment | of_supervisor)


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2])
    except (ConfigError, OSError) as error:
        print(f"error: {error}", flush=True)
        sys.exit(2)
