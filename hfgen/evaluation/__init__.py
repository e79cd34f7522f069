"""Evaluation of models: metrics and reports."""
