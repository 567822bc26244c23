"""Training: a config and its examples become the best candidate, saved in a run directory.

Config, Splits, World -> TrainingSetup -> StepRecords -> Candidates -> the best one
Start at loop.py; setup.py has the parts, build.py makes them, start.py and select.py frame a run.
"""
