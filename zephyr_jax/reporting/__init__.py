"""HTML pages with pictures: what reports are made of."""
