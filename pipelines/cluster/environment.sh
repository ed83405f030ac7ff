# Sourced by every command on a machine of the cluster, and by its login shells.
export PATH="$HOME/fvae/.venv/bin:$PATH"
export RAY_AUTH_MODE=token             # the token is in ~/.ray/auth_token
export RAY_USAGE_STATS_ENABLED=0       # usage statistics are disabled
export MLFLOW_DISABLE_TELEMETRY=true
export PYTHONUNBUFFERED=1
unset OMP_NUM_THREADS PYTHONWARNINGS  # the launcher sets the first to 1, and Ray would not give a task its CPUs then
