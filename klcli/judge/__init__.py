"""What the scores mean: estimates, outliers, gates, and the one finished report."""
