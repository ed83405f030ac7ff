"""How each block of the documents is tested: what is run, and what cannot be run here, and why."""

from __future__ import annotations

from typing import NamedTuple

from tests.docs.blocks import Block, Command


class Run(NamedTuple):
    """The command or the snippet is run; a printed output is compared with what is run."""

    more: str = ""
    """Options that are put behind the printed ones to make it small."""


class Check(NamedTuple):
    """The command is not run: its options, its files and its JSON are checked."""

    why: str
    """Why it cannot be run here, or where it is run."""


AWS = Check("needs an account of AWS; tests/cluster/test_aws_*.py")
CLUSTER = Check("needs machines with an sshd; tests/cluster/test_hosts.py")
SUBMITTED = Check("needs a cluster's head; tests/cluster/test_submit.py")
GPUS = Check("needs GPUs")
RETRAINED = Check("tests/pipelines/retraining/test_retrain.py")
SERVICES = Check("starts services of this machine; tests/services")
FROM_RUN = Check("needs the reader's run; tests/pipelines/training/test_train_command.py")

ACCOUNTS: dict[str, dict[str, Run | Check]] = {
    "README.md": {
        "make search": Run("--trials 3 --epochs 1 --concurrent 1"),
        "make test": Check("runs this test"),
        "digits: 1,257 training, 180 validation and 360 test images of 8×8×1, 17 levels": Run(),
        'make search ARGS="--dataset path/to/images"': Check("needs the reader's images"),
        'make search ARGS="--dataset path/to/mnist --epochs 5"': Check("needs the reader's images"),
        'make search ARGS="--dataset path/to/mnist --epochs 5 --max-params 50000 --trials 48 --time-budget 85m"': Check(
            "needs the reader's images"
        ),
        'make search ARGS="--dataset photos"': Check("another search of minutes"),
        'make search ARGS="--trials 60"': Run("--trials 4 --epochs 1 --concurrent 1"),
        'make search ARGS="--time-budget 2h"': Check("another search of hours; tests/tune/run/test_budget.py"),
        'make search ARGS="--max-params 200000 --goal front"': Check(
            "another search of minutes; tests/tune/propose/test_front_proposer.py"
        ),
        'make search ARGS="--likelihoods gaussian --name gaussian"': Check(
            "another search of minutes; tests/tune/run/test_assembly.py"
        ),
        'make search ARGS="--seeds 3"': Check("another search of minutes; tests/tune/stats/test_replicates.py"),
        'make search ARGS="--name more --warm-start digits"': Run(
            "--trials 1 --epochs 1 --families flow --concurrent 1"
        ),
        'make search ARGS="--help"': Run("--trials 1 --epochs 1"),
        ".venv/bin/python -m pipelines.ingest photos.tar.gz data/photos --size 32": Run("--processes 1"),
        ".venv/bin/python -m pipelines.ingest photos.tar.gz s3://bucket/photos --size 32": Run("--processes 1"),
        'make search ARGS="--dataset data/photos"': Check("another search of minutes"),
        'make search ARGS="--dataset s3://bucket/photos --storage s3://bucket/runs"': Check(
            "another search of minutes; tests/tune/test_search_s3.py"
        ),
        'make ui ARGS="--runs s3://bucket/runs"': Check(
            "serves without end; tests/pipelines/tracking/test_tracking_faults.py"
        ),
        "import numpy as np": Run(),
        "from pipelines.data.datasets import load_dataset": Run(),
        ".venv/bin/python -m pipelines.train --dataset data/photos --model.family flow --model.flow-depth 8 "
        "--train.epochs 100": Check("another training; tests/pipelines/training/test_train_command.py"),
        ".venv/bin/python -m pipelines.train --from-run RUN_ID --workers 4": FROM_RUN,
        ".venv/bin/python -m pipelines.train --config configs/paper-64x64.toml --dataset s3://bucket/faces "
        "--storage s3://bucket/runs --elastic 2:8 --gpus-per-worker 1": GPUS,
        'make search ARGS="--gpus-per-trial 1 --precision bf16"': GPUS,
        'RAY_ADDRESS=auto make search ARGS="--dataset s3://bucket/photos --storage s3://bucket/runs '
        '--workers-per-trial 4 --gpus-per-trial 1"': GPUS,
        ".venv/bin/python -m pipelines.evaluate --model runs/digits/trials/0000-* --k 1 64": Run("--k 1 2"),
        ".venv/bin/python -m pipelines.train --train.epochs 20 --register": Run("--train.epochs 1"),
        "export MLFLOW_TRACKING_URI=sqlite:///runs/mlflow.db PATH=$PWD/.venv/bin:$PATH": Run(),
        "mlflow models serve -m models:/fvae-digits/1 --env-manager local -p 5001": Check(
            "tests/pipelines/tracking/test_serving.py serves a version; the request below is answered without it"
        ),
        "echo '[[[[0, 0, 7, 15, 15, 4, 0, 0], [0, 8, 16, 16, 16, 4, 0, 0], [0, 8, 15, 8, 16, 4, 0, 0], "
        "[0, 0, 0, 10, 15, 0, 0, 0], [0, 0, 1, 15, 9, 0, 0, 0], [0, 0, 6, 16, 2, 0, 0, 0], [0, 0, 8, 16, 8, 11, 9, 0], "
        "[0, 0, 9, 16, 16, 12, 3, 0]]]]' > image.json": Run(),
        "curl http://127.0.0.1:5001/invocations -H 'Content-Type: application/json' "
        '-d "{\\"inputs\\": $(cat image.json), \\"params\\": {\\"k\\": 64}}"': Run(),
        '{"predictions": [2.293826701411768]}': Run(),
        "export PATH=$PWD/.venv/bin:$PATH": Run(),
        "python -m pipelines.cluster.roles cluster.yaml": AWS,
        "ray up cluster.yaml": AWS,
        "ray dashboard cluster.yaml": AWS,
        "export RAY_ADDRESS=http://127.0.0.1:8265": Run(),
        "python tune/search.py --dataset s3://bucket/photos --storage s3://bucket/runs --gpus-per-trial 1": SUBMITTED,
        "python -m pipelines.schedule add nightly --cron '0 3 * * *' --zone Europe/Berlin -- --model fvae-photos "
        "--dataset s3://bucket/photos --storage s3://bucket/runs --gpus-per-worker 1": Run(),
        "python -m pipelines.schedule history nightly": Run(),
        "python -m pipelines.retrain --model fvae-photos --rollback": RETRAINED,
    },
    "docs/cluster.md": {
        "$EDITOR cluster.onprem.yaml": CLUSTER,
        "ray up cluster.onprem.yaml": CLUSTER,
        "ray exec cluster.onprem.yaml 'ray status'": CLUSTER,
        "ray down cluster.onprem.yaml": CLUSTER,
        "$EDITOR cluster.yaml": AWS,
        "python -m pipelines.cluster.roles cluster.yaml": AWS,
        "ray up cluster.yaml": AWS,
        "ray dashboard cluster.yaml &": AWS,
        "export RAY_ADDRESS=http://127.0.0.1:8265 RAY_AUTH_MODE=token": Run(),
        "python tune/search.py --dataset s3://bucket/photos --storage s3://bucket/runs": SUBMITTED,
        "python -m pipelines.train --dataset s3://bucket/photos --storage s3://bucket/runs --workers 4 "
        "--gpus-per-worker 1": SUBMITTED,
        "ray job submit --submission-id night-1 --working-dir . -- python tune/search.py "
        "--storage s3://bucket/runs": SUBMITTED,
        ".venv/bin/python -m pipelines.services up --data ~/fvae-data --artifacts s3://BUCKET/mlflow "
        "--at-boot": SERVICES,
        ".venv/bin/python -m pipelines.services status --data ~/fvae-data": SERVICES,
        ".venv/bin/python -m pipelines.services down --data ~/fvae-data": SERVICES,
        "export MLFLOW_TRACKING_URI=http://127.0.0.1:5000 MLFLOW_TRACKING_USERNAME=ann "
        'MLFLOW_TRACKING_PASSWORD="$(cat …)"': Run(),
        "curl --netrc-file FILE http://127.0.0.1:5000/api/2.0/mlflow/users/create -H 'Content-Type: application/json' "
        '-d \'{"username": "ann", "password": "…"}\'': Check("needs the server; tests/services/test_team.py"),
        "echo 'db.internal:5432:mlflow:fvae:PASSWORD' >> ~/.pgpass; chmod 600 ~/.pgpass": Run(),
        ".venv/bin/python -m pipelines.services up --data ~/fvae-data "
        "--database postgresql://fvae@db.internal:5432/mlflow": SERVICES,
    },
    "docs/retraining.md": {
        "python -m pipelines.retrain --model fvae-photos --dataset s3://bucket/photos --storage s3://bucket/runs": (
            RETRAINED
        ),
        "python -m pipelines.retrain --model fvae-photos --dataset … --search 2h --max-params 2000000": RETRAINED,
        "python -m pipelines.retrain --model fvae-photos --dataset … --dry-run": RETRAINED,
        'python -m pipelines.retrain --model fvae-photos --rollback --reason "blurred faces"': RETRAINED,
        "python -m pipelines.schedule add nightly --cron '0 3 * * *' --zone Europe/Berlin --limit 6h "
        "--on-failure ~/notify.sh -- --model fvae-photos --dataset s3://bucket/photos --storage s3://bucket/runs "
        "--elastic 1:4 --gpus-per-worker 1": Run(),
        "python -m pipelines.schedule list": Run(),
        "python -m pipelines.schedule run-now nightly": Check(
            "needs Ray's job server; tests/pipelines/scheduling/test_schedule.py"
        ),
        "python -m pipelines.schedule history nightly": Run(),
        "python -m pipelines.schedule pause nightly": Run(),
        "python -m pipelines.schedule serve": Check("serves without end; tests/pipelines/scheduling/test_schedule.py"),
        "CRON_TZ=Europe/Berlin": Check("a crontab; tests/docs/test_nightly.py"),
    },
    "docs/training.md": {
        "python -m pipelines.train --dataset digits --model.family flow --model.flow-depth 8": Check(
            "README.md has another training, which is run; tests/pipelines/training/test_train_command.py"
        ),
        "python -m pipelines.train --config configs/paper-64x64.toml --dataset s3://bucket/faces "
        "--storage s3://bucket/runs --elastic 2:8 --gpus-per-worker 1": GPUS,
        "python -m pipelines.train --from-run RUN_ID --dataset data/photos --workers 4": FROM_RUN,
    },
    "docs/datasets.md": {},
    "docs/model.md": {},
    "docs/search.md": {
        ".venv/bin/python -m pip install optuna-dashboard": Check(
            "installed for tests/tune/propose/test_optuna_study.py"
        ),
        ".venv/bin/optuna-dashboard sqlite:///runs/digits/optuna.db": Check(
            "serves without end; tests/tune/propose/test_optuna_study.py"
        ),
        "import optuna": Run(),
    },
}
"""By page, in the order of its blocks: each command of a shell block on one line, and each other block by its first."""


def misfits(page: str, found: list[Command | Block]) -> list[str]:
    """A line for each item that has no account, and for each account of what is not there."""
    accounts, keys = ACCOUNTS.get(page, {}), [item.key for item in found]
    lines = [f"{item.place}: no account in tests/docs/accounts.py for {item.key}" for item in found]
    lines = [line for line, key in zip(lines, keys, strict=True) if key not in accounts]
    return lines + [f"{page}: tests/docs/accounts.py has an account for {key}" for key in accounts if key not in keys]
