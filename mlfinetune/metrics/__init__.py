"""ScoreTable -> MetricTable, as scikit-learn defines the numbers."""
