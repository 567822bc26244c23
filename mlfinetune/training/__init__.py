"""Training: a config and its examples become the best candidate, saved in a run directory.

Config, Splits, World -> TrainingSetup -> StepRecords -> Candidates -> the best one
Start at loop.py. setup.py holds what a run needs, and build.py makes it from the config. start.py
opens or resumes a run, and select.py chooses the best candidate.
"""
