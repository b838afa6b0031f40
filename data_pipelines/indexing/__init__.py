"""Indexes on disk: what a dataset holds, looked through once and mapped into memory ever after."""
