"""A model, its weights and its data, from what the user has, without running what the user did not ask to run."""

from dtp_deploy.loading.batches import TrainBatches as TrainBatches
from dtp_deploy.loading.checkpoint import Checkpoint as Checkpoint
from dtp_deploy.loading.checkpoint import load_weights as load_weights
from dtp_deploy.loading.checkpoint import read_checkpoint as read_checkpoint
from dtp_deploy.loading.data import Dataset as Dataset
from dtp_deploy.loading.data import check_shapes as check_shapes
from dtp_deploy.loading.data import load_data as load_data
from dtp_deploy.loading.data import parse_input_shape as parse_input_shape
from dtp_deploy.loading.factory import import_object as import_object
from dtp_deploy.loading.factory import make_model as make_model
