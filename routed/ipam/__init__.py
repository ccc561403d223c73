"""Addresses of pods: arithmetic on Calico's blocks, affinities and handles. Compare-and-swap writes in, none carried out."""
