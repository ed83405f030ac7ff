"""A command of this project that runs when the machine starts, by this user's crontab."""

from __future__ import annotations

import shutil
import subprocess


def start_at_boot(module: str) -> bool:
    """Have ``python -m module`` run in ``~/fvae`` at boot; once, however often this is called. False without cron."""
    if shutil.which("crontab") is None:
        print(f"warning: there is no crontab here; have `cd ~/fvae && .venv/bin/python -m {module}` run at boot")
        return False
    line = (
        f"@reboot . $HOME/fvae/pipelines/cluster/environment.sh; cd $HOME/fvae && python -m {module} "
        f">> $HOME/.ray/boot.log 2>&1"
    )
    present = subprocess.run(["crontab", "-l"], capture_output=True, text=True, check=False)
    before = present.stdout.splitlines() if present.returncode == 0 else []
    after = [each for each in before if f"-m {module} " not in each] + [line]
    if after != before:
        subprocess.run(["crontab", "-"], input="\n".join(after) + "\n", text=True, check=True)
    return True
