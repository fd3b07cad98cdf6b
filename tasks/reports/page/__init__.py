"""The page of a run: one HTML file without network, with every figure and a viewer for thoughts."""
