"""Recipes of novel-view trainings."""
