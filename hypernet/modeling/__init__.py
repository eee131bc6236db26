"""The hypernetwork, and how it acts in a UNet."""
