"""The laboratory: comparisons, training and evaluation of novel-view models, metrics. Nothing else imports it."""
