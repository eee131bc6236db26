"""The hypernetwork itself, and how it acts inside a UNet."""
