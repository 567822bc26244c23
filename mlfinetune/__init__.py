"""Turn a pretrained ResNet into a multi-label image tagger, from the command line."""

__version__ = "0.1.0"
