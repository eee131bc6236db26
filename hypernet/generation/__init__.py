"""Generate images with a Stable Diffusion model and hypernetworks."""
