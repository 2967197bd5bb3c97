"""The recipe that joins networks, data, training and modules: fine-tune on a folder of pictures."""

from jgraph._finetune._recipe import demo_folder as demo_folder
from jgraph._finetune._recipe import finetune as finetune
from jgraph._finetune._run import Prediction as Prediction
from jgraph._finetune._run import Run as Run
from jgraph._finetune._run import load_run as load_run
from jgraph._finetune._score import Score as Score
