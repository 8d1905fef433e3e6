"""The paper's tables and figures, measured again. Frozen: kept working, not extended."""
