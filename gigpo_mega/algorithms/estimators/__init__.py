"""Advantage estimators: one pure function over the row table each. How to add one: docs/estimators.md."""
