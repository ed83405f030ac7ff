"""The services of a head machine, supervised: MLflow's server and the scheduler of retraining.

python -m pipelines.services up --data ~/fvae-data --artifacts s3://BUCKET/mlflow
"""

from pipelines.cli.packages import require_packages

require_packages("supervisor")
