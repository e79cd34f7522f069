"""`hfgen studio`: a local page to train, draw with, edit with and compare models, and an HTTP endpoint for them."""
