"""Untrained features of images: cosine transform, wavelet scattering, random Fourier features."""
