"""Statistics of noisy numbers: shrinkage, subspaces, moments, affine maps, classifiers."""
