"""Drawing images from models, and changing given ones."""
