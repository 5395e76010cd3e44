"""Forecasts of a step's memory and time, before any weights are loaded."""
