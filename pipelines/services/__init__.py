"""The services of a head machine, supervised: MLflow's server and the scheduler of retraining.

python -m pipelines.services up --data ~/fvae-data --artifacts s3://BUCKET/mlflow
"""
