"""Objectives: how noise is drawn, what a prediction means, and what a loss is."""
