"""Mesh, logical-axis rules, shardings and global arrays."""
