"""Many trials: search spaces to Optuna, Ray Tune, schedulers and MLflow."""
