"""Training: one loop that trains and evaluates, and what watches it."""

from jgraph.train._callbacks import Callback as Callback
from jgraph.train._callbacks import CSVLog as CSVLog
from jgraph.train._callbacks import EarlyStopping as EarlyStopping
from jgraph.train._callbacks import ProgressBar as ProgressBar
from jgraph.train._callbacks import StopTraining as StopTraining
from jgraph.train._checkpoint import Checkpoint as Checkpoint
from jgraph.train._checkpoint import Restored as Restored
from jgraph.train._evaluate import evaluate as evaluate
from jgraph.train._evaluate import predict as predict
from jgraph.train._logistic import CrossValidation as CrossValidation
from jgraph.train._logistic import Curve as Curve
from jgraph.train._logistic import LogisticFit as LogisticFit
from jgraph.train._logistic import balanced_weights as balanced_weights
from jgraph.train._logistic import fit_logistic as fit_logistic
from jgraph.train._loop import train_and_evaluate as train_and_evaluate
from jgraph.train._make_step import make_step as make_step
from jgraph.train._objective import LossFn as LossFn
from jgraph.train._observers import Profiler as Profiler
from jgraph.train._observers import TensorBoard as TensorBoard
from jgraph.train._optimizers import adamw as adamw
from jgraph.train._run import NonFiniteError as NonFiniteError
from jgraph.train._specs import EvalSpec as EvalSpec
from jgraph.train._specs import TrainResult as TrainResult
from jgraph.train._specs import TrainSpec as TrainSpec
from jgraph.train._step import Step as Step
from jgraph.train._value_and_grad import value_and_grad as value_and_grad
