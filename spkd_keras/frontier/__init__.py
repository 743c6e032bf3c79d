"""Which students are worth having, and which is the smallest that is good enough."""

from spkd_keras.frontier.decision import COSTS, Candidate, Constraints, Decision, decide, pareto

__all__ = ["COSTS", "Candidate", "Constraints", "Decision", "decide", "pareto"]
