"""The network: build it, load pretrained weights, train it on several ranks, score with it.

images (B, 3, S, S) uint8 -> logits (B, L) float32; model + batches -> ScoreTable
Start at tagger.py; inference.py and scoring.py are what prediction adds to it.
"""
