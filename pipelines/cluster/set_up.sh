#!/usr/bin/env bash
# Make ~/fvae/.venv what requirements.lock says: once for each lock file; again it takes a moment and changes nothing.
#
#     bash ~/fvae/pipelines/cluster/set_up.sh
#
# Each lock file has an environment of its own in ~/fvae-venvs, so what runs keeps the packages that it started with.
set -euo pipefail
cd ~/fvae

environment=~/fvae-venvs/$(sha256sum requirements.lock | cut -c1-16)
if [ ! -e "$environment/installed" ]; then
    python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "error: $(hostname): $python is $("$python" --version 2>&1); Python 3.11 or newer is needed" >&2
        exit 2
    }
    echo "Installing into $environment (once, a few minutes) …"
    rm -rf "$environment"
    mkdir -p ~/fvae-venvs
    "$python" -m venv "$environment"
    "$environment/bin/pip" install --quiet --disable-pip-version-check --requirement requirements.lock
    echo ~/fvae > "$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/fvae.pth"
    touch "$environment/installed"
fi
[ "$(readlink .venv || true)" = "$environment" ] || ln -sfnT "$environment" .venv

# Ray's launcher reads ~/.bashrc before every command.
line='. ~/fvae/pipelines/cluster/environment.sh'
grep -qxF "$line" ~/.bashrc 2>/dev/null || echo "$line" >> ~/.bashrc
chmod 700 ~/.ray
chmod 600 ~/.ray/auth_token
