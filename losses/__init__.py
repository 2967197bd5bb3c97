"""Losses as likelihoods: per-example values, and the one reduction that stays right.

A loss returns one value per example; `mean(values, weights)` sums them into a `Mean`, which keeps
total and weight apart so that masks, accumulation and replicas add up before anything is divided.
"""

import os

if __name__ != "jgraph.losses":
    raise ImportError(
        f"import jgraph.losses, not {__name__}: the folder losses/ is reached through the link "
        "jgraph/losses, and a second copy under another name would have its own types"
    )
__path__ = [os.path.realpath(p) for p in __path__]

from jgraph.losses._auc import AUC as AUC
from jgraph.losses._auc import auc as auc
from jgraph.losses._bayes import LastLayer as LastLayer
from jgraph.losses._bayes import laplace_log_prior as laplace_log_prior
from jgraph.losses._bayes import last_layer_laplace as last_layer_laplace
from jgraph.losses._bayes import map_objective as map_objective
from jgraph.losses._bayes import normal_log_prior as normal_log_prior
from jgraph.losses._binary import focal as focal
from jgraph.losses._binary import hinge as hinge
from jgraph.losses._binary import sigmoid_cross_entropy as sigmoid_cross_entropy
from jgraph.losses._binary import weighted_cross_entropy as weighted_cross_entropy
from jgraph.losses._classification import euclidean as euclidean
from jgraph.losses._classification import softmax_cross_entropy as softmax_cross_entropy
from jgraph.losses._classification import (
    sparse_softmax_cross_entropy as sparse_softmax_cross_entropy,
)
from jgraph.losses._confusion import ConfusionMatrix as ConfusionMatrix
from jgraph.losses._confusion import binary_confusion_matrix as binary_confusion_matrix
from jgraph.losses._confusion import confusion_matrix as confusion_matrix
from jgraph.losses._core import cross_entropy as cross_entropy
from jgraph.losses._core import entropy as entropy
from jgraph.losses._core import kl as kl
from jgraph.losses._core import nll as nll
from jgraph.losses._distributions import Bernoulli as Bernoulli
from jgraph.losses._distributions import Categorical as Categorical
from jgraph.losses._distributions import Laplace as Laplace
from jgraph.losses._distributions import Normal as Normal
from jgraph.losses._distributions import Poisson as Poisson
from jgraph.losses._distributions import StudentT as StudentT
from jgraph.losses._divergences import js_divergence as js_divergence
from jgraph.losses._divergences import kl_divergence as kl_divergence
from jgraph.losses._divergences import renyi_divergence as renyi_divergence
from jgraph.losses._divergences import wasserstein1 as wasserstein1
from jgraph.losses._embedding import contrastive as contrastive
from jgraph.losses._embedding import info_nce as info_nce
from jgraph.losses._embedding import nt_xent as nt_xent
from jgraph.losses._embedding import triplet as triplet
from jgraph.losses._fused import (
    linear_softmax_cross_entropy as linear_softmax_cross_entropy,
)
from jgraph.losses._metrics import CalibrationError as CalibrationError
from jgraph.losses._metrics import Perplexity as Perplexity
from jgraph.losses._metrics import accuracy as accuracy
from jgraph.losses._metrics import calibration_error as calibration_error
from jgraph.losses._metrics import perplexity as perplexity
from jgraph.losses._metrics import top_k_accuracy as top_k_accuracy
from jgraph.losses._multiclass import multiclass_focal as multiclass_focal
from jgraph.losses._multiclass import multiclass_hinge as multiclass_hinge
from jgraph.losses._ordinal import ordinal as ordinal
from jgraph.losses._ordinal import proportional_odds as proportional_odds
from jgraph.losses._reductions import Mean as Mean
from jgraph.losses._reductions import mean as mean
from jgraph.losses._regression import huber as huber
from jgraph.losses._regression import laplace_nll as laplace_nll
from jgraph.losses._regression import normal_nll as normal_nll
from jgraph.losses._regression import poisson_nll as poisson_nll
from jgraph.losses._regression import student_t_nll as student_t_nll
from jgraph.losses._weights import class_weights as class_weights
from jgraph.losses._weights import ignore as ignore
