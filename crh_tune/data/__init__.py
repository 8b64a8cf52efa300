"""What a trial trains on and is measured with: samples, splits, and the datasets by name."""
