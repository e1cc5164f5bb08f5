"""Estimators that work on noisy numbers: shrinkage, subspaces, moments, affine maps, classifiers."""
