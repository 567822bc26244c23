"""Numbers from logits and targets: metrics, thresholds, calibration, intervals. No torch.

ScoreTable, DecisionRule -> MetricTable, Facts, which together are an Evaluation.
Start at evaluation.py, which calls the rest; measure.py defines every number.
"""
