"""The frozen base model: find, load and query Stable Diffusion 1.x, 2.x and SDXL."""
