"""Arrays to bytes and back: the C core and its checked Python face. It knows no model and no network."""
