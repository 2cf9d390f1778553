"""A model, its weights and its data, from what the user has, without running what the user did not ask to run."""

from dtp_deploy.loading.batches import TrainBatches as TrainBatches
from dtp_deploy.loading.checkpoint import Checkpoint as Checkpoint
from dtp_deploy.loading.checkpoint import load_weights as load_weights
from dtp_deploy.loading.checkpoint import read_checkpoint as read_checkpoint
from dtp_deploy.loading.data import Dataset as Dataset
from dtp_deploy.loading.data import check_shapes as check_shapes
from dtp_deploy.loading.data import load_data as load_data
from dtp_deploy.loading.factory import import_object as import_object
from dtp_deploy.loading.factory import make_model as make_model
from dtp_deploy.loading.foreign import load_foreign as load_foreign
from dtp_deploy.loading.hooks import apply_hook as apply_hook
from dtp_deploy.loading.inputs import InputSpec as InputSpec
from dtp_deploy.loading.inputs import example_inputs as example_inputs
from dtp_deploy.loading.inputs import parse_input as parse_input
from dtp_deploy.loading.inspect import CheckpointInfo as CheckpointInfo
from dtp_deploy.loading.inspect import inspect_checkpoint as inspect_checkpoint
from dtp_deploy.loading.models import LoadedModel as LoadedModel
from dtp_deploy.loading.models import load_model as load_model
