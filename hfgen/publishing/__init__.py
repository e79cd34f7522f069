"""The page of a model, and its way to the Hub."""
