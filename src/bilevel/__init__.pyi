from . import (
    datasets as datasets,
    dynamics as dynamics,
    estimators as estimators,
    parts as parts,
    penalties as penalties,
    reweighting as reweighting,
    tasks as tasks,
)
from ._arrays import take_rows as take_rows
from ._algorithm.base import AbstractAlgorithm as AbstractAlgorithm, Info as Info, State as State
from ._algorithm.double_loop import DoubleLoop as DoubleLoop
from ._algorithm.f2sa import F2SA as F2SA
from ._algorithm.federated import FedNest as FedNest, LFedNest as LFedNest
from ._algorithm.fsla import FSLA as FSLA
from ._algorithm.gossip import (
    GossipSOBA as GossipSOBA,
    on_network as on_network,
    replicate as replicate,
)
from ._algorithm.hoag import HOAG as HOAG, SufficientDecrease as SufficientDecrease
from ._algorithm.inexact import InexactDescent as InexactDescent, logarithmic as logarithmic
from ._algorithm.inner_loop import AmIGO as AmIGO, BSA as BSA, StocBiO as StocBiO
from ._algorithm.look_ahead import LookAhead as LookAhead
from ._algorithm.momentum import MRBO as MRBO, SUSTAIN as SUSTAIN, VRBO as VRBO
from ._algorithm.pdbo import PDBO as PDBO
from ._algorithm.pzobo import PZOBO as PZOBO
from ._algorithm.pnpbo import MSEBA as MSEBA, SFFBA as SFFBA, SPABA as SPABA
from ._algorithm.saba import SABA as SABA
from ._algorithm.soba import SOBA as SOBA
from ._algorithm.srba import SRBA as SRBA
from ._algorithm.value_function import (
    BOME as BOME,
    ValueFunctionPenalty as ValueFunctionPenalty,
)
from ._inner.bigsam import (
    BiGSAM as BiGSAM,
    printed_weighting as printed_weighting,
    sabach_shtern_weighting as sabach_shtern_weighting,
)
from ._callback import (
    AbstractCallback as AbstractCallback,
    Chunk as Chunk,
    Logger as Logger,
    ProgressBar as ProgressBar,
    StopWhen as StopWhen,
)
from ._analysis.compare import compare as compare, draw_comparison as draw_comparison
from ._analysis.equilibria import (
    Equilibrium as Equilibrium,
    is_cold_start_equilibrium as is_cold_start_equilibrium,
    is_warm_start_equilibrium as is_warm_start_equilibrium,
)
from ._checkpoint import Checkpoint as Checkpoint
from ._chunk import Tolerances as Tolerances, run_chunk as run_chunk
from ._citation import citation as citation
from ._inner.federated import FederatedInner as FederatedInner
from ._inner.fista import FISTA as FISTA
from ._geometry import (
    AbstractGeometry as AbstractGeometry,
    Ball as Ball,
    Box as Box,
    Euclidean as Euclidean,
    Rowwise as Rowwise,
    Simplex as Simplex,
)
from ._hypergradient.base import (
    AbstractHypergradient as AbstractHypergradient,
    EstimatorState as EstimatorState,
    Hypergradient as Hypergradient,
)
from ._analysis.check_hypergradient import (
    HypergradientCheck as HypergradientCheck,
    check_hypergradient as check_hypergradient,
)
from ._hypergradient.implicit import (
    AID as AID,
    implicit_gradient as implicit_gradient,
)
from ._hypergradient.layer import implicit_layer as implicit_layer
from ._hypergradient.stochastic import SID as SID
from ._hypergradient.unrolled import ITD as ITD
from ._inner.base import AbstractInnerSolver as AbstractInnerSolver, InnerStats as InnerStats
from ._inner.closed_form import ClosedForm as ClosedForm
from ._inner.gradient import GradientInner as GradientInner
from ._inner.minimiser import MinimiserInner as MinimiserInner
from ._linear.cg import CG as CG
from ._linear.neumann import Neumann as Neumann
from ._linear.nystrom import (
    Nystrom as Nystrom,
    diagonal_preconditioner as diagonal_preconditioner,
    nystrom_preconditioner as nystrom_preconditioner,
)
from ._linear.richardson import Richardson as Richardson
from ._linear.stochastic import (
    StochasticRichardson as StochasticRichardson,
    decreasing_step as decreasing_step,
)
from ._problem import (
    BilevelProblem as BilevelProblem,
    FixedPointProblem as FixedPointProblem,
    optimizer_fixed_point as optimizer_fixed_point,
    reparametrise as reparametrise,
)
from ._analysis.time_scales import Regime as Regime, regime as regime
from ._outer.geometry import TransformedGeometry as TransformedGeometry
from ._outer.averaging import IterateAveraging as IterateAveraging
from ._outer.importance import (
    ImportanceSampling as ImportanceSampling,
    WeightedSampler as WeightedSampler,
)
from ._outer.updates import kl_pull as kl_pull, limit_log_step as limit_log_step
from ._outer.penalised import (
    kl_to_uniform as kl_to_uniform,
    l2_to_uniform as l2_to_uniform,
    penalised as penalised,
)
from ._inner.lower_level import (
    LowerLevelCheck as LowerLevelCheck,
    check_lower_level as check_lower_level,
)
from ._analysis.retrain import (
    LeakCheck as LeakCheck,
    RetrainCheck as RetrainCheck,
    Trajectory as Trajectory,
    leak_check as leak_check,
    retrain_check as retrain_check,
)
from ._inner.root import Anderson as Anderson, RootInner as RootInner
from ._loader import FromLoader as FromLoader
from ._loaders import Loaders as Loaders
from ._sampler import (
    AbstractSampler as AbstractSampler,
    Batch as Batch,
    Blocks as Blocks,
    FromParts as FromParts,
    FullBatch as FullBatch,
    Shuffled as Shuffled,
    Stream as Stream,
    Streams as Streams,
    WithReplacement as WithReplacement,
)
from ._solution import (
    RESULTS as RESULTS,
    BilevelError as BilevelError,
    Calls as Calls,
    HypergradientWarning as HypergradientWarning,
    Solution as Solution,
)
from ._analysis.solution_concepts import (
    InnerSolution as InnerSolution,
    cold_start_solution as cold_start_solution,
    optimistic_solution as optimistic_solution,
    pessimistic_solution as pessimistic_solution,
    warm_start_solution as warm_start_solution,
)
from ._solve import solve as solve
from ._outer.trust_region import log_trust_region as log_trust_region
from ._variables import as_arrays as as_arrays
from .penalties import (
    ElasticNetBilevelCV as ElasticNetBilevelCV,
    LogisticRegressionBilevelCV as LogisticRegressionBilevelCV,
    RidgeBilevelCV as RidgeBilevelCV,
)
from .reweighting import (
    Check as Check,
    ReweightedClassifier as ReweightedClassifier,
    ReweightedRegressor as ReweightedRegressor,
    WeightsResult as WeightsResult,
    compare_baselines as compare_baselines,
    effective_sample_size as effective_sample_size,
    entropy as entropy,
    learn_weights as learn_weights,
    near_exact as near_exact,
    trust_features as trust_features,
)
