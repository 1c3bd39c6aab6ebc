"""Loggers of metrics: metrics.csv always, Weights & Biases, TensorBoard and MLflow on request."""

from vaelab.training.loggers.base import PictureLogger, RunLogger
from vaelab.training.loggers.metrics_file import MetricsFile
from vaelab.training.loggers.mlflow import MLflow
from vaelab.training.loggers.tensorboard import TensorBoard
from vaelab.training.loggers.wandb import WandB, finish_wandb

__all__ = ["MLflow", "MetricsFile", "PictureLogger", "RunLogger", "TensorBoard", "WandB", "finish_wandb"]
