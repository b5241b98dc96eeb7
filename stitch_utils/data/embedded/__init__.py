"""The embedded pair's weights and its world, the text that it reads: `grammar`, `frames`, `world`, `marked` and
`python_code`. No section of the paper, no equations; `tools/` holds the scripts that trained the models."""
