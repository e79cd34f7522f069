"""How good models are: what is measured, and the reports of it."""
