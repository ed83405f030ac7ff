"""Clusters of several hosts on one machine: what was measured of them."""
