"""Several machines on this one: each a set of Linux namespaces, with an address and an sshd of its own.

A :class:`Network` has one laptop, which is the switch too, and hosts that it reaches by ssh. Each has its own network,
process ids, host name, home folder, crontabs, ``/tmp``, ``/dev/shm`` and ``/run``; this project's folder is there,
read-only. So ``ray stop`` on one host sees that host's processes alone, and nothing of it is to be seen on this
machine's own network. When a host is lost, the kernel ends all its processes at once. Needs root.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BIN = ROOT / ".venv" / "bin"
SUBNET = "10.77.0"
SHARED = "/mnt"
"""The folder that all machines see, as one would be by NFS."""
PATIENCE = 540.0
"""Seconds until something must have happened; far more than it takes, also on a busy machine."""

INIT = r"""
set -e
mount --make-rprivate /
mkdir -p "$HOST/home/.ssh" "$HOST/tmp" "$HOST/cron/crontabs"
chmod 700 "$HOST/home" "$HOST/home/.ssh"
chmod 1777 "$HOST/tmp"
mount --bind "$SHARED" /mnt
mount --bind "$ROOT" "$ROOT"
mount -o remount,bind,ro "$ROOT"
for seen in "$ROOT" "$PYTHON"; do
    case "$seen" in
        /tmp/*) mkdir -p "$HOST$seen"; mount --rbind "$seen" "$HOST$seen";;
        /root/*) mkdir -p "$HOST/home${seen#/root}"; mount --rbind "$seen" "$HOST/home${seen#/root}";;
    esac
done
mount -t tmpfs -o mode=1777,size=64g tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/sshd
printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$NAME" > "$HOST/etc_hosts"
mount --bind "$HOST/etc_hosts" /etc/hosts
[ ! -d /var/spool/cron ] || mount --bind "$HOST/cron" /var/spool/cron
ready="$HOST/ready"
exec 3> "$ready.part"
mount --rbind "$HOST/home" /root
mount --rbind "$HOST/tmp" /tmp
hostname "$NAME"
ip link set lo up
trap '' TERM INT HUP
echo ready >&3
while :; do sleep 3600 & wait $!; done
"""
"""What process 1 of a host runs, in bash, which reaps the processes that daemons leave behind."""

SSHD = """Port 22
ListenAddress {address}
HostKey /root/.ssh/host_key
AuthorizedKeysFile /root/.ssh/authorized_keys
PidFile /run/sshd.pid
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
PrintMotd no
"""


def wait_for(holds: Callable[[], object], seconds: float = PATIENCE, what: str = "") -> None:
    """Look until ``holds()``. Raises ``TimeoutError`` that names ``what``."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(0.1)


class Host:
    """One machine. :meth:`run` runs a command on it as its root."""

    def __init__(self, name: str, address: str, folder: Path, shared: Path) -> None:
        """Switch it on. What is in ``folder`` already is its disk.

        Raises ``RuntimeError`` where namespaces cannot be made.
        """
        self.name, self.address, self.folder = name, address, folder
        folder.mkdir(parents=True, exist_ok=True)
        told = {
            "PATH": os.environ["PATH"],
            "HOST": str(folder),
            "NAME": name,
            "ROOT": str(ROOT),
            "PYTHON": sys.base_prefix,
            "SHARED": str(shared),
        }
        namespaces = ("--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc")
        log, ready = folder / "init.log", folder / "ready.part"
        ready.unlink(missing_ok=True)
        with log.open("wb") as said:
            self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", "unshare", *namespaces, "bash", "-c", INIT],  # no host outlives a test
                env=told,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        unshare = self._process

        def is_ready() -> bool:
            assert unshare.poll() is None, f"{name}: no namespaces ({log.read_text().strip()})"
            return ready.exists() and ready.read_text() == "ready\n"

        wait_for(is_ready, what=f"the namespaces of {name}")
        self.init = int(Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children").read_text().split()[0])
        """The id of its process 1 on this machine."""
        # `ray stop` ends every Ray process that it sees, so it must see no others.
        assert self.namespace("pid") != str(Path("/proc/self/ns/pid").readlink())
        assert self.processes() == [], f"{name} sees processes that are not its own"

    @property
    def alive(self) -> bool:
        """Whether it is on."""
        return self._process is not None

    def namespace(self, kind: str) -> str:
        """Which namespace of a kind (``pid``, ``net``, ``mnt``) its processes live in."""
        return str(Path(f"/proc/{self.init}/ns/{kind}").readlink())

    def enter(self, command: str) -> list[str]:
        """``command``, for bash, as an argument list that runs it on the host, in the home folder."""
        assert self.alive, f"{self.name} is off"
        inside = ("nsenter", f"--target={self.init}", "--mount", "--net", "--pid", "--uts", "--ipc", "--wdns=/root")
        return [*inside, "bash", "-c", command]

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """What commands on the host find in theirs: nothing of this process's own."""
        return {
            "HOME": "/root",
            "USER": "root",
            "LANG": "C.UTF-8",
            "PATH": f"{BIN}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            **(extra or {}),
        }

    def attempt(
        self, command: str, env: Mapping[str, str] | None = None, timeout: float = PATIENCE
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in bash; stdout and stderr come together."""
        return subprocess.run(
            self.enter(command),
            env=self.environment(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )

    def run(self, command: str, env: Mapping[str, str] | None = None, timeout: float = PATIENCE) -> str:
        """Its output. Raises ``AssertionError`` with the output where the command fails."""
        done = self.attempt(command, env, timeout)
        assert done.returncode == 0, f"{self.name}: {command}: exit status {done.returncode}\n{done.stdout}"
        return done.stdout

    def start(self, command: str, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
        """A command in the background, in a process group of its own."""
        return subprocess.Popen(
            self.enter(f"exec {command}"), env=self.environment(env), text=True, start_new_session=True, **options
        )

    def processes(self, containing: str = "") -> list[str]:
        """Command lines of what runs on the host, but for process 1 and what looks."""
        listed = [line.split(maxsplit=1) for line in self.run("exec ps ww -e -o pid=,args=").splitlines()]
        rest = [words[1] for words in listed if len(words) == 2 and words[0] != "1"]
        own = ("sleep 3600", "ps ww -e -o pid=,args=")
        return [command for command in rest if command not in own and containing in command]

    def listening(self) -> list[tuple[str, int, str]]:
        """What listens on TCP: address, port, and the program's name."""
        found = set()
        for line in self.run("ss -Htlnp").splitlines():
            words = line.split()
            address, _, port = words[3].rpartition(":")
            program = words[5].split('"')[1] if len(words) > 5 else "?"
            found.add((address.strip("[]").split("%")[0], int(port), program))
        return sorted(found, key=lambda entry: (entry[1], entry[0]))

    def write(self, path: str, content: str, mode: int = 0o600) -> None:
        """Write a file below the home folder."""
        target = self.folder / "home" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)
        target.chmod(mode)

    def serve_ssh(self, public_key: str) -> None:
        """Start an sshd that lets ``public_key`` in, with the host key that the disk has, or a new one."""
        self.write(".ssh/authorized_keys", public_key)
        self.run("[ -f .ssh/host_key ] || ssh-keygen -q -t ed25519 -N '' -f .ssh/host_key")
        self.write(".ssh/sshd_config", SSHD.format(address=self.address))
        self.run("/usr/sbin/sshd -f /root/.ssh/sshd_config")

    def lose(self) -> None:
        """Switch it off at once: all its processes end, and with them its network."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.init, signal.SIGKILL)
        self._process.wait()
        self._process = None


class Network:
    """A laptop, which may log in everywhere, and hosts. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.shared = folder, folder / "shared"
        self.shared.mkdir(parents=True)
        self.hosts: dict[str, Host] = {}
        self.laptop = Host("laptop", f"{SUBNET}.1", folder / "laptop", self.shared)
        self.laptop.run(f"ip link add br0 type bridge; ip addr add {SUBNET}.1/24 dev br0; ip link set br0 up")
        self.laptop.run("ssh-keygen -q -t ed25519 -N '' -f .ssh/id_ed25519")

    def add(self, name: str, *, ssh: bool = True) -> Host:
        """A new host, on; or one that was lost, on again with its address and its disk."""
        before = self.hosts.get(name)
        assert before is None or not before.alive
        address = before.address if before else f"{SUBNET}.{10 + len(self.hosts)}"
        if before:
            shutil.rmtree(before.folder / "tmp")  # as a machine does when it starts
        host = self.hosts[name] = Host(name, address, self.folder / name, self.shared)
        cable = self._cable(host)
        self._at_the_switch("ip", "link", "delete", cable)  # of its life before, if the kernel has not yet
        assert self._at_the_switch(
            "ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", str(host.init)
        )
        assert self._at_the_switch("ip", "link", "set", cable, "master", "br0", "up")
        host.run(f"ip addr add {address}/24 dev eth0; ip link set eth0 up; ip route add default via {SUBNET}.1")
        if ssh:
            host.serve_ssh(self.laptop.run("cat .ssh/id_ed25519.pub"))
        return host

    def cut(self, name: str) -> None:
        """Pull a host's cable: from now on the others hear nothing of it, not even that it ends."""
        assert self._at_the_switch("ip", "link", "set", self._cable(self.hosts[name]), "down")

    def _cable(self, host: Host) -> str:
        return f"v{host.address.rpartition('.')[2]}"

    def _at_the_switch(self, *command: str) -> bool:
        inside = ("nsenter", f"--target={self.laptop.init}", "--net")
        return subprocess.run([*inside, *command], check=False, stderr=subprocess.DEVNULL).returncode == 0

    def close(self) -> None:
        """Switch all off."""
        for host in (*self.hosts.values(), self.laptop):
            host.lose()

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
