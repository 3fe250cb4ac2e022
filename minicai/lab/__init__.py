"""Measuring: what the crowdworker says of finished models, figures,
time and memory. The method never imports this."""
