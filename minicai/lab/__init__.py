"""Measuring: what the crowdworker says of finished models, and figures. The method never imports this package."""
