"""Features of images that need no training: cosines, wavelet scattering, random Fourier features."""
