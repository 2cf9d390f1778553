"""Training while the masks are learned, and after the channels are gone."""

from dtp_deploy.train.batchnorm import reestimate_batchnorm
from dtp_deploy.train.loop import Trainer
from dtp_deploy.train.settings import Settings

__all__ = ["Settings", "Trainer", "reestimate_batchnorm"]
