"""Pages for a browser, model cards, and publishing on the Hub."""
