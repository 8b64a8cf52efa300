"""From finished runs to the paper's tables and figures, with its printed numbers beside the measured ones."""
