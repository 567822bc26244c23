"""ScoreTable -> MetricTable; scikit-learn computes."""
