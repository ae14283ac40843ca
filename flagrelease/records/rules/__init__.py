"""What a validation must show, fixed before it runs: in the recipe, under `validation`, and copied into the report.

The limits start from published practice and measurements; docs/validation.md gives the source of each. There is a
file for each stage.
"""

from flagrelease.records.rules.behaviour import WISHES, BehaviourRules, Wish
from flagrelease.records.rules.benchmarks import BenchmarkRules, PublishedScore
from flagrelease.records.rules.continuations import ContinuationRules, WritingRules
from flagrelease.records.rules.invariance import InvarianceRules
from flagrelease.records.rules.layers import LayerLimits
from flagrelease.records.rules.logits import LogitsLimits, LogitsRules
from flagrelease.records.rules.long_context import LongContextRules
from flagrelease.records.rules.preflight import PreflightRules
from flagrelease.records.rules.presets import BENCHMARK_PRESETS
from flagrelease.records.rules.replay import ReplayRules
from flagrelease.records.rules.served import ServedRules
from flagrelease.records.rules.strict import ChatMode, ExamKind
from flagrelease.records.rules.validation import STAGES, StageName, ValidationRules

__all__ = [
    "BENCHMARK_PRESETS",
    "STAGES",
    "WISHES",
    "BehaviourRules",
    "BenchmarkRules",
    "ChatMode",
    "ContinuationRules",
    "ExamKind",
    "InvarianceRules",
    "LayerLimits",
    "LogitsLimits",
    "LogitsRules",
    "LongContextRules",
    "PreflightRules",
    "PublishedScore",
    "ReplayRules",
    "ServedRules",
    "StageName",
    "ValidationRules",
    "Wish",
    "WritingRules",
]
