"""Measuring codes: metrics on relevance, diagnostics of codes, evaluation, reports."""
